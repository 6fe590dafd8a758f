"""Best of n: chances worked by hand, laws, and what is refused."""

import math
from itertools import combinations

import numpy as np
import pytest
from synthetic_evaluations import REPORT, policy_rows, row

from stages.lib import toxicity
from stages.lib.records import Evaluated
from stages.lib.reporting import controls
from stages.lib.reporting.comparison import Plan, Scoring
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check

PLAN = check(
    {k: v for k, v in REPORT.items() if k not in ("samples", "words", "explore")},
    Plan,
    "report",
    ValueError,
)


def answer(prompt, index, harm, reward=None, monitor=None, words=0.0):
    scores = {"profanity_check": harm, "vader_negative": 0.0, "words": words}
    return Evaluated(**row(prompt, index, scores=scores, reward=reward, monitor=monitor))


def chosen(rows, **changed):
    return controls.best_of_reward(rows, "profanity_check", PLAN, **{"seed": 1, **changed})


def test_the_bound_on_the_distance_equals_the_value_worked_by_hand():
    # log 2 - 1/2 = .693 - .5; log 4 - 3/4 = 1.386 - .75
    assert controls.kl_bound(1) == 0
    assert controls.kl_bound(2) == pytest.approx(0.1931, abs=1e-4)
    assert controls.kl_bound(4) == pytest.approx(0.6363, abs=1e-4)


@pytest.mark.parametrize(
    ("probabilities", "n"), [([0.5, 0.3, 0.2], 2), ([0.25] * 4, 4), ([0.01] * 100, 4)]
)
def test_no_choice_of_the_best_of_n_is_further_than_the_bound(probabilities, n):
    # answers in order of reward: the best of n is the i-th with F(i)^n - F(i-1)^n
    p = np.array(probabilities)
    upto = np.cumsum(p)
    q = upto**n - (upto - p) ** n
    kl = float((q * np.log(q / p)).sum())
    assert kl < controls.kl_bound(n)
    if len(p) == 100:  # hardly a tie: the bound is nearly reached
        assert kl == pytest.approx(controls.kl_bound(n), rel=0.05)


def test_chances_equal_the_values_worked_by_hand():
    # of the 6 pairs of four answers, the best is the third in 2 and the fourth in 3
    four = controls.chances(np.array([[0.3, 0.1, 0.9, 0.5]]), 2)
    assert four[0].tolist() == pytest.approx([1 / 6, 0, 3 / 6, 2 / 6])
    # two answers tie below the third: they share the one pair of three that lacks it
    tied = controls.chances(np.array([[1.0, 1.0, 2.0]]), 2)
    assert tied[0].tolist() == pytest.approx([1 / 6, 1 / 6, 2 / 3])


def test_chances_are_those_of_every_subset_and_sum_to_one():
    liked = np.random.default_rng(0).integers(0, 4, size=(5, 6)).astype(float)  # with ties
    for n in range(1, 7):
        expected = np.zeros_like(liked)
        subsets = list(combinations(range(6), n))
        for i, own in enumerate(liked):
            for subset in subsets:
                best = [k for k in subset if own[k] == max(own[list(subset)])]
                # sharing within a subset and over all subsets is the same, by symmetry
                expected[i, best] += 1 / len(best) / len(subsets)
        found = controls.chances(liked, n)
        assert found == pytest.approx(expected)
        assert found.sum(1) == pytest.approx(np.ones(5))


@pytest.mark.parametrize("n", [0, 3])
def test_more_answers_than_there_are_cannot_be_chosen_among(n):
    with pytest.raises(ValueError, match=f"the best of {n} cannot be chosen among 2 answers"):
        controls.chances(np.zeros((1, 2)), n)


def test_numbers_double_up_to_all_answers():
    assert [controls.sizes(k) for k in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]


def test_the_best_of_several_by_a_scorer_equals_the_value_worked_by_hand():
    # p0: the scorer likes the second (0 < 2), whose independent score is .3; p1: both tie at 0,
    # so they share: (.2 + .6) / 2 = .4; mean .35
    own = [answer("p0", 0, 0.1, words=2.0), answer("p0", 1, 0.3), answer("p1", 0, 0.2)]
    own.append(answer("p1", 1, 0.6))
    found = controls.best_of(toxicity.by_prompt(own), "words", "profanity_check")
    assert found.at(np.ones((1, 2)))[0] == pytest.approx(0.35)


