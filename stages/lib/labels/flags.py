"""Labelers whose figures lie beyond what params allow: always named, left out only if asked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from stages.lib.runtime.schema import Strict

Share = Annotated[float, Field(ge=0, le=1)]


class Quality(Strict):
    """Section `pairs.quality` of params.yaml; a threshold of null is not asked."""

    min_skill: Share | None
    """Estimated probability that a verdict is right."""
    min_self_consistency: Share | None
    """Share of pairs that a labeler who ranks them a second time orders alike."""
    min_gold: Share | None
    """Share of pairs ordered as the answer key orders them."""
    max_position_follow: Share | None
    """Share of a person's preferences for the completion shown earlier; one who reads has 0.5."""
    max_tie_rate: Share | None
    """Share of comparisons that are ties."""
    min_prompts: Annotated[int, Field(ge=1)]
    """How many prompts a figure must rest on to be held against a labeler: on few, an interval
    shrinks to a point, and three verdicts alike look certain."""
    leave_out: bool
    """Whether a labeler whose whole interval lies beyond a threshold has no vote."""


BOUNDS = {
    "skill": "min_skill",
    "self_consistency": "min_self_consistency",
    "gold": "min_gold",
    "position_follow_rate": "max_position_follow",
    "tie_rate": "max_tie_rate",
}
"""Figure to the parameter that bounds it, from below or from above as its name says."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One figure of one labeler beyond its threshold."""

    labeler: str
    criterion: str
    figure: str
    value: float
    low: float
    high: float
    n: int
    threshold: float
    left_out: bool

    @property
    def side(self) -> str:
        """Where the figure lies: `below` or `above` its threshold."""
        return "below" if BOUNDS[self.figure].startswith("min") else "above"

    def plain(self) -> dict[str, Any]:
        """The flag as plain data, for JSON."""
        return {**asdict(self), "side": self.side}

    def sentence(self) -> str:
        """`judge (harmless): skill 0.55 [0.41, 0.73] below 0.6`."""
        interval = f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        what = self.figure.replace("_", " ")
        return (
            f"{self.labeler} ({self.criterion}): {what} {interval} {self.side} {self.threshold:g}"
        )


def flags(quality: Quality, figures: Mapping[str, Mapping[str, Any]]) -> list[Flag]:
    """Return every figure beyond its threshold, by labeler, criterion and figure.

    Args:
        quality: the thresholds.
        figures: criterion to `label_quality.report`. A figure that was refused, or rests on fewer
            than `min_prompts`, flags nobody.
    """
    found = [
        _flag(quality, labeler, criterion, name, own)
        for criterion, report in figures.items()
        for labeler, own in report["labelers"].items()
        for name in BOUNDS
    ]
    beyond = [flag for flag in found if flag is not None]
    return sorted(beyond, key=lambda flag: (flag.labeler, flag.criterion, flag.figure))


def _flag(
    quality: Quality, labeler: str, criterion: str, name: str, own: Mapping[str, Any]
) -> Flag | None:
    """Return a flag where a labeler's figure lies beyond its threshold."""
    threshold, measured = getattr(quality, BOUNDS[name]), own[name]
    if threshold is None or "value" not in measured:
        return None
    if measured.get("clusters", own["prompts"]) < quality.min_prompts:
        return None
    value, low, high, n = (measured[key] for key in ("value", "low", "high", "n"))
    if BOUNDS[name].startswith("min"):
        beyond, wholly = value < threshold, high < threshold
    else:
        beyond, wholly = value > threshold, low > threshold
    out = quality.leave_out and wholly
    return Flag(labeler, criterion, name, value, low, high, n, threshold, out) if beyond else None


def left_out(found: Sequence[Flag]) -> dict[str, set[str]]:
    """Return criterion to the labelers who have no vote under it."""
    names: dict[str, set[str]] = {}
    for flag in found:
        if flag.left_out:
            names.setdefault(flag.criterion, set()).add(flag.labeler)
    return names


def sentence(found: Sequence[Flag]) -> str:
    """Say on one line who is flagged for what, and what became of their votes."""
    names = len({flag.labeler for flag in found})
    told = [f"{flag.sentence()}{', left out' * flag.left_out}" for flag in found]
    kept = "" if all(flag.left_out for flag in found) else "; whoever is not left out still votes"
    return (
        f"pairs.quality: {names} labeler{'s' * (names > 1)} beyond a threshold: "
        f"{'; '.join(told)}{kept}"
    )
