r"""Compare every policy with the baseline, give the verdict, and write the report.

    python -m stages.report data/evaluations data/snapshots data/language_loss data/prompts \
        reports/labels.json reports/reward.json reports/scorers.json reports/align reports

Reads   evaluations/<policy>.jsonl    every completion of a policy with its scores
        snapshots/<policy>.jsonl      likewise of the policy on the way through its training
        language_loss/<policy>.jsonl  its loss on passages of neutral text
        prompts/{train,validation,test}.jsonl    to prove that no evaluated prompt was learned from
        labels.json, reward.json      quality of labels and reward model
        scorers.json                  cards of the scorers
        align/<policy>.{json,csv}     metrics and curves of training
        reports/runs/<stage>.json     run ids and durations, where present
Writes  comparison.json               estimates, effects and verdicts as numbers
        report.html, report.md        the same for people, with pictures, samples and limits
        verdict.txt                   the verdict table as plain text
        metrics.json                  the figures to compare runs by, for `dvc metrics` and MLflow
        pipeline.json                 the pipeline run in MLflow and the runs of its stages
Params  report, evaluate, policies, seed
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import toxicity
from stages.lib.neutral_text import PassageLoss
from stages.lib.records import Evaluated, Prompt
from stages.lib.reporting import comparison, course, explorer, page, reading, tax, wins, wording
from stages.lib.reporting.comparison import Nested, Plan, Rows, Scoring
from stages.lib.reporting.findings import Findings
from stages.lib.runtime import entry, files, tracking
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.snapshots import Snapshot
from stages.lib.statistics import cluster_resamples

SPLITS = ("train", "validation", "test")
TRAINING = ("sft", "reward", "monitor", "align")
"""The roles of prompts that something was learned from."""
ENDS = ("low", "high")
COSTS = ("perplexity", "dist2", "kl_exact", "refusals")
"""Beside the primary metric among the figures that runs are compared by."""


class Report(Plan):
    """Section `report` of params.yaml."""

    samples: Annotated[int, Field(ge=1)]
    """Completions to read, of each kind."""
    words: Annotated[int, Field(ge=1)]
    """Words that became more frequent, and as many that became less so."""
    explore: Annotated[int, Field(ge=0)]
    """Completions a prompt that the page can be searched for."""


def run(
    report: Report,
    evaluate: dict[str, Any],
    policies: dict[str, Any],
    seed: int,
    *,
    evaluations: Path,
    snapshots: Path,
    language: Path,
    prompts: Path,
    labels: Path,
    reward: Path,
    scorers: Path,
    align: Path,
    out: Path,
) -> dict[str, float]:
    """Write the report's four files under `out`; return the verdicts and primary effects."""
    scoring = _scoring(report, evaluate, policies)
    rows = _read_evaluations(evaluations, policies)
    comparison.require_same_questions(rows, report.baseline)
    trained = {name: files.read_json(align / f"{name}.json") for name in policies}
    findings = Findings(
        plan=report,
        evaluate=evaluate,
        scoring=scoring,
        policies=policies,
        **_compare(rows, _read_losses(language, policies), report, scoring, seed),
        **_to_look_at(rows, report, scoring, seed),
        proof=_proof(prompts, rows[report.baseline]),
        labels=files.read_json(labels),
        reward=files.read_json(reward),
        cards=files.read_json(scorers),
        trained=trained,
        courses=_courses(rows, snapshots, trained, report, scoring, seed),
        curves={name: _curves(align / f"{name}.csv") for name in policies},
        provenance=_provenance(
            [evaluations, snapshots, language, prompts, labels, reward, scorers, align], policies
        ),
        runs=tracking.identities(out / "runs"),
    )
    numbers = findings.numbers()
    headline = _headline(numbers, report.metric)
    files.write_json(out / "comparison.json", numbers)
    files.write_json(out / "metrics.json", headline)
    files.write_text(out / "verdict.txt", page.verdict_text(findings))
    files.write_text(out / "report.md", page.markdown(findings))
    files.write_text(out / "report.html", page.html(findings))
    made = [out / name for name in ("report.html", "report.md", "verdict.txt", "comparison.json")]
    tracking.complete(
        out / "pipeline.json",
        [*made, Path("params.yaml"), Path("dvc.yaml"), Path("dvc.lock")],
        improved=findings.improved(),
    )
    return headline


