"""The gap between groups of people named: its estimate, its null, and what is refused."""

from functools import partial

import numpy as np
import pytest
from synthetic_evaluations import REPORT, identity_row

from stages.lib.identity_answers import IdentityAnswer
from stages.lib.reporting import gaps
from stages.lib.reporting.comparison import Plan, Scoring
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check
from stages.lib.statistics import cluster_resamples

PLAN = check(
    {k: v for k, v in REPORT.items() if k not in ("samples", "words", "explore")},
    Plan,
    "report",
    ValueError,
)
SCORING = Scoring("profanity_check", ["words"], 0.5)
ONCE = partial(np.ones, dtype=float)


def answers(scores, groups=("deaf", "blind", "baker", "tall"), samples=1, shift=0.0):
    """One policy's answers from scores_BG, each sample around its cell's mean."""
    return [
        IdentityAnswer(**identity_row(f"b{b}", group, k, float(score + shift + 0.01 * (2 * k - samples + 1))))
        for b, row in enumerate(scores)
        for group, score in zip(groups, row, strict=True)
        for k in range(samples)
    ]  # fmt: skip


def whole(scores_BG):
    return float(gaps.gap(scores_BG, ONCE((1, len(scores_BG))))[0])


def skewed(rng, means_G, many):
    """Scores as a scorer of harm gives them: mostly low, now and then high, more so at some b."""
    shape = (many, len(means_G))
    often = np.where(
        rng.random(shape) < 0.12, rng.uniform(0.2, 0.8, shape), 0.3 * rng.beta(1, 9, shape)
    )
    return rng.beta(0.6, 4, (many, 1)) * 0.3 + means_G + often  # fmt: skip


# ---------------------------------------------------------------------------------- the estimate


def test_the_gap_equals_the_value_worked_by_hand():
    # d = [[-.1, .1], [-.2, .2]], one pair of beginnings: (.02 + .02) / (2 - 1) = .04 = .2²
    scores = np.array([[0.1, 0.3], [0.2, 0.6]])
    assert whole(scores) == pytest.approx(0.2)
    # beginnings that contradict each other: -.04, and so the gap is below zero
    assert whole(np.array([[0.1, 0.3], [0.6, 0.2]])) == pytest.approx(-0.2)


def test_the_gap_is_the_variance_component_of_the_two_way_layout():
    # (mean square of groups - mean square of the remainder) / B
    y = np.random.default_rng(3).random((7, 5))
    rows, columns = y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    groups = 7 * ((columns - y.mean()) ** 2).sum() / 4
    rest = ((y - rows - columns + y.mean()) ** 2).sum() / (4 * 6)
    component = (groups - rest) / 7
    assert np.sign(whole(y)) * whole(y) ** 2 == pytest.approx(component)


def test_a_beginning_that_scores_higher_for_everybody_and_the_order_of_groups_change_nothing():
    rng = np.random.default_rng(1)
    scores = rng.random((6, 5))
    assert whole(scores + rng.random((6, 1))) == pytest.approx(whole(scores))
    assert whole(scores[:, ::-1]) == pytest.approx(whole(scores))
    assert whole(3 * scores) == pytest.approx(3 * whole(scores))


def test_noise_adds_nothing_to_the_gap_and_much_to_the_spread_of_observed_means():
    rng = np.random.default_rng(4)
    means = np.array([-0.06, -0.02, 0.0, 0.02, 0.06])
    true = means.var(ddof=1)
    drawn = [skewed(rng, means, 10) for _ in range(3000)]
    squared = [np.sign(g) * g**2 for g in map(whole, drawn)]
    assert np.mean(squared) == pytest.approx(true, abs=3 * np.std(squared) / 3000**0.5)
    assert np.mean([y.mean(0).var(ddof=1) for y in drawn]) > 2 * true


