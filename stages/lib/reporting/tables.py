"""Writes what labels and reward models say of themselves as lines of (name, text)."""

from collections.abc import Mapping
from typing import Any

from stages.lib.reporting import numerals
from stages.lib.reporting.comparison import Nested


def flat(data: Any, path: str = "") -> list[tuple[str, str]]:
    """Return nested plain data as lines of (name, text).

    Estimates come with their intervals, figures that could not be measured with the reason, and
    long lists as their length.
    """
    if isinstance(data, Mapping):
        if data.keys() >= {"value", "low", "high"}:
            n = f" (n = {data['n']:,.0f})" if "n" in data else ""
            rest = {k: v for k, v in data.items() if k not in ("value", "low", "high", "n")}
            return [(path, numerals.interval(data, "score") + n), *flat(rest, path)]
        if set(data) == {"refused"}:
            return [(path, f"not measurable: {data['refused']}")]
        inner = [flat(own, f"{path} › {key}" if path else str(key)) for key, own in data.items()]
        return [line for lines in inner for line in lines]
    if isinstance(data, list):
        return [(path, ", ".join(map(str, data)) if len(data) <= 4 else f"{len(data)} entries")]
    if isinstance(data, bool):
        return [(path, "yes" if data else "no")]
    if not isinstance(data, int | float):
        return [(path, "–" if data is None else str(data))]
    return [(path, f"{data:,}" if isinstance(data, int) else f"{data:,.4g}".replace("-", "−"))]


def criterion(name: str, labels: Mapping[str, Any]) -> Nested:
    """Return the tables of one criterion, flagged labelers first."""
    own, who = labels["criteria"][name], labels.get("labelers", {})
    flagged = {f["labeler"] for f in labels.get("flagged", []) if f["criterion"] == name}
    agreement = own.get("agreement", {})
    shown = {k: v for k, v in agreement.items() if k != "people"}
    measured = sorted(own.get("labelers", {}).items(), key=lambda one: one[0] not in flagged)
    return {
        "name": name,
        "weight": own.get("weight", 1.0),
        "labelers": {
            f"{labeler} (flagged)" if labeler in flagged else labeler: flat(
                {**who.get(labeler, {}), **figures}
            )
            for labeler, figures in measured
        },
        "people": [(model, _alike(found)) for model, found in agreement.get("people", {}).items()],
        "agreement": flat(shown),
        "elo": ratings(own.get("elo", {})),
    }


def _alike(found: Mapping[str, Any]) -> str:
    """Write an agreement with the counts that it leaves out."""
    ties = f"tied by one {found['tied_by_one']:,}, by both {found['tied_by_both']:,}"
    if "refused" in found:
        return f"not measurable: {found['refused']} ({ties})"
    return f"{numerals.interval(found, 'share')} of {found['n']:,} pairs; {ties}"


def trade_off(couples: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each two criteria's shares, and whose side one verdict takes where they differ."""
    lines: list[tuple[str, str]] = []
    for couple, found in couples.items():
        name = couple.replace(":", " and ")
        for what in ("alike", "conflict", "tie"):
            lines.append((f"{name}: {what}", _share(found[what])))
        for side, taken in found["taken"].items():
            lines.append((f"{name}: in conflict, the verdict is {_whose(side)}", _share(taken)))
    return lines


def _whose(side: str) -> str:
    return "a tie" if side == "neither" else f"that of {side}"


def _share(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return f"not measurable: {found['refused']}"
    return f"{numerals.interval(found, 'share')} of {found['n']:,} pairs"


QUARTERS = ("smallest", "small", "large", "largest")
"""Of the labels' margins, in the order to read them in; reports/reward.json has sorted keys."""


def quality(name: str, own: Mapping[str, Any]) -> Nested:
    """Return what one reward model's measurement says of itself, as lines and a table by margin."""
    margins = own.get("by_margin", {})
    if isinstance(margins, Mapping):
        margins = [{"margin": key, **margins[key]} for key in QUARTERS if key in margins]
    rest = {key: found for key, found in own.items() if key not in ("calibration", "by_margin")}
    title = (
        f"{name.capitalize()} model on held-out pairs. ece null is the calibration error that a "
        "perfect model would show on as few pairs; length accuracy is that of length alone."
    )
    return {"name": name, "title": title, "lines": flat(rest), "by_margin": margins}


def ratings(elo: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return Elo ratings as lines, those that could not be given with the reason."""
    reasons = {found.get("refused") for found in elo.values()}
    if len(reasons) == 1 and None not in reasons:
        return [("all", f"not rated: {reasons.pop()}")]
    lines: list[tuple[str, str]] = []
    for who, found in elo.items():
        count = f"{found.get('comparisons', 0):,} comparisons"
        if "refused" in found:
            lines.append((who, f"not rated: {found['refused']} ({count})"))
        for sampler, rating in found.get("ratings", {}).items():
            lines.append((f"{who} › {sampler}", f"{numerals.interval(rating, 'rating')} ({count})"))
    return lines
