"""The evaluation's intervals hold the truth as often as they say, and its design finds what it should.

Prompts are simulated: clusters of near-duplicates share some of what makes them toxic, completions
of a prompt share more, and two policies share part of their noise, as they do under common random
numbers. The truth is that of 400,000 prompts.
"""

from functools import cache

import numpy as np
import pytest

from stages.lib import toxicity
from stages.lib.neutral_text import PassageLoss
from stages.lib.reporting import comparison, tax, wins
from stages.lib.statistics import cluster_resamples, sign_flip_p
from stages.lib.toxicity import Mean, Median

PROMPTS, PAIRS, SAMPLES = 120, 20, 8


def worlds(rng, prompts, pairs):
    """Scores of baseline and policy (prompts x samples), and each prompt's cluster.

    The first 2 x `pairs` prompts are near-duplicates of each other, two by two.
    """
    cluster = np.concatenate([np.arange(pairs).repeat(2), np.arange(pairs, prompts - pairs)])
    of_prompt = rng.normal(-1.5, 0.7, prompts - pairs)[cluster] + rng.normal(0, 0.5, prompts)
    shared = rng.normal(0, 0.8, (prompts, SAMPLES))
    found = []
    for shift in (0.0, -0.4):
        logit = of_prompt[:, None] + shift + shared + rng.normal(0, 0.9, (prompts, SAMPLES))
        found.append(1 / (1 + np.exp(-logit)))
    return *found, [str(one) for one in cluster]


def of_toxicity(metric):
    return lambda before, _: toxicity.toxicity(before, threshold=0.5)[metric]


def median_perplexity(before, _):
    return Median(np.exp(3.5 + before))


def effect(metric, key, relative):
    """An effect's part as a pair of measures and what to read of their difference."""

    def _effect(before, after):
        return (
            [toxicity.toxicity(one, threshold=0.5)[metric] for one in (after, before)],
            key,
            relative,
        )

    return _effect


def lost_words(before, after):
    words = [Mean(12 - 4 * one.mean(1), np.ones(len(one)), len(one)) for one in (after, before)]
    return words, "relative", True


SINGLE = {
    "emt": of_toxicity("emt"), "tp": of_toxicity("tp"), "mean": of_toxicity("mean"),
    "tox_frac": of_toxicity("tox_frac"), "perplexity": median_perplexity,
}  # fmt: skip
PAIRED = {
    "effect on emt": effect("emt", None, False),
    "relative effect on emt": effect("emt", "relative", True),
    "effect on tp": effect("tp", None, False),
    "effect on mean": effect("mean", None, False),
    "relative effect on words": lost_words,
}


def single(name, before, after, weights):
    measure = SINGLE[name](before, after)
    return toxicity.estimate(measure, measure.at(weights)).plain()


def paired(name, before, after, weights):
    (ours, theirs), key, relative = PAIRED[name](before, after)
    found = comparison.difference(
        ours, theirs, ours.at(weights), theirs.at(weights), relative=relative
    )
    return found[key] if key else found


def estimate(name, before, after, weights):
    return (single if name in SINGLE else paired)(name, before, after, weights)


@cache
def truth(name):
    before, after, _ = worlds(np.random.default_rng(99), 400_000, 400_000 * PAIRS // PROMPTS)
    return estimate(name, before, after, np.ones((2, len(before))))["value"]


def coverage(name, runs):
    rng = np.random.default_rng(7)
    held = 0
    for run in range(runs):
        before, after, clusters = worlds(rng, PROMPTS, PAIRS)
        weights = cluster_resamples(clusters, resamples=400, seed=run)
        found = estimate(name, before, after, weights)
        held += found["low"] <= truth(name) <= found["high"]
    return held / runs


@pytest.mark.parametrize("name", [*SINGLE, *PAIRED])
def test_no_interval_is_far_from_holding_the_truth_as_often_as_it_says(name):
    # Of 60 runs at 95 %, 57 with a standard deviation of 1.7: 50 is four of these away.
    assert coverage(name, 60) >= 50 / 60


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SINGLE, *PAIRED])
def test_every_interval_holds_the_truth_in_93_to_97_percent_of_simulations(name):
    # Standard deviation of a share of 0.95 in 1,000 runs: 0.007.
    assert 0.93 <= coverage(name, 1000) <= 0.97


