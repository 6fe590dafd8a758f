"""Distributional policy gradients: every f-divergence from one estimator (Go et al. 2023).

    grad D_f(pi || p*) = E_pi[ f'(pi / p*) grad log pi ]         (arXiv:2302.08215, theorem 1)
                       = E_q'[ (pi / q') f'(pi / p*) grad log pi ]

with the target p* = P / Z. With f of the forward KL this is DPG (Khalifa et al. 2021,
arXiv:2012.11635), whose conditional form has a Z of each prompt (Korbak et al. 2022,
arXiv:2112.00791); its baseline of -1 makes it GDC++ (Korbak et al. 2022, arXiv:2206.00761). With
that of the reverse KL it is the KL-penalised policy gradient.

Shape suffixes: G = prompts, N = completions of each.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lib.graded_groups import Batch, effective_share

SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "forward_kl": lambda log_t: -torch.exp(-log_t),
    "reverse_kl": lambda log_t: log_t + 1,
    "jensen_shannon": lambda log_t: math.log(2) - F.softplus(-log_t),
    "total_variation": lambda log_t: log_t.sign() / 2,
}
"""f' of each divergence at t = pi / p*, from log t."""


def log_z(batch: Batch, temperature: float) -> Tensor:
    """Return log Z_G of each prompt's target: Z = E_q'[P / q'], by the mean over completions."""
    log_weight_GN = batch.log_target(temperature) - batch.proposal_GN
    return log_weight_GN.logsumexp(1) - math.log(log_weight_GN.shape[1])


def loss(
    logps_GN: Tensor,
    batch: Batch,
    *,
    temperature: float,
    divergence: str,
    baseline: bool,
    max_ratio: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what has the estimator as its gradient; its value has no meaning of its own.

    Args:
        logps_GN: log pi of the completions, sums over tokens in nats.
        batch: their rewards, and log-probabilities under reference and proposal.
        temperature: of the target.
        divergence: a key of `SLOPES`.
        baseline: whether what f' is on average under the policy is taken from it: -1 for the
            forward KL, where it is known; otherwise the weighted mean of the other completions of
            the prompt, which leaves the gradient's mean as it is.
        max_ratio: of pi / q' and of p* / q', which are held below it.

    Returns:
        losses_G, and by name: `kl_target`, an estimate of KL(p* || pi) in nats; `effective`, the
        effective share of the completions under the target.
    """
    log_policy_GN = logps_GN.detach()
    log_target_GN = batch.log_target(temperature) - log_z(batch, temperature)[:, None]
    top = math.log(max_ratio)
    log_ratio_GN = (log_policy_GN - batch.proposal_GN).clamp(max=top)
    # p* / q' held below the same bound is pi / q' over t, and keeps forward KL's weights finite
    log_weight_GN = (log_target_GN - batch.proposal_GN).clamp(max=top)
    log_t_GN = log_ratio_GN - log_weight_GN
    slope_GN, ratio_GN = SLOPES[divergence](log_t_GN), log_ratio_GN.exp()
    if baseline:
        slope_GN = slope_GN - _mean_slope(slope_GN, ratio_GN, divergence)
    losses_G = (ratio_GN * slope_GN * logps_GN).mean(1)
    kl_G = (log_weight_GN.exp() * (log_target_GN - log_policy_GN)).mean(1)
    return losses_G, {"kl_target": kl_G, "effective": effective_share(log_weight_GN)}


def _mean_slope(slope_GN: Tensor, ratio_GN: Tensor, divergence: str) -> Tensor | float:
    if divergence == "forward_kl":
        return -1.0  # E_pi[-p* / pi]
    rest_GN = ratio_GN.sum(1, keepdim=True) - ratio_GN
    weighted_GN = ratio_GN * slope_GN
    return (weighted_GN.sum(1, keepdim=True) - weighted_GN) / rest_GN.clamp(min=1e-12)
