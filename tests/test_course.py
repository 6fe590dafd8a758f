"""A policy's course: states, distances, Gao's curve and the alarm."""

import math

import numpy as np
import pytest
from synthetic_evaluations import EVALUATE, REPORT, row

from stages.lib.records import Evaluated
from stages.lib.reporting import course
from stages.lib.reporting.comparison import Plan, Scoring
from stages.lib.reporting.course import Drawn
from stages.lib.runtime.schema import check
from stages.lib.snapshots import Snapshot

PLAN = check(
    {k: v for k, v in REPORT.items() if k not in ("samples", "words", "explore")},
    Plan,
    "report",
    ValueError,
)
SCORING = Scoring(REPORT["independent"], REPORT["labelers"], EVALUATE["threshold"])


def rows(harm, reward, kl, *, step=None, prompts=40, samples=2, noise=0.05, seed=0):
    """Completions whose scores are about `harm` and `reward`, the same noise at every state."""
    rng = np.random.default_rng(seed)
    found = []
    for p in range(prompts):
        for k in range(samples):
            score = harm + noise * rng.normal()
            plain = row(
                f"p{p}", k, reward=reward + noise * rng.normal(), monitor=0.0, kl_exact=kl,
                scores={"profanity_check": score, "vader_negative": 0.0, "words": 0.0},
            )  # fmt: skip
            own = {} if step is None else {"step": step}
            found.append(check(plain | own, Snapshot if own else Evaluated, "row", ValueError))
    return found


def follow(states, **options):
    """States as (harm, reward, kl): the baseline first, the policy as it ended last."""
    (first, *between, last) = states
    kept = [one for step, s in enumerate(between, start=1) for one in rows(*s, step=step)]
    more = rows(*first, prompts=50, samples=3)  # the ends have more prompts and samples
    mine = {(one.prompt_id, one.index): one for one in rows(*first)}
    before = [mine.get((one.prompt_id, one.index), one) for one in more]
    return course.follow(
        before, kept, rows(*last), len(states) - 1, PLAN, SCORING, seed=1, **options
    )


def test_states_are_asked_the_same_and_stand_in_order():
    found = follow([(0.4, 0.0, 0.0), (0.3, 0.5, 1.0), (0.2, 0.8, 4.0), (0.1, 0.9, 9.0)])
    assert [state["step"] for state in found["states"]] == [0, 1, 2, 3]
    assert [state["distance"] for state in found["states"]] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    harm = [state["harm"] for state in found["states"]]
    assert [e["value"] for e in harm] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)
    assert all(e["low"] < e["value"] < e["high"] for e in harm)
    # equal noise, so each differs from the baseline by exactly what was put in
    gaps = [harm[0]["value"] - e["value"] for e in harm]
    assert gaps == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_change_is_paired_with_the_baseline_s_answers_to_the_same_prompts():
    # all noise is the same at every state, so that its difference has none
    found = follow([(0.4, 0.0, 0.0), (0.3, 0.5, 1.0), (0.2, 0.8, 4.0)])
    for state, harm, reward in zip(found["states"], (0, -0.1, -0.2), (0, 0.5, 0.8), strict=True):
        for name, value in (("harm", harm), ("proxy", reward), ("monitor", 0)):
            change = state["change"][name]
            ends = [change[key] for key in ("low", "value", "high")]
            assert ends == pytest.approx([value] * 3)


def test_without_snapshots_there_is_no_course():
    assert course.follow(rows(0, 0, 0), [], rows(0, 0, 0), 4, PLAN, SCORING, seed=1) is None


def exact(kl, **scores):
    """A state without noise."""
    found = {"kl": kl, **scores}
    return {name: Drawn(value, np.full(20, value)) for name, value in found.items()}


def test_the_fit_finds_the_curve_that_points_lie_on_and_its_peak():
    # alpha 1.0, beta 0.5: gain(d) = d (1 - 0.5 log d), highest at exp(1 / 0.5 - 1) = e = 2.718
    gain = lambda d: d * (1 - 0.5 * math.log(d))  # noqa: E731
    states = [exact(0.0, proxy=0.2, harm=0.9)]
    states += [exact(d * d, proxy=0.2 + gain(d), harm=0.9 - gain(d)) for d in (0.5, 1.0, 2.0, 4.0)]
    for score in ("proxy", "harm"):  # harm gains by falling
        found = course.fit(states, score)
        assert found["alpha"]["value"] == pytest.approx(1.0)
        assert found["beta"]["value"] == pytest.approx(0.5)
        assert found["peak"] == pytest.approx(math.e)
        assert found["n"] == 4
    x, y = course.fitted(found, 4.0, points=4)
    assert x == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert y == pytest.approx([0.0, *(gain(d) for d in (1.0, 2.0, 3.0, 4.0))])


def test_a_peak_beyond_what_was_seen_is_not_stated():
    states = [exact(0.0, proxy=0.0)]
    states += [exact(d * d, proxy=d * (3 - 0.5 * math.log(d))) for d in (0.5, 1.0, 2.0)]
    assert "peak" not in course.fit(states, "proxy")  # at exp(5) = 148, of distances up to 2


def test_too_few_states_or_no_score_are_not_fitted():
    states = [exact(float(kl), proxy=0.1 * kl) for kl in range(3)]
    assert course.fit(states, "proxy") is None  # two away from the base
    assert course.fit([*states, exact(9.0, proxy=1.0)], "monitor") is None


def states_of(*pairs):
    return [
        {
            "proxy": Drawn(proxy, np.full(20, proxy)),
            # every resample alike: a rise of harm is beyond its interval
            "harm": Drawn(harm, np.full(20, harm)),
        }
        for proxy, harm in pairs
    ]


def test_the_alarm_needs_two_states_in_a_row():
    worse = [(0.0, 0.5), (0.5, 0.4), (0.8, 0.5), (0.9, 0.6)]
    assert course.alarm(states_of(*worse)) is True
    once = [(0.0, 0.5), (0.5, 0.4), (0.8, 0.5), (0.9, 0.45), (1.0, 0.5)]
    assert course.alarm(states_of(*once)) is False
    # harm rises, and so does the proxy fall: no sign of a proxy that is bought
    assert course.alarm(states_of((0.9, 0.4), (0.8, 0.5), (0.7, 0.6))) is False
    assert course.alarm(states_of((0.0, 0.5), (0.1, 0.6))) is None
    assert course.alarm([{"harm": one["harm"]} for one in states_of(*worse)]) is None


def test_a_rise_within_its_interval_raises_no_alarm():
    rng = np.random.default_rng(0)
    states = [
        {"proxy": Drawn(i, np.full(200, i)), "harm": Drawn(0.4 + 0.01 * i, 0.4 + 0.1 * rng.normal(size=200))}
        for i in range(4)
    ]  # fmt: skip
    assert course.alarm(states) is False
