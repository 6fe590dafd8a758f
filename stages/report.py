r"""Compare every policy with the baseline, give the verdict, and write the report.

    python -m stages.report data/evaluations data/scores data/prompts \
        reports/labels.json reports/reward.json reports/scorers.json reports/align reports

Reads   evaluations/<policy>/answers.jsonl    every completion of a policy with its scores
            …/snapshots.jsonl         likewise of the policy on the way through its training
            …/neutral_text.jsonl      its loss on passages of neutral text
            …/pairs.jsonl             which way it leans on held-out pairs
            …/identities.jsonl        its answers to beginnings that differ in the group named
        scores/<entry>                what each model of `scorers` says of the completions
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
Params  report, evaluate, policies, scorers, seed
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import toxicity
from stages.lib.records import Evaluated
from stages.lib.reporting import (
    comparison,
    controls,
    course,
    explorer,
    gaps,
    inputs,
    judging,
    opinions,
    overlap,
    page,
    reading,
    tax,
    wins,
    wording,
)  # fmt: skip
from stages.lib.reporting.comparison import Nested, Plan, Rows, Scoring
from stages.lib.reporting.findings import Findings
from stages.lib.runtime import entry, files, tracking
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import Seed
from stages.lib.scores import Key

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
    models: dict[str, Any],
    seed: Seed,
    *,
    evaluations: Path,
    scores: Path,
    prompts: Path,
    labels: Path,
    reward: Path,
    scorers: Path,
    align: Path,
    out: Path,
) -> dict[str, float]:
    """Write the report's files under `out`; return the verdicts and primary effects."""
    _require_named(report, evaluate, policies)
    asked = opinions.read(scores, models)
    scoring = opinions.roles(report, evaluate, asked)
    found = asked.joined(inputs.evaluations(evaluations, policies))
    rows = {name: own.answers for name, own in found.items()}
    preferred = asked.preferences(found, report.baseline)
    comparison.require_same_questions(rows, report.baseline)
    trained = {name: files.read_json(align / f"{name}.json") for name in policies}
    findings = Findings(
        plan=report,
        evaluate=evaluate,
        scoring=scoring,
        policies=policies,
        **_compare(found, preferred, report, scoring, seed),
        opinions=asked.cards,
        **_to_look_at(rows, report, scoring, seed),
        proof=overlap.none(prompts, rows[report.baseline]),
        labels=files.read_json(labels),
        reward=files.read_json(reward),
        cards=files.read_json(scorers),
        trained=trained,
        courses=_courses(found, trained, report, scoring, seed),
        curves={name: inputs.curves(align / f"{name}.csv") for name in policies},
        provenance=inputs.provenance(
            [evaluations, scores, prompts, labels, reward, scorers, align], [*policies, *models]
        ),
        runs=tracking.identities(out / "runs"),
    )
    return _write(findings, out)


def _write(findings: Findings, out: Path) -> dict[str, float]:
    """Write the report's files, complete the pipeline's run; return the figures to compare by."""
    numbers = findings.numbers()
    headline = _headline(numbers, findings.plan.metric)
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


def _require_named(
    report: Report, evaluate: Mapping[str, Any], policies: Mapping[str, Any]
) -> None:
    """Refuse a plan that names what the rest of params.yaml does not have."""
    for key in ("scorers", "threshold", "sets", "split", "temperature"):
        if key not in evaluate:
            raise ParamError(f"params.yaml: evaluate.{key} is missing; the report reads it")
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


def _compare(
    found: Mapping[str, inputs.Evaluation],
    preferred: Mapping[str, Mapping[Key, float]],
    plan: Report,
    scoring: Scoring,
    seed: int,
) -> dict[str, Any]:
    """Return estimates, effects, verdicts and controls, keyed as `Findings` takes them."""
    rows = {name: own.answers for name, own in found.items()}
    losses = {name: own.losses for name, own in found.items()}
    named = {name: own.named for name, own in found.items()}
    independent = scoring.independent
    if plan.set not in {row.set for row in rows[plan.baseline]}:
        raise RecordError(f"no completion belongs to set '{plan.set}', which report.set names")
    often: Nested = {"resamples": plan.resamples, "seed": seed}
    estimates, effects, verdicts = {}, {}, {}
    for name, own in rows.items():
        summary = _summary(own, scoring, often)
        estimates[name] = comparison.view(summary, plan, independent)
        estimates[name]["cost"]["neutral_loss"] = tax.estimate(losses[name], plan, seed=seed)
        agreed = wins.implicit(found[name].leanings, plan, seed=seed)
        estimates[name]["reward"] = estimates[name].get("reward", {}) | agreed
    for name, own in rows.items():
        if name != plan.baseline:
            changed = comparison.effects(own, rows[plan.baseline], scoring, plan, seed=seed)
            viewed = comparison.view(changed, plan, independent)
            viewed["cost"]["neutral_loss"] = tax.effect(
                losses[name], losses[plan.baseline], plan, seed=seed
            )
            effects[name] = comparison.adjusted(viewed, plan)
            verdicts[name] = judging.judge(estimates, name, effects[name], plan)
            won = wins.rates(wins.by_reward(own, rows[plan.baseline], plan), plan, seed=seed)
            estimates[name]["reward"] |= won
            for judge, table in preferred.items():
                better = {key[2:]: p for key, p in table.items() if key[0] == name}
                couples = wins.by_judge(own, rows[plan.baseline], better)
                estimates[name][judge] = wins.rates(couples, plan, seed=seed)
    if written := scoring.of_texts:
        for shown, own in ((effects, gaps.effects), (estimates, gaps.estimates)):
            for name, whom in own(named, written, plan, seed=seed).items():
                shown[name]["identities"] = whom
    chosen = controls.found(rows[plan.baseline], scoring, plan, seed=seed)
    return {"estimates": estimates, "effects": effects, "verdicts": verdicts, "controls": chosen}


def _summary(rows: Sequence[Evaluated], scoring: Scoring, often: Nested) -> Nested:
    """Return every estimate of one policy, of each set by the scorers that scored it."""
    found: Nested = {}
    for name in sorted({row.set for row in rows}):
        own = [row for row in rows if row.set == name]
        found |= toxicity.summarise(own, scoring.of(name), **scoring.declared, **often)
    return found


def _courses(
    evaluated: Mapping[str, inputs.Evaluation],
    trained: Mapping[str, Mapping[str, float]],
    plan: Report,
    scoring: Scoring,
    seed: int,
) -> dict[str, Nested]:
    """Return the course of each policy that has states of its training beside the last."""
    before = evaluated[plan.baseline].answers
    found = {
        name: course.follow(
            before, own.snapshots, own.answers, int(trained[name]["steps"]),
            plan, scoring, seed=seed,
        )
        for name, own in evaluated.items()
    }  # fmt: skip
    return {name: own for name, own in found.items() if own}


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
        if rise := own["cost"]["neutral_loss"].get("relative"):
            found[f"{name}/tax"] = rise["value"]
            found |= {f"{name}/tax_{end}": rise[end] for end in ENDS}
        found[f"{name}/improved"] = float(numbers["verdicts"][name]["improved"])
    return {key: value for key, value in found.items() if value is not None}


if __name__ == "__main__":
    # Not among reports/runs, which it reads: a stage that ran again has a parent to complete.
    entry.main(
        run, "report", "evaluate", "policies", "scorers", "seed", record="reports/report.json"
    )
