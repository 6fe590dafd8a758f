"""What alignment cost on standard tasks: a policy and its base on tasks of lm-evaluation-harness.

    python -m stages.lib.commands.harness dpo hellaswag,truthfulqa_mc2 [--limit 100]
        [--include folder] [--batch 8]        (make harness POLICY=dpo TASKS=hellaswag)

The baseline is the base as the graph holds it, quantised, without the adapter. Prompts are those of
the tasks, as they stand, without a chat template. Prints a table and writes
reports/harness/<policy>.json; no stage, because most tasks are downloaded.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.lib.base import Base
from stages.lib.commands import refusal
from stages.lib.reporting import numerals
from stages.lib.runtime import files, params
from stages.lib.runtime.schema import Refusal, Seed

HEAD = ("task", "metric", "n", "baseline", "policy", "difference")
ARROWS = {True: " ↑", False: " ↓", None: ""}
"""Behind a metric: what is better."""
LEGEND = (
    "Policy minus baseline on the same documents; brackets are 95 % intervals from {resamples:,} "
    "resamples\nof documents, and none stand where a metric is no mean over documents. "
    "↑ more is better, ↓ less is."
)


def run(
    root: Path, policy: str, tasks: Sequence[str], *, limit: int | None, include: Path | None,
    batch: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure a policy and its base; write and return what was found.

    Raises:
        Refusal: there is no such policy, it is the base itself, or a task cannot be used.
    """
    from stages.lib import answering, models, standard_tasks

    tree = params.read(root / "params.yaml")
    folder = policy_folder(root, list(params.section(tree, "policies")), policy)
    asked = standard_tasks.find(_some(tasks, limit, batch), include)
    base = params.load("base", Base, root / "params.yaml")
    subject = answering.open_subject(root / "models/base", folder, base)
    if subject.is_reference:
        raise Refusal(f"{policy}: is the base without an adapter, which others are compared with")
    with models.adapter(subject.reference, None):
        before = standard_tasks.measure(subject.reference, asked, limit=limit, batch=batch)
    with models.adapter(subject.policy, subject.adapter):
        after = standard_tasks.measure(subject.policy, asked, limit=limit, batch=batch)
    seed = params.load("seed", Seed, root / "params.yaml")
    resamples = params.load("report.resamples", int, root / "params.yaml")
    found = {
        "policy": policy,
        "adapter": _digest(folder / "adapter_model.safetensors"),
        "base": tree["base"],
        "lm_eval": version("lm_eval"),
        "limit": limit,
        "versions": after["versions"],
        "shots": after["n-shot"],
        "resamples": resamples,
        "seed": seed,
        "results": results(before, after, resamples=resamples, seed=seed),
    }
    files.write_json(root / "reports/harness" / f"{policy}.json", found)
    return found


def policy_folder(root: Path, policies: Sequence[str], policy: str) -> Path:
    """Return where `align` wrote a policy.

    Raises:
        Refusal: params.yaml has no such policy, or it is not made yet.
    """
    if policy not in policies:
        raise Refusal(
            f"POLICY: params.yaml has no policies.{policy or '(none given)'}; it has "
            f"{', '.join(policies)}"
        )
    folder = root / "models/policies" / policy
    if not (folder / "policy.json").is_file():
        raise Refusal(f"{folder}: no policy is there; `dvc repro align@{policy}` makes it")
    return folder


def _some(tasks: Sequence[str], limit: int | None, batch: int) -> list[str]:
    names = [name.strip() for name in tasks if name.strip()]
    if not names:
        raise Refusal("TASKS: names no task; TASKS=hellaswag,truthfulqa_mc2 names two")
    for name, value in (("LIMIT", limit), ("BATCH", batch)):
        if value is not None and value < 1:
            raise Refusal(f"{name}: must be at least 1, not {value}")
    return names


def _digest(adapter: Path) -> str | None:
    return files.sha256(adapter) if adapter.is_file() else None


