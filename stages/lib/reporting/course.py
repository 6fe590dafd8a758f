"""Follows a policy through its training: what each distance from the base bought.

A reward that keeps rising while a scorer nobody trained on gets worse is over-optimisation (Gao et
al. 2023, arXiv:2210.10760). Their measure of distance is d = sqrt(KL), and they find that under
reinforcement learning a score gains

    gain(d) = d (alpha - beta log d)

which is at its highest where d = exp(alpha / beta - 1).

Shape suffixes: N = prompts, R = resamples, S = states of the policy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from stages.lib import toxicity
from stages.lib.records import Evaluated
from stages.lib.reporting.comparison import Nested, Plan, Scoring, ends
from stages.lib.snapshots import Snapshot
from stages.lib.statistics import Floats, cluster_resamples

SCORES = ("proxy", "monitor", "harm")
"""Of reward model, monitor and independent scorer; of the last, lower is better."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One number under the plain weights and under those of each resample."""

    value: float
    drawn_R: Floats

    def less(self, other: "Drawn") -> "Drawn":
        """The paired difference."""
        return Drawn(self.value - other.value, self.drawn_R - other.drawn_R)

    def plain(self) -> dict[str, float]:
        """The number with its 95 % interval."""
        return {"value": self.value, **ends(self.drawn_R)}


State = Mapping[str, Drawn]
"""`kl` and those of SCORES that were measured."""


def follow(
    before: Sequence[Evaluated],
    snapshots: Sequence[Snapshot],
    after: Sequence[Evaluated],
    steps: int,
    plan: Plan,
    scoring: Scoring,
    *,
    seed: int,
) -> Nested | None:
    """Return a policy's course from the baseline to its end; None where nothing was kept.

    Args:
        before: completions of the baseline.
        snapshots: of the policy on the way: some prompts of the primary set, some samples.
        after: of the policy.
        steps: of its training.
        plan: what was declared.
        scoring: which scores there are.
        seed: of the bootstrap.

    Returns:
        `states`, one a step kept and both ends, with kl, distance and scores, and under `change`
        the scores less those of the baseline, paired by prompt; `fit` of Gao's curve for each
        score; `alarm`, whether the proxy rose while the independent scorer got worse at two kept
        steps in a row.
    """
    if not snapshots:
        return None
    asked = {(row.set, row.prompt_id, row.index) for row in snapshots}
    at: dict[int, list[Evaluated]] = {0: [], steps: []}
    for end, rows in ((0, before), (steps, after)):
        at[end] = [row for row in rows if (row.set, row.prompt_id, row.index) in asked]
    for row in snapshots:
        at.setdefault(row.step, []).append(row)
    answers = {step: toxicity.by_prompt(at[step]) for step in sorted(at)}
    weights_RN = cluster_resamples(
        toxicity.clusters_of(answers[0]), resamples=plan.resamples, seed=seed
    )
    states = {step: _state(own, scoring, weights_RN) for step, own in answers.items()}
    ordered = list(states.values())
    return {
        "states": [_shown(step, state, ordered[0]) for step, state in states.items()],
        "fit": {name: found for name in SCORES if (found := fit(ordered, name))},
        "alarm": alarm(ordered),
    }


def _state(answers: toxicity.Answers, scoring: Scoring, weights_RN: Floats) -> State:
    measures = toxicity.measures(answers, [scoring.independent], **scoring.declared)
    wanted = {
        "kl": measures["cost"]["kl_exact"],
        "harm": measures[scoring.independent]["mean"],
    }
    rewards = measures.get("reward", {})
    wanted |= {
        name: rewards[own]
        for name, own in (("proxy", "reward"), ("monitor", "monitor"))
        if own in rewards
    }
    once = np.ones((1, weights_RN.shape[1]))
    return {
        name: Drawn(float(measure.at(once)[0]), measure.at(weights_RN))
        for name, measure in wanted.items()
    }


def _shown(step: int, state: State, first: State) -> Nested:
    found: Nested = {"step": step, "distance": math.sqrt(max(state["kl"].value, 0.0))}
    change = {name: state[name].less(first[name]).plain() for name in SCORES if name in state}
    return found | {name: own.plain() for name, own in state.items()} | {"change": change}


def fit(states: Sequence[State], score: str) -> Nested | None:
    """Fit Gao's curve by least squares to what a score gained at each distance from the base.

    Args:
        states: the baseline first.
        score: `harm` gains by falling.

    Returns:
        alpha and beta with intervals, `n` states, and `peak`, the distance from which on the gain
        falls, where it lies among those states; None with fewer than three states away from the
        base, or without the score.
    """
    away = [state for state in states[1:] if state["kl"].value > 0]
    if len(away) < 3 or score not in states[0]:
        return None
    sign = -1.0 if score == "harm" else 1.0
    gains = [state[score].less(states[0][score]) for state in away]
    value = _least_squares(
        np.array([[state["kl"].value for state in away]]),
        sign * np.array([[gain.value for gain in gains]]),
    )[0]
    drawn_R2 = _least_squares(
        np.stack([state["kl"].drawn_R for state in away], 1),
        sign * np.stack([gain.drawn_R for gain in gains], 1),
    )
    alpha, beta = (Drawn(float(value[i]), drawn_R2[:, i]).plain() for i in (0, 1))
    found: Nested = {"alpha": alpha, "beta": beta, "n": len(away)}
    farthest = max(state["kl"].value for state in away) ** 0.5
    if value[1] > 0 and value[0] / value[1] - 1 < math.log(farthest):
        found["peak"] = math.exp(value[0] / value[1] - 1)
    return found


def _least_squares(kl_RS: Floats, gain_RS: Floats) -> Floats:
    """Return alpha and beta of each row: the least squares of gain on d and -d log d."""
    d_RS = np.sqrt(np.maximum(kl_RS, 1e-12))
    x_RS, y_RS = d_RS, -d_RS * np.log(d_RS)
    xx, yy, xy = ((a * b).sum(1) for a, b in ((x_RS, x_RS), (y_RS, y_RS), (x_RS, y_RS)))
    gx, gy = ((a * gain_RS).sum(1) for a in (x_RS, y_RS))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([gx * yy - gy * xy, gy * xx - gx * xy], 1) / (xx * yy - xy * xy)[:, None]


def alarm(states: Sequence[State]) -> bool | None:
    """Whether the proxy rose while harm rose beyond its interval, at two states in a row.

    Each state is compared with the one before it, prompt by prompt. None where no state has a
    reward, or there are not two steps between states.
    """
    if len(states) < 3 or any("proxy" not in state for state in states):
        return None
    fired = [
        now["proxy"].value > was["proxy"].value and now["harm"].less(was["harm"]).plain()["low"] > 0
        for was, now in pairwise(states)
    ]
    return any(a and b for a, b in pairwise(fired))


def fitted(found: Mapping[str, Any], most: float, *, points: int = 40) -> tuple[list[float], ...]:
    """Return distances from 0 to `most` and the gain that a fitted curve gives each."""
    d = np.linspace(0, most, points + 1)[1:]
    gain = d * (found["alpha"]["value"] - found["beta"]["value"] * np.log(d))
    return [0.0, *d.tolist()], [0.0, *gain.tolist()]
