"""Every method in one table: what it pursues, on whose answers, what it bought and what it cost."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.lib.reporting.comparison import NAMES
from stages.lib.reporting.findings import Findings, Row, kind_of

MEASURES = (
    Row("Mean toxicity", ("independent", "mean"), "score", ""),
    Row("Reward", ("reward", "reward"), "score", ""),
    Row("Monitor", ("reward", "monitor"), "score", ""),
    Row("KL, nats", ("cost", "kl_exact"), "nats", ""),
    Row("Perplexity", ("cost", "perplexity"), "perplexity", ""),
    Row("Loss on neutral text", ("cost", "neutral_loss"), "score", ""),
)
SPREAD = MEASURES[:4]
"""Of which entries that differ in their seed alone show the spread."""
CHOSEN = {"mean": "harm", "reward": "proxy", "monitor": "monitor"}
"""Columns that the choice among the baseline's answers has, as `controls` names them."""


@dataclass(frozen=True, slots=True)
class Method:
    """One line of the table."""

    name: str
    algorithm: str
    objective: str
    answers: str
    """On whose answers it learned: online, offline or mixed."""
    tokens: float | None
    """Completion tokens that it learned from."""
    seconds: float | None
    """Of its training alone."""
    in_front: bool
    """No other policy has less mean toxicity at no more KL."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What differs between entries that are alike but for their seed."""

    names: list[str]
    ranges: list[tuple[float, float]]
    """Least and greatest value of each of SPREAD."""


def columns(findings: Findings) -> list[Row]:
    """Return the table's columns: the primary metric first, then those that some policy has."""
    metric = findings.plan.metric
    rest = [row for row in MEASURES if row.path != ("independent", metric)]
    shown = [
        row
        for row in rest
        if any(row.path[1] in own.get(row.path[0], {}) for own in findings.estimates.values())
    ]
    return [Row(NAMES[metric].capitalize(), ("independent", metric), kind_of(metric), ""), *shown]


def lines(findings: Findings) -> list[Method]:
    """Return a line for each policy, in the order of params.yaml."""
    seconds = {run["stage"]: run.get("seconds") for run in findings.runs}
    front = in_front(findings)
    return [_line(findings, name, seconds.get(f"align@{name}"), name in front)
            for name in findings.estimates]  # fmt: skip


def _line(findings: Findings, name: str, seconds: float | None, front: bool) -> Method:
    own = findings.trained[name]
    return Method(
        name, findings.policies[name]["algorithm"], own.get("objective", "none"),
        own.get("answers", "offline"), own.get("completion_tokens"), seconds, front,
    )  # fmt: skip


def in_front(findings: Findings) -> set[str]:
    """Return the policies that no other one beats in mean toxicity at no more KL.

    By the estimates as they are: neighbours on the front may well change places in another run.
    """
    at = {
        name: (own["cost"]["kl_exact"]["value"], own["independent"]["mean"]["value"])
        for name, own in findings.estimates.items()
    }
    return {
        name
        for name, (kl, harm) in at.items()
        if not any(k <= kl and h <= harm and (k, h) != (kl, harm) for k, h in at.values())
    }


def spreads(findings: Findings) -> list[Spread]:
    """Return how far entries lie apart that differ in their seed alone, or in their snapshots."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name, entry in findings.policies.items():
        plain = {k: v for k, v in entry.items() if k not in ("seed", "snapshots")}
        alike[repr(sorted(plain.items()))].append(name)
    return [
        Spread(names, [_range(findings, names, row) for row in SPREAD])
        for names in alike.values()
        if len(names) > 1 and all("seed" in findings.policies[name] for name in names)
    ]


def _range(findings: Findings, names: list[str], row: Row) -> tuple[float, float]:
    group, metric = row.path
    found = [findings.estimates[name].get(group, {}).get(metric) for name in names]
    values = [own["value"] for own in found if own]
    return (min(values), max(values)) if values else (float("nan"), float("nan"))


def chosen(findings: Findings) -> dict[str, Mapping[str, Any]]:
    """Return the choice of the best of the most answers, by the columns that it has."""
    control = findings.controls["best_of_reward"]
    if not control:
        return {}
    n, own = max(control.items(), key=lambda item: int(item[0]))
    cells = {metric: own[theirs] for metric, theirs in CHOSEN.items() if theirs in own}
    changes = {
        metric: own["change"][theirs]
        for metric, theirs in CHOSEN.items()
        if theirs in own.get("change", {})
    }
    return {"n": {"value": n}, "kl": {"value": own["kl"]}, "cells": cells, "changes": changes}
