"""Win rates against the baseline, plain and at equal length."""

import numpy as np
import pytest
from synthetic_evaluations import REPORT, row

from stages.lib.records import Evaluated, Leaning
from stages.lib.reporting import wins
from stages.lib.reporting.comparison import Plan
from stages.lib.runtime.schema import check

PLAN = check(
    {k: v for k, v in REPORT.items() if k not in ("samples", "words", "explore")},
    Plan,
    "report",
    ValueError,
)


def answers(rewards, texts=None, **changed):
    texts = texts or ["as long"] * len(rewards)
    return [
        Evaluated(**row(f"p{n // 2}", n % 2, reward=reward, text=text, **changed))
        for n, (reward, text) in enumerate(zip(rewards, texts, strict=True))
    ]


def against(policy, baseline):
    return wins.rates(wins.by_reward(policy, baseline, PLAN), PLAN, seed=1)


def test_the_plain_rate_equals_the_value_worked_by_hand():
    # won, lost, tied, won: (1 + 0 + 0.5 + 1) / 4 = 0.625
    ours, theirs = answers([2.0, 0.0, 1.0, 3.0]), answers([1.0, 1.0, 1.0, 1.0])
    found = against(ours, theirs)["win_rate"]
    assert found["value"] == pytest.approx(0.625)
    assert found["n"] == 4
    assert found["low"] <= 0.625 <= found["high"]
    turned = against(theirs, ours)["win_rate"]
    assert turned["value"] == pytest.approx(0.375)


def test_only_answers_of_the_primary_set_that_both_were_scored_for_count():
    ours = [*answers([2.0, None]), *answers([0.0], set="neutral")]
    theirs = answers([1.0, 5.0])
    assert against(ours, theirs)["win_rate"]["n"] == 1
    assert against(answers([None]), theirs) == {}


def controlled(won, longer):
    return wins.at_equal_length(won, longer, np.ones((1, len(won))))[0]


def test_at_equal_lengths_the_controlled_rate_is_the_plain_one():
    won = np.array([1.0] * 70 + [0.0] * 30)
    assert controlled(won, np.zeros(100)) == pytest.approx(0.7, abs=0.002)


def test_who_wins_always_has_a_rate_near_one_and_not_beyond():
    assert 0.98 < controlled(np.ones(100), np.zeros(100)) < 1


def test_wins_that_length_explains_are_taken_out():
    rng = np.random.default_rng(0)
    longer = rng.normal(40, 30, 4000)
    won = (rng.random(4000) < 1 / (1 + np.exp(-1.5 * np.tanh(longer / longer.std())))).astype(float)
    assert won.mean() > 0.65
    assert controlled(won, longer) == pytest.approx(0.5, abs=0.04)
    # and a policy that is better at every length stays so: sigmoid(0.8) = 0.69
    p = 1 / (1 + np.exp(-0.8 - 1.5 * np.tanh(longer / longer.std())))
    better = (rng.random(4000) < p).astype(float)
    assert controlled(better, longer) == pytest.approx(0.69, abs=0.04)


def test_leanings_are_counted_with_ties_as_halves():
    # 3, 1, 0, -1: two and a half of four
    some = [
        Leaning(pair_id=f"p{i}", prompt_id=f"q{i}", cluster=f"q{i}", margin=margin)
        for i, margin in enumerate((3.0, 1.0, 0.0, -1.0))
    ]
    found = wins.implicit(some, PLAN, seed=1)["implicit_accuracy"]
    assert found["value"] == 0.625
    assert found["n"] == 4
    assert 0 <= found["low"] < 0.625 < found["high"] <= 1
    assert wins.implicit([], PLAN, seed=1) == {}


def test_a_judges_rate_is_the_mean_of_its_probabilities():
    # .9, .5 and .4 over three answers: 1.8 / 3 = 0.6
    ours, theirs = answers([None] * 4), answers([None] * 4)
    better = {("toxic", "p0", 0): 0.9, ("toxic", "p0", 1): 0.5, ("toxic", "p1", 0): 0.4}
    couples = wins.by_judge(ours, theirs, better)
    found = wins.rates(couples, PLAN, seed=1)["win_rate"]
    assert found["value"] == pytest.approx(0.6)
    assert found["n"] == 3  # the fourth answer was not compared
    assert found["low"] <= 0.6 <= found["high"]
    turned = wins.by_judge(theirs, ours, {key: 1 - p for key, p in better.items()})
    assert wins.rates(turned, PLAN, seed=1)["win_rate"]["value"] == pytest.approx(0.4)


def test_a_judge_that_likes_length_alone_has_a_controlled_rate_of_one_half():
    rng = np.random.default_rng(0)
    longer = rng.normal(40, 30, 4000)
    p = 1 / (1 + np.exp(-1.5 * np.tanh(longer / longer.std())))
    assert p.mean() > 0.65
    assert controlled(p, longer) == pytest.approx(0.5, abs=0.02)