def test_the_best_by_reward_equals_the_values_worked_by_hand():
    # p0: rewards 1, 3, 2 of harm .9, .3, .6; the best of 2 is the second in two pairs of three and
    # the third in one: reward 8/3, harm .4, monitor 20/3; of all 3: reward 3, harm .3, monitor 10.
    # p1: all tie, so nothing is chosen: reward 2, harm .5, monitor 0.
    rows = [
        *(answer("p0", k, harm, reward, 10 * (k == 1))
          for k, (harm, reward) in enumerate([(0.9, 1.0), (0.3, 3.0), (0.6, 2.0)])),
        *(answer("p1", k, harm, 2.0, 0.0) for k, harm in enumerate([0.2, 0.5, 0.8])),
        answer("p0", 3, 0.0),  # not scored by the reward model: no choice
        answer("p1", 3, 0.0),
    ]  # fmt: skip
    found = chosen(rows)
    assert list(found) == ["1", "2", "3"]
    values = {
        n: [own[name]["value"] for name in ("proxy", "harm", "monitor")] for n, own in found.items()
    }
    assert values["1"] == pytest.approx([2.0, (0.6 + 0.5) / 2, 10 / 6])
    assert values["2"] == pytest.approx([(8 / 3 + 2) / 2, (0.4 + 0.5) / 2, 10 / 3])
    assert values["3"] == pytest.approx([2.5, (0.3 + 0.5) / 2, 5.0])
    assert found["3"]["change"]["harm"]["value"] == pytest.approx(0.4 - 0.55)
    assert found["2"]["kl"] == pytest.approx(0.1931, abs=1e-4)
    assert found["2"]["distance"] ** 2 == pytest.approx(found["2"]["kl"])


@pytest.fixture(scope="module")
def scored():
    """Answers of which the reward model scored eight a prompt."""
    rng = np.random.default_rng(3)
    return [
        answer(f"p{p}", k, float(1 / (1 + np.exp(r))), float(r), float(r + rng.normal()))
        for p in range(30)
        for k, r in enumerate(rng.normal(size=8))
    ]


def test_one_of_one_is_the_mean_and_has_not_changed(scored):
    first = chosen(scored)["1"]
    assert first["proxy"]["value"] == pytest.approx(np.mean([one.reward for one in scored]))
    assert first["monitor"]["value"] == pytest.approx(np.mean([one.monitor for one in scored]))
    assert (first["kl"], first["distance"]) == (0, 0)
    for own in first["change"].values():
        assert [own[key] for key in ("value", "low", "high")] == pytest.approx([0, 0, 0])


def test_reward_rises_with_n_and_every_value_lies_in_its_interval(scored):
    found = list(chosen(scored).values())
    rewards = [own["proxy"]["value"] for own in found]
    assert rewards == sorted(rewards)
    assert len(set(rewards)) == 4
    for own in found:
        for name in ("proxy", "monitor", "harm"):
            assert own[name]["low"] < own[name]["value"] < own[name]["high"]
            assert own[name]["n"] == 30


def test_the_best_of_all_is_the_answer_with_the_highest_reward(scored):
    best = [max(own, key=lambda one: one.reward) for own in toxicity.by_prompt(scored)]
    last = chosen(scored)["8"]
    assert last["proxy"]["value"] == pytest.approx(np.mean([one.reward for one in best]))
    assert last["monitor"]["value"] == pytest.approx(np.mean([one.monitor for one in best]))


def test_the_order_of_answers_plays_no_part(scored):
    back = [one.model_copy(update={"index": 7 - one.index}) for one in scored]
    one, other = chosen(scored), chosen(back)
    for n in one:
        for name in ("proxy", "monitor", "harm"):
            assert one[n][name] == pytest.approx(other[n][name])


def test_intervals_resample_clusters_not_prompts():
    # six prompts in two clusters that differ: a resample has one cluster, the other, or both
    rows = [
        Evaluated(**row(f"p{p}", k, cluster=f"c{p % 2}", reward=float(p % 2), monitor=0.0))
        for p in range(6)
        for k in range(2)
    ]
    proxy = chosen(rows)["2"]["proxy"]
    assert (proxy["low"], proxy["value"], proxy["high"]) == (0.0, 0.5, 1.0)


def test_without_rewards_there_is_no_choice():
    assert chosen([answer("p0", 0, 0.1), answer("p1", 0, 0.2)]) == {}


def test_without_a_monitor_the_rest_is_measured():
    found = chosen([answer("p0", k, 0.1, reward=float(k)) for k in range(2)])
    assert "monitor" not in found["2"]
    assert found["2"]["proxy"]["value"] == 1


def test_prompts_of_which_not_as_many_answers_have_a_reward_are_refused():
    whole = [answer("p0", k, 0.1, reward=float(k)) for k in range(2)]
    with pytest.raises(RecordError, match="no answer to prompt p1, but 2 to others of its set"):
        chosen([*whole, answer("p1", 0, 0.1), answer("p1", 1, 0.1)])
    more = [answer("p2", k, 0.1, reward=float(k)) for k in range(2)]
    with pytest.raises(RecordError, match="prompt p1 has 1 completions where others of its set"):
        chosen([*whole, *more, answer("p1", 0, 0.1, reward=1.0), answer("p1", 1, 0.1)])


def test_both_controls_are_of_the_primary_set_alone():
    rows = [Evaluated(**one) for one in policy_rows("baseline", prompts=12)]
    scorers = Scoring("profanity_check", ["vader_negative", "words"], 0.5)
    found = controls.found(rows, scorers, PLAN, seed=1)
    assert found["best_of"].keys() == {"vader_negative", "words"}
    assert found["best_of"]["words"]["n"] == found["best_of_reward"]["2"]["harm"]["n"] == 12
    main = [one for one in rows if one.set == "toxic"]
    assert found == controls.found(main, scorers, PLAN, seed=1)
    assert math.isclose(found["best_of_reward"]["2"]["kl"], math.log(2) - 0.5)
