"""From scores and divergences to advantages, as pure functions of padded tensors.

Completions are padded right; mask_BT is true on their real tokens, EOS included. What stands on
padding is ignored, whatever it is. Where several processes share a batch, `total` adds up over
them (`processes.total`, which of one process is the value).

Shape suffixes: B = completions, T = their tokens.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""Sum of a tensor over all processes."""


def shaped_scores(
    scores_B: Tensor, ended_B: Tensor, *, clip: float | None, missing_eos_penalty: float
) -> tuple[Tensor, Tensor]:
    """Clip scores and take a penalty from completions without EOS.

    Args:
        scores_B: normalised scores of the reward model, in its standard deviations.
        ended_B: whether each completion ends with EOS.
        clip: largest magnitude of a score, the same on both sides; None clips nothing.
        missing_eos_penalty: taken from what was cut at the token limit; 0 changes nothing.

    Returns:
        scores_B, and clipped_B, true where the clip changed one.
    """
    limit = math.inf if clip is None else clip
    clipped_B = scores_B.abs() > limit
    scores_B = scores_B.clamp(-limit, limit)
    return scores_B - missing_eos_penalty * (~ended_B).to(scores_B.dtype), clipped_B


def token_rewards(scores_B: Tensor, k1_BT: Tensor, mask_BT: Tensor, *, beta: float) -> Tensor:
    """Return rewards_BT: the KL penalty on every token, the score on the last one alone.

        r_t = -beta (log pi - log ref)_t + [t is last] score

    The penalty is the k1 estimate: in a reward its gradient is that of the KL itself, which that of
    k2 or k3 is not (Schulman 2020; arXiv:2506.09477).

    Args:
        scores_B: of whole completions.
        k1_BT: log-probability under the policy that sampled minus that under the reference, nats.
        mask_BT: real tokens; every completion has one.
        beta: reward for a nat.
    """
    rewards_BT = torch.where(mask_BT, -beta * k1_BT, 0.0)
    last_B = mask_BT.sum(1) - 1
    return rewards_BT.scatter_add(1, last_B[:, None], scores_B[:, None].to(rewards_BT.dtype))


def generalised_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, Eq. 16 of Schulman et al. 2015 (arXiv:1506.02438).

        delta_t = r_t + gamma V_{t+1} - V_t,  A_t = sum_k (gamma lam)^k delta_{t+k}

    with V = 0 after the last token: a completion that was cut is over as well.

    Args:
        rewards_BT: see `token_rewards`.
        values_BT: expected return from before each token on.
        mask_BT: real tokens.
        gamma: discount a token, 0 to 1.
        lam: 1 gives returns minus values, 0 one-step errors.

    Returns:
        advantages_BT, and returns_BT = advantages + values; both 0 on padding.
    """
    values_BT = torch.where(mask_BT, values_BT, 0.0)
    after_BT = torch.cat([values_BT[:, 1:], torch.zeros_like(values_BT[:, :1])], 1)
    delta_BT = torch.where(mask_BT, rewards_BT + gamma * after_BT - values_BT, 0.0)
    running_B = torch.zeros_like(delta_BT[:, 0])
    found = []
    for t in reversed(range(delta_BT.shape[1])):
        running_B = delta_BT[:, t] + gamma * lam * running_B
        found.append(running_B)
    advantages_BT = torch.stack(found[::-1], 1)
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def masked_mean(values_BT: Tensor, mask_BT: Tensor, total: Total) -> Tensor:
    """Return the mean over real tokens, of all processes."""
    both = torch.stack([values_BT[mask_BT].sum().double(), mask_BT.sum().double()])
    added, count = total(both)
    return added / count


def whiten(values_BT: Tensor, mask_BT: Tensor, total: Total, *, shift_mean: bool) -> Tensor:
    """Scale to standard deviation 1 over real tokens; `shift_mean` also moves the mean to 0.

    Rewards keep their mean, which says whether there is anything to gain; advantages do not.
    """
    mean = masked_mean(values_BT, mask_BT, total)
    variance = masked_mean((values_BT - mean).square(), mask_BT, total)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask_BT, whitened_BT + (0.0 if shift_mean else mean), 0.0).to(
        values_BT.dtype
    )


def explained_variance(values_N: Tensor, returns_N: Tensor, total: Total) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over tokens; NaN of equal returns."""
    all_N = torch.ones_like(returns_N, dtype=torch.bool)

    def variance(one_N: Tensor) -> float:
        mean = masked_mean(one_N.double(), all_N, total)
        return float(masked_mean((one_N.double() - mean).square(), all_N, total))

    spread = variance(returns_N)
    return 1 - variance(returns_N - values_N) / spread if spread > 0 else float("nan")
