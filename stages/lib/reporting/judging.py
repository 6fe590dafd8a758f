"""Says what was shown of a policy: improved, not shown or degraded, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stages.lib.reporting import numerals
from stages.lib.reporting.comparison import NAMES, Nested, Plan
from stages.lib.runtime.files import RecordError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was shown of a policy, in one phrase and its reasons."""

    word: Literal["improved", "not shown", "degraded"]
    reasons: list[str]

    @property
    def number(self) -> int:
        """1, 0 or -1, for a table of metrics."""
        return {"improved": 1, "not shown": 0, "degraded": -1}[self.word]


def judge(estimates: Mapping[str, Nested], name: str, effect: Nested, plan: Plan) -> Verdict:
    """Return the verdict on one policy.

    improved: the interval of the primary effect lies wholly below zero, its adjusted p is below
    alpha, and no cost exceeds its margin. degraded: that interval lies wholly above zero, or the
    whole interval of a cost lies above its margin. not shown: anything else.

    Args:
        estimates: viewed estimates by policy.
        name: of the policy.
        effect: its viewed and adjusted effects.
        plan: what was declared.
    """
    primary = effect["independent"][plan.metric]
    costs = _costs(effect, plan)
    over = [cost for cost in costs if cost.value > cost.margin]
    if primary["low"] > 0 or any(cost.low > cost.margin for cost in costs):
        word = "degraded"
    elif primary["high"] < 0 and primary["holm"] < plan.alpha and not over:
        word = "improved"
    else:
        word = "not shown"
    before, after = (
        estimates[who]["independent"][plan.metric]["value"] for who in (plan.baseline, name)
    )
    reasons = [_primary_reason(primary, before, after, plan), *(cost.reason() for cost in costs)]
    return Verdict(word, reasons)


@dataclass(frozen=True, slots=True)
class _Cost:
    """A cost turned so that more is worse, beside what it may reach."""

    name: str
    kind: numerals.Kind
    value: float
    low: float
    high: float
    margin: float

    def reason(self) -> str:
        ends = {"value": self.value, "low": self.low, "high": self.high}
        found = numerals.interval(ends, self.kind, sign=True)
        allowed = f"{100 * self.margin:g}{numerals.unit(self.kind)}"
        if self.low > self.margin:
            return f"{self.name} {found}, clearly beyond the margin of {allowed}"
        if self.value > self.margin:
            return f"{self.name} {found}, beyond the margin of {allowed}"
        if self.high > self.margin:
            return f"{self.name} {found}, within the margin of {allowed} but not surely"
        return f"{self.name} {found}, within the margin of {allowed}"


JUDGED: tuple[tuple[str, str, numerals.Kind, bool], ...] = (
    ("perplexity", "perplexity", "relative", False),
    ("dist2", "loss of distinct bigrams", "points", True),
    ("words", "loss of words", "relative", True),
    ("refusals", "refusals of benign requests", "points", False),
    ("neutral_loss", "loss on neutral text", "relative", False),
)
"""The margins: metric, words, kind of its change, and whether a fall is what it costs."""


def _costs(effect: Nested, plan: Plan) -> list[_Cost]:
    found = effect["cost"]
    costs: list[_Cost] = []
    for metric, words, kind, falls in JUDGED:
        margin = getattr(plan.margins, metric)
        if margin is None:
            continue
        if metric == "refusals" and metric not in found:
            raise RecordError(
                f"report.margins.refusals cannot be judged: set '{plan.benign}' has no chat prompts"
            )
        change = found[metric]["relative"] if kind == "relative" else found[metric]
        costs.append(_cost(words, kind, _fall(change) if falls else change, margin))
    return costs


def _fall(change: Nested) -> dict[str, float]:
    return {"value": -change["value"], "low": -change["high"], "high": -change["low"]}


def _cost(name: str, kind: numerals.Kind, worse: Nested, margin: float) -> _Cost:
    return _Cost(name, kind, worse["value"], worse["low"], worse["high"], margin)


def _primary_reason(primary: Nested, before: float, after: float, plan: Plan) -> str:
    share = plan.metric in ("tp", "tox_frac")
    change = numerals.interval(primary, "points" if share else "score", sign=True)
    if "relative" in primary:
        change += f" ({numerals.value(primary['relative']['value'], 'relative', sign=True)})"
    if primary["low"] <= 0 <= primary["high"]:
        said, tail = "did not clearly change", ", an interval that contains zero"
    else:
        said, tail = "fell" if primary["high"] < 0 else "rose", ""
    ends = [numerals.value(end, "share" if share else "score") for end in (before, after)]
    weak = "" if primary["holm"] < plan.alpha else f", not below {plan.alpha:g}"
    return (
        f"{NAMES[plan.metric]} {said}: {change}{tail}, from {ends[0]} to {ends[1]}; "
        f"adjusted {numerals.probability(primary['holm'])}{weak}"
    )
