"""How often a policy's answer beats the baseline's, and would at equal length.

By the reward model it does or does not; by a judge it does with a probability.

Both answered the same prompt under the same random numbers. A longer answer may win for its length
alone; after Dubois et al. 2024 (arXiv:2404.04475) a logistic regression takes that out:

    P(win) = sigmoid( theta + gamma * tanh(length difference / its standard deviation) )

and the controlled rate is sigmoid(theta), what is predicted where lengths are equal.

Shape suffixes: P = pairs of answers, R = resamples.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stages.lib.records import Evaluated, Leaning
from stages.lib.reporting.comparison import Nested, Plan, ends
from stages.lib.statistics import Floats, resample_blocks

RIDGE = 0.001
"""On both coefficients, a pair: where one side wins always, theta has no finite optimum."""


Couple = tuple[Evaluated, Evaluated, float]
"""A policy's answer, the baseline's, and the probability that the first is better."""


def by_reward(
    policy: Sequence[Evaluated], baseline: Sequence[Evaluated], plan: Plan
) -> list[Couple]:
    """Return the answers of the primary set that the reward model scored for both; a tie is 0.5."""
    return [
        (a, b, (a.reward > b.reward) + 0.5 * (a.reward == b.reward))
        for a, b in _couples(policy, baseline)
        if a.set == plan.set and a.reward is not None and b.reward is not None
    ]


def by_judge(
    policy: Sequence[Evaluated],
    baseline: Sequence[Evaluated],
    better: Mapping[tuple[str, str, int], float],
) -> list[Couple]:
    """Return the answers that a judge compared.

    Args:
        policy: its answers.
        baseline: of the same prompts and indices.
        better: set, prompt and index to the probability that the policy's answer is better.
    """
    return [(a, b, better[_named(a)]) for a, b in _couples(policy, baseline) if _named(a) in better]


def _couples(
    policy: Sequence[Evaluated], baseline: Sequence[Evaluated]
) -> Iterator[tuple[Evaluated, Evaluated]]:
    theirs = {_named(row): row for row in baseline}
    for row in policy:
        if other := theirs.get(_named(row)):
            yield row, other


def _named(row: Evaluated) -> tuple[str, str, int]:
    return row.set, row.prompt_id, row.index


def rates(couples: Sequence[Couple], plan: Plan, *, seed: int) -> Nested:
    """Return `win_rate` and `win_rate_controlled` of a policy, with intervals; 0.5 is no better.

    The first is the mean probability that its answer is better. Without any couple, empty.
    """
    if not couples:
        return {}
    won_P = np.array([p for _, _, p in couples], dtype=np.float64)
    longer_P = np.array([float(len(a.text) - len(b.text)) for a, b, _ in couples])
    clusters = [a.cluster for a, _, _ in couples]
    once_1P = np.ones((1, len(couples)))

    def both(weights_RP: Floats) -> Floats:
        plain_R = weights_RP @ won_P / weights_RP.sum(1)
        return np.stack([plain_R, at_equal_length(won_P, longer_P, weights_RP)])

    blocks = resample_blocks(clusters, resamples=plan.resamples, seed=seed)
    drawn_2R = np.concatenate([both(weights_RP) for weights_RP in blocks], axis=1)
    return {
        name: {"value": float(value), **ends(drawn_R), "n": len(couples)}
        for name, value, drawn_R in zip(
            ("win_rate", "win_rate_controlled"), both(once_1P)[:, 0], drawn_2R, strict=True
        )
    }


def implicit(leanings: Sequence[Leaning], plan: Plan, *, seed: int) -> Nested:
    """Return `implicit_accuracy`: how often a policy leans the way of the labelers; ties half.

    Over held-out pairs, with an interval over clusters of prompts. Empty without any.
    """
    if not leanings:
        return {}
    right_P = np.array([(one.margin > 0) + 0.5 * (one.margin == 0) for one in leanings])
    clusters = [one.cluster for one in leanings]
    blocks = resample_blocks(clusters, resamples=plan.resamples, seed=seed)
    drawn_R = np.concatenate([b_RP @ right_P / b_RP.sum(1) for b_RP in blocks])
    found = {"value": float(right_P.mean()), "n": len(leanings)}
    return {"implicit_accuracy": found | ends(drawn_R)}


def at_equal_length(won_P: Floats, longer_P: Floats, weights_RP: Floats) -> Floats:
    """Return the win rate that the regression predicts at equal length, a row of weights each.

    Args:
        won_P: the probability that the policy's answer is better; 0.5 is a tie.
        longer_P: by how much the policy's answer is longer, in any unit.
        weights_RP: how often each pair counts.
    """
    spread = longer_P.std()
    x_P = np.tanh(longer_P / spread) if spread > 0 else np.zeros_like(longer_P)
    count_R = weights_RP.sum(1)
    theta_R, gamma_R = np.zeros(len(weights_RP)), np.zeros(len(weights_RP))
    for _ in range(30):  # Newton's steps; the objective is convex, and ten are enough
        before_R = theta_R
        p_RP = 1 / (1 + np.exp(-(theta_R[:, None] + gamma_R[:, None] * x_P)))
        error_RP = weights_RP * (p_RP - won_P)
        bend_RP = weights_RP * p_RP * (1 - p_RP)
        ridge_R = RIDGE * count_R
        down_t, down_g = error_RP.sum(1) + ridge_R * theta_R, error_RP @ x_P + ridge_R * gamma_R
        tt, tg = bend_RP.sum(1) + ridge_R, bend_RP @ x_P
        gg = bend_RP @ x_P**2 + ridge_R
        determinant = tt * gg - tg * tg
        theta_R = theta_R - (gg * down_t - tg * down_g) / determinant
        gamma_R = gamma_R - (tt * down_g - tg * down_t) / determinant
        if np.abs(theta_R - before_R).max(initial=0.0) < 1e-9:  # what is left is its square
            break
    return 1 / (1 + np.exp(-theta_R))