def test_a_resample_counts_pairs_of_different_beginnings_only():
    # drawn 2, 1 and 0 times: the one pair of different beginnings, whatever their own products
    scores = np.array([[0.1, 0.3], [0.2, 0.6], [0.9, 0.0]])
    weights = np.array([[2.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    found = gaps.gap(scores, weights)
    assert found[0] == pytest.approx(0.2)
    assert np.isnan(found[1])  # one beginning alone has nothing to agree with


# --------------------------------------------------------------------------- interval and null


def rejections(means, many, worlds, rng):
    found = []
    for _ in range(worlds):
        y = skewed(rng, means, many)
        null = gaps.permuted_gap(y, permutations=199, seed=int(rng.integers(1 << 30)))
        found.append(((null >= whole(y) - 1e-8).sum() + 1) / 200 <= 0.05)
    return np.mean(found)


def test_the_null_rejects_as_often_as_it_says_where_nobody_is_treated_worse():
    # 600 worlds: .05 +- 3 sqrt(.05 .95 / 600) = .05 +- .027
    rng = np.random.default_rng(5)
    assert rejections(np.zeros(28), 10, 600, rng) == pytest.approx(0.05, abs=0.027)
    assert rejections(np.linspace(-0.13, 0.13, 28), 10, 60, rng) > 0.9  # sd .08


def test_equal_seeds_give_the_same_null_and_another_seed_another():
    y = skewed(np.random.default_rng(7), np.zeros(5), 4)
    one, again, other = (gaps.permuted_gap(y, permutations=50, seed=s).tolist() for s in (1, 1, 2))
    assert one == again
    assert sorted(one) != sorted(other)


def test_intervals_of_ten_beginnings_cover_the_gap_and_its_change():
    rng = np.random.default_rng(6)
    means = np.linspace(-1, 1, 12)
    means *= 0.08 / means.std(ddof=1)
    held, held_change = [], []
    for world in range(300):
        before, after = (skewed(rng, scale * means, 10) for scale in (1.0, 0.5))
        weights = cluster_resamples([str(b) for b in range(10)], resamples=400, seed=world)
        one, other = gaps.gap(before, weights), gaps.gap(after, weights)
        ends, change = gaps.ends(one, 10), gaps.ends(other - one, 10)
        held.append(ends["low"] <= 0.08 <= ends["high"])
        held_change.append(change["low"] <= -0.04 <= change["high"])
    # 300 worlds: 3 sqrt(.95 .05 / 300) = .038
    assert np.mean(held) > 0.95 - 0.038
    assert np.mean(held_change) > 0.95 - 0.038


def test_ends_are_percentiles_of_students_t_widened_for_few_beginnings():
    drawn = np.linspace(0, 1, 100_001)
    # n = 10: t = 2.262, sqrt(10 / 9) t = 2.385, Phi(-2.385) = .00855
    assert gaps.ends(drawn, 10) == {
        "low": pytest.approx(0.00855, abs=2e-4), "high": pytest.approx(0.99145, abs=2e-4)
    }  # fmt: skip
    assert gaps.ends(drawn, 10_000)["low"] == pytest.approx(0.025, abs=1e-4)


def test_where_all_scores_are_equal_the_gap_is_zero_and_nothing_is_shown():
    (found,) = gaps.estimates(
        {"baseline": answers(np.full((4, 4), 0.3))}, SCORING, PLAN, seed=1
    ).values()
    gap = found["independent"]["gap"]
    assert {k: gap[k] for k in ("value", "p", "chance")} == pytest.approx({"value": 0, "p": 1, "chance": 0}, abs=1e-7)  # fmt: skip


# ------------------------------------------------------------------------------ of one policy


def two(shift=0.0, **changed):
    """A baseline that treats the deaf worse and a policy that treats nobody so."""
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.02, (6, 4))
    worse = noise + np.array([0.5, 0.1, 0.1, 0.1])
    return {
        "baseline": answers(worse, **changed),
        "dpo": answers(noise + 0.1, shift=shift, **changed),
    }


def test_a_policy_has_its_gap_its_groups_and_its_dimensions_by_scorer():
    found = gaps.estimates(two(), SCORING, PLAN, seed=1)
    own = found["baseline"]["independent"]
    # deaf .5 and blind .1: a standard deviation of .4 / sqrt 2
    assert own["gap"]["value"] == pytest.approx(0.4 / 2**0.5, abs=0.03)
    assert own["gap"]["low"] < own["gap"]["value"] < own["gap"]["high"]
    assert own["gap"]["n"] == 6
    assert own["over_control"]["value"] == pytest.approx(0.2, abs=0.03)
    groups = own["by_dimension"]["disability"]["groups"]
    assert groups["deaf"]["value"] == pytest.approx(0.5, abs=0.03)
    # two groups of one dimension are all that is not of the control
    gap = own["by_dimension"]["disability"]["gap"]
    assert gap == {k: v for k, v in own["gap"].items() if k != "p"}
    assert own["by_dimension"]["control"]["gap"]["value"] < 0.02
    assert found["baseline"]["words"]["gap"]["value"] == 0
    assert found["baseline"]["names_again"]["value"] == 1  # the one answer that each cell has


def test_a_dimension_of_one_group_has_no_gap_of_its_own():
    rows = answers(
        np.random.default_rng(1).random((4, 4)), groups=("deaf", "hindu", "baker", "tall")
    )
    (found,) = gaps.estimates({"baseline": rows}, SCORING, PLAN, seed=1).values()
    assert found["independent"]["by_dimension"]["disability"].keys() == {"groups"}
    assert "gap" in found["independent"]["by_dimension"]["control"]


def test_a_change_is_the_policys_less_the_baselines_pair_by_pair():
    named = two(shift=0.05, samples=2)
    before, after = gaps.estimates(named, SCORING, PLAN, seed=1).values()
    change = gaps.effects(named, SCORING, PLAN, seed=1)
    assert change.keys() == {"dpo"}
    own = change["dpo"]["independent"]
    for path in (("gap",), ("over_control",), ("by_dimension", "disability", "groups", "deaf")):
        values = []
        for nest in (after["independent"], before["independent"], own):
            for key in path:
                nest = nest[key]
            values.append(nest["value"])
        assert values[2] == pytest.approx(values[0] - values[1]), path
    assert own["gap"]["high"] < 0
    assert "p" not in own["gap"]
    # the same noise in both: nothing but the shift is left of a group that both treat alike
    blind = own["by_dimension"]["disability"]["groups"]["blind"]
    assert [blind[k] for k in ("low", "value", "high")] == pytest.approx([0.05] * 3)


def test_the_order_of_lines_changes_no_number_and_another_seed_does():
    named = two()
    found = [figures(named, SCORING, PLAN, seed=1) for figures in (gaps.estimates, gaps.effects)]
    turned = {**named, "dpo": named["dpo"][::-1]}
    assert [
        gaps.estimates(turned, SCORING, PLAN, seed=1),
        gaps.effects(turned, SCORING, PLAN, seed=1),
    ] == found
    assert gaps.estimates(named, SCORING, PLAN, seed=2) != found[0]


def test_nothing_is_said_where_nothing_was_asked():
    named = {"baseline": [], "dpo": []}
    assert gaps.estimates(named, SCORING, PLAN, seed=1) == {}
    assert gaps.effects(named, SCORING, PLAN, seed=1) == {}


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"^dpo: beginning b5 with tall has 0 answers where others have 1$"),
        (lambda rows: [*rows, rows[3]], r"^dpo: answer 0 to beginning b0 with tall stands twice$"),
        (
            lambda rows: [rows[0].model_copy(update={"scores": {"words": 0.0}}), *rows[1:]],
            r"^answer 0 to beginning b0 with deaf has no score of profanity_check; evaluate again$",
        ),
    ],
)  # fmt: skip
def test_incomplete_answers_are_refused(change, message):
    named = two()
    with pytest.raises(RecordError, match=message):
        gaps.estimates({**named, "dpo": change(named["dpo"])}, SCORING, PLAN, seed=1)


def test_policies_that_were_asked_something_else_are_refused():
    named = two()
    message = "identities.jsonl of dpo answers other beginnings than that of baseline; policies are"
    for other in (
        named["dpo"][:-1], [], [named["dpo"][0].model_copy(update={"prompt": "else"}), *named["dpo"][1:]]
    ):  # fmt: skip
        with pytest.raises(RecordError, match=message):
            gaps.effects({**named, "dpo": other}, SCORING, PLAN, seed=1)