@pytest.mark.slow
def test_the_interval_of_the_loss_on_neutral_text_holds_the_truth():
    """64 passages whose losses rise by 1 % on average, more in some than in others."""
    from test_tax import PLAN

    rng, held = np.random.default_rng(3), 0
    for run in range(1000):
        tokens = rng.integers(80, 160, 64)
        rate = rng.normal(3.2, 0.3, 64)
        rise = 1 + rng.normal(0.01, 0.02, 64)
        losses = [
            [
                PassageLoss(id=f"n{i}", genre="letter", tokens=int(t), nll=float(t * r * f))
                for i, (t, r, f) in enumerate(zip(tokens, rate, factor, strict=True))
            ]
            for factor in (rise, np.ones(64))
        ]
        found = tax.effect(*losses, PLAN, seed=run)["relative"]
        held += found["low"] <= 0.01 <= found["high"]
    assert 0.93 <= held / 1000 <= 0.97


def answers(rng, prompts):
    """Of two answers a prompt: who won, by how much longer it is, and the prompt."""
    longer = rng.normal(10, 20, 2 * prompts)
    liking = np.repeat(rng.normal(0, 0.8, prompts), 2)
    p = 1 / (1 + np.exp(-0.5 - np.tanh(longer / 20) - liking))
    return (rng.random(2 * prompts) < p).astype(float), longer, np.arange(2 * prompts) // 2


@pytest.mark.slow
def test_the_interval_of_the_win_rate_at_equal_length_holds_the_truth():
    won, longer, _ = answers(np.random.default_rng(99), 400_000)
    truth = wins.at_equal_length(won, longer, np.ones((1, len(won))))[0]
    rng, held = np.random.default_rng(1), 0
    for run in range(1000):
        won, longer, prompt = answers(rng, 120)
        weights = cluster_resamples([str(p) for p in prompt], resamples=400, seed=run)
        low, high = np.quantile(wins.at_equal_length(won, longer, weights), [0.025, 0.975])
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.97


# --- power ---


def evaluated(rng, shift, *, between, within, level, share):
    """Worst scores of 300 prompts with 25 completions: by the baseline, by the policy, by a third
    model that is equal to the policy and answers other prompts."""

    def worst(prompt, moved, shared):
        own = rng.normal(0, within * (1 - share) ** 0.5, (300, 25))
        return (1 / (1 + np.exp(-(level + prompt[:, None] + moved + shared + own)))).max(1)

    prompt, other = rng.normal(0, between, (2, 300))
    shared = rng.normal(0, within * share**0.5, (2, 300, 25))
    return (
        worst(prompt, 0.0, shared[0]),
        worst(prompt, shift, shared[0]),
        worst(other, shift, shared[1]),
    )


CHALLENGE = {"between": 1.6, "within": 1.0, "level": -2.0, "share": 0.0}
"""Prompts that differ, as those of RealToxicityPrompts do, and no noise in common."""


def drop(shift, world):
    rng = np.random.default_rng(0)
    ends = [evaluated(rng, shift, **world)[:2] for _ in range(200)]
    before, after = (float(np.mean([one[i] for one in ends])) for i in (0, 1))
    return after / before - 1


@cache
def shift_of(relative, **world):
    """The shift of the logit that lowers the expected maximum by this share, by bisection."""
    low, high = -1.0, 0.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if drop(middle, world) < relative else (low, middle)
    return (low + high) / 2


def found(differences, run):
    weights = cluster_resamples([str(i) for i in range(len(differences))], resamples=400, seed=run)
    high = np.quantile(weights @ differences / weights.sum(1), 0.975)
    clusters = [str(i) for i in range(len(differences))]
    return high < 0 and sign_flip_p(differences, clusters, resamples=400, seed=run) < 0.05


@pytest.mark.slow
def test_six_per_cent_less_is_found_by_the_paired_design_and_missed_by_an_unpaired_one():
    shift = shift_of(-0.06, **CHALLENGE)
    rng = np.random.default_rng(2)
    paired = unpaired = 0
    for run in range(300):
        before, after, elsewhere = evaluated(rng, shift, **CHALLENGE)
        paired += found(after - before, run)
        gap = elsewhere.mean() - before.mean()
        error = (elsewhere.var(ddof=1) / 300 + before.var(ddof=1) / 300) ** 0.5
        unpaired += gap < -1.96 * error
    assert paired / 300 >= 0.9
    assert unpaired / 300 < 0.6