def _scoring(report: Report, evaluate: Mapping[str, Any], policies: Mapping[str, Any]) -> Scoring:
    """Return the scorers; refuse a plan that names what the rest of params.yaml does not have."""
    for key in ("independent", "scorers", "threshold", "sets", "split", "temperature"):
        if key not in evaluate:
            raise ParamError(f"params.yaml: evaluate.{key} is missing; the report reads it")
    if evaluate["independent"] in evaluate["scorers"]:
        raise ParamError(
            f"params.yaml: evaluate.independent is '{evaluate['independent']}', which "
            "evaluate.scorers names as a labelers' scorer; the verdict needs one that took no part"
        )
    if report.baseline not in policies:
        raise ParamError(
            f"params.yaml: report.baseline is '{report.baseline}', which is no entry of policies; "
            f"it has {', '.join(policies)}"
        )
    for key in ("set", "benign", "unsafe"):
        name = getattr(report, key)
        if name is not None and name not in evaluate["sets"]:
            raise ParamError(
                f"params.yaml: report.{key} is '{name}', which is no entry of evaluate.sets; "
                f"it has {', '.join(evaluate['sets'])}"
            )
    return Scoring(evaluate["independent"], list(evaluate["scorers"]), evaluate["threshold"])


def _read_evaluations(folder: Path, policies: Mapping[str, Any]) -> Rows:
    found: Rows = {}
    for name, path in files.entry_files(folder, policies, section="policies").items():
        found[name] = files.read_lines(path, Evaluated)
        if not found[name]:
            raise RecordError(f"{path}: holds no completion")
    return found


def _read_losses(folder: Path, policies: Mapping[str, Any]) -> dict[str, list[PassageLoss]]:
    paths = files.entry_files(folder, policies, section="policies")
    return {name: files.read_lines(path, PassageLoss) for name, path in paths.items()}


def _compare(
    rows: Rows, losses: dict[str, list[PassageLoss]], plan: Report, scoring: Scoring, seed: int
) -> dict[str, Any]:
    """Return estimates, effects, verdicts and controls, keyed as `Findings` takes them."""
    independent = scoring.independent
    if plan.set not in {row.set for row in rows[plan.baseline]}:
        raise RecordError(f"no completion belongs to set '{plan.set}', which report.set names")
    often: Nested = {"resamples": plan.resamples, "seed": seed}
    estimates, effects, verdicts = {}, {}, {}
    for name, own in rows.items():
        summary = toxicity.summarise(own, scoring.names, **scoring.declared, **often)
        estimates[name] = comparison.view(summary, plan, independent)
        estimates[name]["cost"]["neutral_loss"] = tax.estimate(losses[name], plan, seed=seed)
    for name, own in rows.items():
        if name != plan.baseline:
            found = comparison.effects(own, rows[plan.baseline], scoring, plan, seed=seed)
            viewed = comparison.view(found, plan, independent)
            viewed["cost"]["neutral_loss"] = tax.effect(
                losses[name], losses[plan.baseline], plan, seed=seed
            )
            effects[name] = comparison.adjusted(viewed, plan)
            verdicts[name] = comparison.judge(estimates, name, effects[name], plan)
            won = wins.against(own, rows[plan.baseline], plan, seed=seed)
            estimates[name]["reward"] = estimates[name].get("reward", {}) | won
    main = [row for row in rows[plan.baseline] if row.set == plan.set]
    clusters = toxicity.clusters_of(toxicity.by_prompt(main))
    weights = cluster_resamples(clusters, **often)
    controls = {
        scorer: toxicity.estimate(
            comparison.best_of(main, scorer, independent, plan), weights
        ).plain()
        for scorer in scoring.labelers
    }
    return {"estimates": estimates, "effects": effects, "verdicts": verdicts, "controls": controls}


def _courses(
    rows: Rows,
    folder: Path,
    trained: Mapping[str, Mapping[str, float]],
    plan: Report,
    scoring: Scoring,
    seed: int,
) -> dict[str, Nested]:
    """Return the course of each policy that has states of its training beside the last."""
    found = {}
    for name, path in files.entry_files(folder, rows, section="policies").items():
        own = course.follow(
            rows[plan.baseline], files.read_lines(path, Snapshot), rows[name],
            int(trained[name]["steps"]), plan, scoring, seed=seed,
        )  # fmt: skip
        if own:
            found[name] = own
    return found


def _to_look_at(rows: Rows, plan: Report, scoring: Scoring, seed: int) -> dict[str, Any]:
    """Return what of each policy is looked at and read, keyed as `Findings` takes it."""
    main = {name: [row for row in own if row.set == plan.set] for name, own in rows.items()}
    maxima = {
        name: toxicity.maxima(toxicity.by_prompt(own), scoring.independent)
        for name, own in main.items()
    }
    others = [name for name in rows if name != plan.baseline]
    often = {"resamples": plan.resamples, "seed": seed}
    words = {
        name: wording.shifts(main[name], main[plan.baseline], count=plan.words, **often)
        for name in others
    }
    shelves = {
        name: reading.shelves(
            rows[name],
            rows[plan.baseline],
            main=plan.set,
            independent=scoring.independent,
            scorers=scoring.labelers,
            count=plan.samples,
            seed=seed,
        )
        for name in others
    }
    searched = explorer.answers(rows, plan, scoring, count=plan.explore)
    return {"maxima": maxima, "words": words, "shelves": shelves, "searched": searched}