def results(
    baseline: Mapping[str, Any], policy: Mapping[str, Any], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return one line a metric of a task: both values, and their difference with its interval.

    Args:
        baseline: what the harness found of the base; `policy` likewise.
        resamples: of documents.
        seed: of the resamples.
    """
    from stages.lib import standard_tasks

    before = {(one.task, one.metric): one for one in standard_tasks.scores(baseline)}
    return [
        {
            "task": one.task,
            "metric": one.metric,
            "higher_is_better": one.higher_is_better,
            "baseline": _finite(before[one.task, one.metric].value),
            "policy": _finite(one.value),
            "difference": {
                key: _finite(value)
                for key, value in standard_tasks.difference(
                    one, before[one.task, one.metric], resamples=resamples, seed=seed
                ).plain().items()
            },
        }
        for one in standard_tasks.scores(policy)
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    """Return a number, or None for what JSON has no word for."""
    return value if math.isfinite(value) else None


def table(found: Mapping[str, Any]) -> str:
    """Return the results as aligned text with a legend."""
    body = [HEAD, *(_row(one) for one in found["results"])]
    widths = [max(len(row[i]) for row in body) for i in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in body
    ]
    return "\n".join([*lines, "", LEGEND.format(resamples=found["resamples"])])


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    change = one["difference"]
    if change["low"] is None:
        shown = _shown(change["value"], sign=True)
    else:
        shown = numerals.breakable(numerals.interval(change, "score", sign=True))
    metric = one["metric"] + ARROWS[one["higher_is_better"]]
    values = _shown(one["baseline"]), _shown(one["policy"])
    return one["task"], metric, str(change["n"] or "–"), *values, shown


def _shown(value: float | None, *, sign: bool = False) -> str:
    return "–" if value is None else numerals.number(value, "score", sign=sign)


def log(found: Mapping[str, Any]) -> None:
    """Log the results to MLflow as a run of their own; a server that is away costs a line."""
    from stages.lib.runtime.tracking import store

    try:
        where = store.connect()
        tags = {"kind": "harness", "policy": found["policy"]} | store.context_tags()
        name = f"harness@{found['policy']}"
        made = where.client.create_run(where.experiment, run_name=name, tags=tags).info.run_id
        kept = ("policy", "adapter", "base", "lm_eval", "limit", "versions", "shots")
        where.log_params(made, store.flatten({key: found[key] for key in kept}))
        where.log_metrics(made, metrics(found))
        where.client.log_dict(made, dict(found), "harness.json")
        where.client.set_terminated(made, "FINISHED")
    except Exception as error:  # whatever a client or server throws, the results are written
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        print(f"MLflow at {store.uri()} does not take these results ({first})", file=sys.stderr)


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Return `task/metric`, `…_baseline`, `…_difference`, and the ends of its interval."""
    flat = {}
    for one in found["results"]:
        change = one["difference"]
        values = {
            "": one["policy"],
            "_baseline": one["baseline"],
            "_difference": change["value"],
            "_difference_low": change["low"],
            "_difference_high": change["high"],
        }
        flat |= {
            f"{one['task']}/{one['metric']}{end}": value
            for end, value in values.items()
            if value is not None
        }
    return flat


@refusal.in_one_line
def main() -> None:
    """Measure what the command line names, print the table, log it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("tasks", help="names with commas between them")
    parser.add_argument("--limit", type=int, help="documents a task, the first ones; default: all")
    parser.add_argument("--include", type=Path, help="folder of tasks of your own")
    parser.add_argument("--batch", type=int, default=8, help="requests at once; default 8")
    given = parser.parse_args()
    found = run(
        Path(), given.policy, given.tasks.split(","), limit=given.limit, include=given.include,
        batch=given.batch,
    )  # fmt: skip
    print(table(found))
    log(found)


if __name__ == "__main__":
    sys.exit(main())
