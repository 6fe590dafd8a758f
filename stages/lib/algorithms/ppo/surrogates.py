"""Losses of proximal policy optimisation for each token, as pure functions.

Shape suffixes: N = completion tokens of a batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The policy's loss, and what it says of the update."""

    losses_N: Tensor
    clipped_N: Tensor
    """Where the clipped term is the larger, so that the token has no gradient."""
    ratio_N: Tensor
    """Probability under the policy over that under the one that sampled."""
    k3_N: Tensor
    """Estimate of the KL from the one that sampled, in nats; never negative."""


def policy_loss(
    logp_N: Tensor, old_logp_N: Tensor, advantages_N: Tensor, *, clip: float
) -> Surrogate:
    """Clipped surrogate, Eq. 7 of Schulman et al. 2017 (arXiv:1707.06347), negated.

        loss = -min( rho A, clip(rho, 1 - clip, 1 + clip) A ),  rho = exp(logp - old)

    Args:
        logp_N: log-probabilities in nats; gradients flow through them alone.
        old_logp_N: of the same tokens when they were drawn.
        advantages_N: dimensionless.
        clip: how far the ratio counts on the side that the advantage favours.
    """
    log_ratio_N = logp_N - old_logp_N
    ratio_N = log_ratio_N.exp()
    free_N = -advantages_N * ratio_N
    held_N = -advantages_N * ratio_N.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        k3_N = torch.expm1(log_ratio_N) - log_ratio_N
    return Surrogate(torch.maximum(free_N, held_N), held_N > free_N, ratio_N.detach(), k3_N)


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip: float | None
) -> Tensor:
    """Half the squared error of values, pessimistically clipped around what they were.

        loss = 1/2 max( (V - R)^2, (clip(V, old - clip, old + clip) - R)^2 )

    Args:
        values_N: expected returns; gradients flow through them alone.
        old_values_N: of the same tokens at the rollout.
        returns_N: the targets.
        clip: None takes the first term alone.
    """
    errors_N = (values_N - returns_N).square()
    if clip is not None:
        held_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        errors_N = torch.maximum(errors_N, (held_N - returns_N).square())
    return 0.5 * errors_N


def entropy(logits_NV: Tensor) -> Tensor:
    """Return the entropy of each row's distribution over the vocabulary, in nats."""
    logps_NV = logits_NV.log_softmax(-1)
    return -(logps_NV.exp() * logps_NV).sum(-1)