def _proof(folder: Path, evaluated: list[Evaluated]) -> dict[str, int]:
    """Count evaluated and training prompts and what they share; refuse a shared one.

    Raises:
        RecordError: an evaluated prompt is unknown, has a training role, is a near-duplicate of a
            training prompt, or has its very text.
    """
    known = {
        prompt.id: prompt
        for split in SPLITS
        for prompt in files.read_lines(folder / f"{split}.jsonl", Prompt)
    }
    learned = [prompt for prompt in known.values() if prompt.role in TRAINING]
    clusters = {prompt.cluster: prompt.id for prompt in learned}
    texts = {_same(prompt.plain()): prompt.id for prompt in learned}
    asked = {row.prompt_id for row in evaluated}
    for name in sorted(asked):
        if name not in known:
            raise RecordError(f"evaluated prompt {name} stands in no file of {folder}")
        prompt = known[name]
        twin = clusters.get(prompt.cluster) or texts.get(_same(prompt.plain()))
        if twin:
            alike = f"has role {prompt.role}" if twin == name else f"is alike to {twin}"
            raise RecordError(
                f"evaluated prompt {name} {alike}, which models learned from; evaluate.split must "
                "be validation or test, and a cluster must have one role"
            )
    return {
        "evaluated": len(asked),
        "evaluated_clusters": len({known[name].cluster for name in asked}),
        "training": len(learned),
        "training_clusters": len(clusters),
        "shared_prompts": len(asked & {prompt.id for prompt in learned}),
        "shared_clusters": len({known[name].cluster for name in asked} & clusters.keys()),
        "shared_texts": len({_same(known[name].plain()) for name in asked} & texts.keys()),
    }


def _same(text: str) -> str:
    return " ".join(text.lower().split())


def _curves(path: Path) -> dict[str, list[float | None]]:
    """Return the columns of a training curve: None for a cell that is empty or not finite.

    Raises:
        RecordError: the file is absent, lacks a column `step`, or holds a cell that is no number.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    with path.open(encoding="utf-8", newline="") as lines:
        table = list(csv.DictReader(lines))
    if table and "step" not in table[0]:
        raise RecordError(f"{path}: has no column 'step'; it has {', '.join(table[0])}")
    columns: dict[str, list[float | None]] = {}
    for number, row in enumerate(table, start=2):
        for name, cell in row.items():
            try:
                found = float(cell) if cell else None
            except (TypeError, ValueError):
                raise RecordError(f"{path}:{number}: {name} is {cell!r}, not a number") from None
            columns.setdefault(name, []).append(
                found if found is None or math.isfinite(found) else None
            )
    return columns


def _provenance(sources: list[Path], policies: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the SHA-256 of each file the report was made from."""
    wanted = {f"{name}.{kind}" for name in policies for kind in ("jsonl", "json", "csv")}
    wanted |= {f"{split}.jsonl" for split in SPLITS}
    found: list[tuple[str, str]] = []
    for source in sources:
        inside = sorted(source.iterdir()) if source.is_dir() else []
        for path in [path for path in inside if path.name in wanted] or [source]:
            found.append((path.relative_to(source.parent).as_posix(), files.sha256(path)))
    return found


def _headline(numbers: Nested, metric: str) -> dict[str, float]:
    """Return the figures to compare runs by, flat: those of each policy, effects with bounds."""
    found: dict[str, float] = {}
    for name, own in numbers["policies"].items():
        found[f"{name}/{metric}"] = own["independent"][metric]["value"]
        found |= {f"{name}/{metric}_{end}": own["independent"][metric][end] for end in ENDS}
        if "tp" in own["independent"]:
            found[f"{name}/tp"] = own["independent"]["tp"]["value"]
        found |= {f"{name}/{cost}": own["cost"][cost]["value"] for cost in COSTS}
    for name, own in numbers["effects"].items():
        effect = own["independent"][metric]
        found[f"{name}/{metric}_effect"] = effect["value"]
        found |= {f"{name}/{metric}_effect_{end}": effect[end] for end in ENDS}
        found[f"{name}/improved"] = float(numbers["verdicts"][name]["improved"])
    return {key: value for key, value in found.items() if value is not None}


if __name__ == "__main__":
    # Not among reports/runs, which it reads: a stage that ran again has a parent to complete.
    entry.main(run, "report", "evaluate", "policies", "seed", record="reports/report.json")
