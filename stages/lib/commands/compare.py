"""Every policy of the workspace and of `dvc exp` in one table, against one of them, with intervals.

    python -m stages.lib.commands.compare [--baseline [EXPERIMENT/]POLICY] [--all-commits] [--csv]

Differences are paired prompt by prompt, also between experiments: policies are asked the same
prompts under the same random numbers. An experiment that was asked others is named and left out.
"""

import argparse
import csv
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, TypeVar

from stages.lib import scores
from stages.lib.commands import refusal, revisions
from stages.lib.commands.revisions import Revision
from stages.lib.records import Evaluated
from stages.lib.reporting import comparison
from stages.lib.reporting.comparison import Plan, Scoring
from stages.lib.runtime import files, params
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, Seed, check, check_json
from stages.lib.runtime.tracking.store import flatten
from stages.lib.scores import Key, Score

COSTS = {"perplexity": "perplexity", "dist2": "dist-2", "kl_exact": "KL"}
DIGITS = {"perplexity": 1, "dist-2": 3, "KL": 1}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy of one revision."""

    label: str
    """`policy` of the last commit, else `experiment/policy` or `workspace/policy`."""
    params: Mapping[str, Any]
    """Flat, of the whole revision."""
    estimates: Mapping[str, Any]
    """As in reports/comparison.json."""
    rows: list[Evaluated]


def gather(found: Sequence[Revision], model: str | None) -> list[Entry]:
    """Return every policy of every revision; one with the very completions of another only once.

    Args:
        found: the revisions.
        model: the entry of `scorers` that is the scorer of the verdict; None: none is.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for revision in found:
        if not revision.has("reports/comparison.json"):
            continue
        try:
            own = _entries(revision, model)
        except revisions.AbsentError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for digest, entry in own:
            if digest not in seen:
                seen.add(digest)
                entries.append(entry)
    return entries


def _entries(revision: Revision, model: str | None) -> list[tuple[str, Entry]]:
    settings = flatten(params.parse(revision.read("params.yaml"), f"{revision.name}: params.yaml"))
    numbers = files.plain_json(revision.read("reports/comparison.json"), "reports/comparison.json")
    said = _said(revision, model) if model else {}
    with refusal.of_the_graph("reports/comparison.json"):
        policies = dict(numbers["policies"])
    found = []
    for policy, estimates in policies.items():
        text = revision.read(f"data/evaluations/{policy}/answers.jsonl")
        label = policy if revision.name == "HEAD" else f"{revision.name}/{policy}"
        rows = _records(text, Evaluated, label)
        if model:
            rows = [_scored(row, policy, model, said) for row in rows]
        digest = hashlib.sha256(text.encode()).hexdigest()
        found.append((digest, Entry(label, settings, estimates, rows)))
    return found


def _said(revision: Revision, model: str) -> dict[Key, float]:
    """Return what a model of `scorers` says of the answers of a revision."""
    text = revision.read(f"data/scores/{model}/{scores.SCORES}")
    return {one.key: one.score for one in _records(text, Score, f"{revision.name}: score")}


