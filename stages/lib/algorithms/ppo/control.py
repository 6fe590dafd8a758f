"""What steers a run from outside the loss: the KL coefficient, and when to stop.

Stops look at validation prompts, the reward model and the monitor. The scorer of the report's
verdict takes no part, or it would not be independent.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.runtime.schema import Strict

Rule = Literal["target", "max_steps", "kl_ceiling", "reward_hacking"]


class KlControl(Strict):
    """`kl` of a PPO entry of params.yaml: what a nat from the reference costs."""

    beta: Annotated[float, Field(ge=0)]
    """Reward a nat at the first step, in standard deviations of the reward model."""
    target: Annotated[float, Field(gt=0)] | None
    """Nats a completion that beta is steered to; null keeps beta."""
    horizon: Annotated[int, Field(ge=1)]
    """Completions over which beta moves by a factor of e at most, at a fifth of an error."""


def adapted(beta: float, kl: float, count: int, control: KlControl) -> float:
    """Return the next KL coefficient, section 2.2 of Ziegler et al. 2019 (arXiv:1909.08593).

        beta (1 + clip(kl / target - 1, -0.2, 0.2) count / horizon)

    Args:
        beta: the present one.
        kl: of the last step, nats a completion.
        count: completions of that step.
        control: its target and horizon.
    """
    if control.target is None:
        return beta
    error = min(max(kl / control.target - 1, -0.2), 0.2)
    return beta * (1 + error * count / control.horizon)


class Stops(Strict):
    """`stop` of a PPO entry of params.yaml: every rule that can end a training."""

    max_steps: Annotated[int, Field(ge=1)]
    """Rollouts; the learning rate reaches 0 here."""
    target: float | None
    """Validation score, in standard deviations of the reward model; null never stops at one."""
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Weight of the past in the exponential mean of validation scores; 0 takes the last alone."""
    patience: Annotated[int, Field(ge=1)]
    """Evaluations in a row whose mean must reach the target."""
    kl_ceiling: Annotated[float, Field(gt=0)]
    """Nats a completion beyond which a rollout ends the training."""


@dataclass(frozen=True, slots=True)
class Look:
    """Scores of the same validation prompts in the same order, one number a prompt."""

    proxy: Sequence[float]
    """Of the reward model that is trained against."""
    monitor: Sequence[float] | None
    """Of one that learned from other prompts; None where there is none."""


@dataclass(slots=True)
class Watch:
    """Decides when to stop, from what it has seen so far. Plain data, so that a run resumes."""

    smooth: float | None = None
    reached: int = 0
    """Evaluations in a row at or over the target."""
    suspicious: int = 0
    """Evaluations in a row in which proxy and monitor parted."""
    best: dict[str, list[float]] = field(default_factory=dict)
    """Proxy and monitor scores of the evaluation whose monitor was best."""

    def evaluated(self, look: Look, stops: Stops) -> Rule | None:
        """Take in an evaluation; return the rule that it fires."""
        score = statistics.fmean(look.proxy)
        past = score if self.smooth is None else self.smooth
        self.smooth = stops.smoothing * past + (1 - stops.smoothing) * score
        at_target = stops.target is not None and self.smooth >= stops.target
        self.reached = self.reached + 1 if at_target else 0
        self._compare(look)
        if self.suspicious >= 2:
            return "reward_hacking"
        return "target" if self.reached >= stops.patience else None

    def _compare(self, look: Look) -> None:
        """Count evaluations in which the proxy rose while the monitor fell beyond its interval."""
        if look.monitor is None:
            return
        if not self.best or statistics.fmean(look.monitor) > statistics.fmean(self.best["monitor"]):
            self.best = {"proxy": list(look.proxy), "monitor": list(look.monitor)}
            self.suspicious = 0
            return
        rose = statistics.fmean(look.proxy) > statistics.fmean(self.best["proxy"])
        fell = upper_bound(look.monitor, self.best["monitor"]) < 0
        self.suspicious = self.suspicious + 1 if rose and fell else 0


def rolled_out(step: int, kl: float, stops: Stops) -> Rule | None:
    """Return the rule that a rollout fires: too far from the reference, or the last step.

    Args:
        step: rollouts so far, this one included.
        kl: mean of this rollout, nats a completion.
        stops: the rules.
    """
    if kl > stops.kl_ceiling:
        return "kl_ceiling"
    return "max_steps" if step >= stops.max_steps else None


def upper_bound(now: Sequence[float], before: Sequence[float]) -> float:
    """Return the upper end of the 95 % interval of the mean paired difference."""
    differences = [a - b for a, b in zip(now, before, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences) + 1.96 * error
