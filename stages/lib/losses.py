"""Preference losses, as pure functions of scores and log-probabilities.

Shape suffixes: P = comparisons (pairs), E = examples judged one by one, M = mismatched examples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def preference_loss(margins_P: Tensor, p_chosen_P: Tensor) -> Tensor:
    """Cross-entropy of the Bradley-Terry model (1952) with soft labels.

        loss = -[ p log sigmoid(m) + (1 - p) log sigmoid(-m) ]

    Args:
        margins_P: score of chosen minus score of rejected, dimensionless.
        p_chosen_P: probability that chosen is better, 0 to 1. 1 is a hard label; 0.5 is a tie,
            whose gradient is zero at margin 0.

    Returns:
        losses_P in nats: log 2 = 0.693 at margin 0, whatever the label.
    """
    return -(p_chosen_P * F.logsigmoid(margins_P) + (1 - p_chosen_P) * F.logsigmoid(-margins_P))


def smoothed(p_chosen_P: Tensor, *, label_smoothing: float) -> Tensor:
    """Mix labels with their opposites: p (1 - e) + (1 - p) e, as in conservative DPO.

    Args:
        p_chosen_P: probability that chosen is better.
        label_smoothing: e, probability that a label is flipped, in [0, 0.5).

    Raises:
        ValueError: e is out of range: at 0.5 every label says nothing.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    return p_chosen_P * (1 - label_smoothing) + (1 - p_chosen_P) * label_smoothing


def implicit_margins(
    policy_chosen_P: Tensor,
    policy_rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
) -> Tensor:
    """Return log-ratio of chosen minus log-ratio of rejected, in nats.

        (pi_c - ref_c) - (pi_r - ref_r)

    Args:
        policy_chosen_P: sum of token log-probabilities in nats; the other three likewise.
    """
    return (policy_chosen_P - reference_chosen_P) - (policy_rejected_P - reference_rejected_P)


def dpo_loss(margins_P: Tensor, p_chosen_P: Tensor, *, beta: float) -> Tensor:
    """Direct Preference Optimization, Eq. 7 of Rafailov et al. 2023 (arXiv:2305.18290).

        loss = -log sigmoid( beta * [ (pi_c - ref_c) - (pi_r - ref_r) ] )

    with soft labels: `preference_loss` of beta times the margins. With hard labels it is Eq. 7.

    Args:
        margins_P: see `implicit_margins`, in nats.
        p_chosen_P: probability that chosen is better.
        beta: 1/nats, > 0. Larger holds the policy closer to the reference.

    Returns:
        losses_P in nats: log 2 = 0.693 when the policy is the reference.

    Raises:
        ValueError: beta is not positive: at 0 the loss is constant and has no gradient.
    """
    if beta <= 0:
        raise ValueError(f"beta must be > 0, not {beta}: at 0 the loss is constant at log 2")
    return preference_loss(beta * margins_P, p_chosen_P)


def ipo_loss(
    margins_P: Tensor,
    p_chosen_P: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Identity Preference Optimization, Eq. 17 of Azar et al. 2023 (arXiv:2310.12036).

        loss = ( m - (2 p - 1) / (2 beta) )^2

    The target is 1 / (2 beta) for a hard label and 0 for a tie; the paper's tau is beta.

    Args:
        margins_P: see `implicit_margins`, in nats; not normalised by length, as in the paper.
        p_chosen_P: probability that chosen is better.
        beta: 1/nats, > 0.

    Raises:
        ValueError: beta is not positive: the target would be infinite.
    """
    if beta <= 0:
        raise ValueError(f"beta must be > 0, not {beta}: the target 1 / (2 beta) is infinite at 0")
    return (margins_P - (2 * p_chosen_P - 1) / (2 * beta)) ** 2


def weighted_mean(
    losses_P: Tensor, weights_P: Tensor, *, whole_weight: float | None = None
) -> Tensor:
    """Return sum(w l) / sum(w): prompts count alike however many pairs they have.

    Args:
        losses_P: in nats.
        weights_P: of each.
        whole_weight: of the batch that these are a share of; the shares' results add up to the
            mean. None: they are all of it.
    """
    whole = weights_P.sum() if whole_weight is None else whole_weight
    return (losses_P * weights_P).sum() / whole


def kto_reference_point(log_ratios_M: Tensor) -> Tensor:
    """Estimate the point that KTO counts gains and losses from, section 4.1 of its paper.

        z0 = max(0, mean_i log pi(y_j | x_i) / ref(y_j | x_i)),  y_j an answer to another prompt

    It stands for KL(policy || reference), whose estimate from the policy's own answers would need
    sampling at each step. It is biased, and the paper says so. It is one number a batch: the mean
    of two halves' numbers is that of the whole only where neither was raised to 0.

    Args:
        log_ratios_M: policy minus reference, of answers put after a prompt that is not theirs;
            sums of token log-probabilities in nats.

    Returns:
        z0 in nats, at least 0, through which no gradient flows. For [3, -1] it is 1.

    Raises:
        ValueError: there is none to take the mean of.
    """
    if not len(log_ratios_M):
        raise ValueError("the reference point of KTO needs an answer put after another prompt")
    return log_ratios_M.detach().mean().clamp(min=0)


def kto_loss(
    log_ratios_E: Tensor,
    up_E: Tensor,
    z0: Tensor,
    *,
    beta: float,
    up_weight: float,
    down_weight: float,
) -> Tensor:
    """Kahneman-Tversky Optimization, Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1.

        loss = up_weight   * [1 - sigmoid( beta * (r - z0) )]    where the answer is good
               down_weight * [1 - sigmoid( beta * (z0 - r) )]    where it is bad

    It is the paper's lambda_y - v(x, y). Far from z0, on either side, the gradient goes to 0.

    Args:
        log_ratios_E: r, policy minus reference, sums of token log-probabilities in nats.
        up_E: whether each answer is good, boolean.
        z0: see `kto_reference_point`, in nats.
        beta: 1/nats, > 0. Larger reaches the flat ends of the sigmoid sooner.
        up_weight: the paper's lambda_D; down_weight: its lambda_U. Both > 0.

    Returns:
        losses_E, dimensionless, between 0 and the weight: half the weight where r is z0.

    Raises:
        ValueError: beta or a weight is not positive, or a label is neither good nor bad.
    """
    if beta <= 0:
        raise ValueError(f"beta must be > 0, not {beta}: at 0 the loss is half the weight")
    if min(up_weight, down_weight) <= 0:
        raise ValueError(f"weights must be > 0, not {up_weight} and {down_weight}")
    if up_E.dtype != torch.bool or up_E.shape != log_ratios_E.shape:
        raise ValueError(
            f"up_E must hold a boolean for each of {tuple(log_ratios_E.shape)} log-ratios, not "
            f"{up_E.dtype} {tuple(up_E.shape)}"
        )
    gain_E = torch.where(up_E, log_ratios_E - z0, z0 - log_ratios_E)
    weight_E = torch.where(up_E, up_weight, down_weight)
    return weight_E * torch.sigmoid(-beta * gain_E)  # 1 - sigmoid(u) is sigmoid(-u)