def _records(text: str, into: type[T], where: str) -> list[T]:
    return [
        check_json(line.encode(), into, f"{where}: line {number}", RecordError)
        # not splitlines, which also splits at U+2028, and texts hold that
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _scored(row: Evaluated, policy: str, model: str, said: Mapping[Key, float]) -> Evaluated:
    own = said.get(scores.key(policy, row))
    added = {} if own is None else {model: own}  # of other sets than the primary one, perhaps none
    return row.model_copy(update={"scores": row.scores | added})


def compare(
    entries: Sequence[Entry], baseline: str, plan: Plan, scoring: Scoring, seed: int
) -> list[dict[str, Any]]:
    """Return one line a policy: its primary metric, its change against the baseline, its costs."""
    by_label = {entry.label: entry for entry in entries}
    if baseline not in by_label:
        raise Refusal(f"--baseline {baseline}: no such policy; there are {', '.join(by_label)}")
    base = by_label[baseline]
    lines = []
    for entry in entries:
        line = {"policy": entry.label, **_estimates(entry, plan), "change": None, "note": ""}
        if entry.label != baseline:
            try:
                comparison.require_same_questions(
                    {baseline: base.rows, entry.label: entry.rows}, baseline
                )
                effects = comparison.effects(entry.rows, base.rows, scoring, plan, seed=seed)
                line["change"] = effects[plan.set][scoring.independent][plan.metric]
            except RecordError as error:
                line["note"] = f"not comparable: {error}"
        line["differs"] = _differences(entry.params, base.params)
        lines.append(line)
    return lines


def _estimates(entry: Entry, plan: Plan) -> dict[str, Any]:
    with refusal.of_the_graph("reports/comparison.json"):
        costs = entry.estimates["cost"]
        return {
            plan.metric: entry.estimates["independent"][plan.metric],
            **{shown: costs[key] for key, shown in COSTS.items() if key in costs},
        }


def _differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = sorted(k for k in own.keys() | other.keys() if own.get(k) != other.get(k))
    return ", ".join(f"{key}={own.get(key, 'absent')}" for key in keys)


def table(lines: Sequence[Mapping[str, Any]], baseline: str, metric: str) -> str:
    """Return the comparison as aligned text; brackets are 95 % intervals."""
    head = ["policy", metric, f"change from {baseline}", *COSTS.values(), "params that differ"]
    body = [head]
    for line in lines:
        costs = [_number(line.get(name), digits=DIGITS[name]) for name in COSTS.values()]
        change = line["note"] or _number(line["change"], digits=3, sign=True)
        body.append(
            [line["policy"], _number(line[metric], digits=3), change, *costs, line["differs"]]
        )
    widths = [max(len(row[i]) for row in body) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in body
    )


def _number(estimate: Mapping[str, float] | None, *, digits: int, sign: bool = False) -> str:
    if estimate is None:
        return "–"
    show = f"{{:{'+' if sign else ''}.{digits}f}}"
    value, low, high = (show.format(estimate[k]) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]".replace("-", "−")


def as_csv(lines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Return the comparison as CSV, an estimate in three columns."""
    out = StringIO()
    names = [metric, "change", *COSTS.values()]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["policy", *(f"{n}{s}" for n in names for s in ("", "_low", "_high")), "note", "differs"]
    )
    for line in lines:
        cells = [
            (line.get(name) or {}).get(key, "")
            for name in names
            for key in ("value", "low", "high")
        ]
        writer.writerow([line["policy"], *cells, line["note"], line["differs"]])
    return out.getvalue()


@refusal.in_one_line
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="policies and experiments in one table")
    parser.add_argument(
        "--baseline", help="what the others are compared with; default: report.baseline"
    )
    parser.add_argument("--all-commits", action="store_true", help="experiments of every commit")
    parser.add_argument("--csv", action="store_true", help="as CSV")
    given = parser.parse_args()
    settings = params.read()
    keys = set(Plan.model_fields)
    plan = check(
        {k: v for k, v in params.section(settings, "report").items() if k in keys},
        Plan,
        "params.yaml: report",
        Refusal,
    )
    entry = params.section(settings, "scorers").get(plan.independent)
    models = {plan.independent: entry["sets"]} if entry else {}
    scoring = Scoring(
        plan.independent, [], params.part(settings, "evaluate.threshold"), models=models
    )
    experiments = revisions.experiments(every_commit=given.all_commits)
    # In this order: what an experiment left in the workspace goes by the experiment's name.
    found = [revisions.head(), *experiments, revisions.workspace()]
    entries = gather(found, plan.independent if entry else None)
    if not entries:
        raise Refusal(
            "reports/comparison.json: neither here nor in an experiment; run `dvc repro` first"
        )
    baseline = given.baseline or plan.baseline
    lines = compare(entries, baseline, plan, scoring, params.load("seed", Seed))
    print(as_csv(lines, plan.metric) if given.csv else table(lines, baseline, plan.metric))


if __name__ == "__main__":
    sys.exit(main())
