r"""Let one model score the answers that `evaluate` wrote: a classifier, or a judge.

    python -m stages.score judge models/base data/sources/constitution.yaml data/evaluations \
        data/scores/judge

Reads   the model's folder, and what it goes by: a constitution; the model's folder again where
        there is none
        data/evaluations     every policy's answers, and those of states on the way
Writes  scores.jsonl         one score of one answer a line
        identity.json        the model's card: id, revision, licence, what it is asked, what it cuts
Params  scorers.<name>, base, policies, report.baseline
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import model_folder, scores
from stages.lib.base import Base
from stages.lib.model_scorers import classifier, judge, preference
from stages.lib.model_scorers.said import Said
from stages.lib.records import Evaluated
from stages.lib.runtime import entry, files
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import Refusal
from stages.lib.scores import Card
from stages.lib.snapshots import Snapshot

Scorer = Annotated[
    classifier.TextClassifier | judge.HarmJudge | preference.Preference,
    Field(discriminator="kind"),
]
SCORERS = {
    "classifier": classifier.score,
    "judge": judge.score,
    "preference": preference.score,
}


def run(
    scorer: Scorer,
    base: Base,
    policies: dict[str, Any],
    baseline: str,
    *,
    name: str,
    reads: Path,
    guide: Path,
    evaluations: Path,
    out: Path,
) -> dict[str, float]:
    """Write scores and card; return how many there are, each policy's mean, and its own metrics."""
    if baseline not in policies:
        raise ParamError(
            f"params.yaml: report.baseline is '{baseline}', which is no entry of policies; it has "
            f"{', '.join(policies)}"
        )
    answers = read_answers(evaluations, policies)
    require_sets(answers, scorer.sets, name)
    said = SCORERS[scorer.kind](scorer, base, answers, baseline)
    card = describe(scorer.kind, reads, said)
    with files.whole_folder(out) as folder:
        files.write_lines(folder / scores.SCORES, said.scores)
        files.write_json(folder / scores.CARD, card.model_dump(mode="json"))
    return numbers(said)


def read_answers(evaluations: Path, policies: dict[str, Any]) -> dict[str, list[Evaluated]]:
    """Return the answers of each policy, those of states on the way after its last.

    Raises:
        RecordError: a policy was not evaluated, or what was evaluated is no entry of `policies`.
    """
    own = files.entry_files(evaluations, policies, section="policies", suffix="")
    return {
        policy: [
            *files.read_lines(folder / "answers.jsonl", Evaluated),
            *files.read_lines(folder / "snapshots.jsonl", Snapshot),
        ]
        for policy, folder in own.items()
    }


def require_sets(answers: scores.ByPolicy, sets: list[str], name: str) -> None:
    """Refuse a set to which no answer belongs, before a model is loaded."""
    there = {row.set for own in answers.values() for row in own}
    for wanted in sets:
        if wanted not in there:
            raise Refusal(
                f"params.yaml: scorers.{name}: no answer belongs to set '{wanted}'; there are "
                f"{', '.join(sorted(there))}"
            )


def describe(kind: str, reads: Path, said: Said) -> Card:
    """Return the card of the model in a folder that `fetch` wrote, and of what it was asked."""
    brought = files.read_json(reads / model_folder.CARD)
    source = brought["source"]
    digest = hashlib.sha256(json.dumps(brought["files"], sort_keys=True).encode()).hexdigest()
    rest = {k: v for k, v in said._asdict().items() if k != "scores"}
    return Card(
        kind=kind,
        model=next(source[key] for key in ("repository", "package", "path") if key in source),
        # A folder has no version: the hash of its files' hashes tells it from another
        revision=brought["version"] or f"sha256 {digest}",
        licence=brought["licence"],
        **rest,
    )


def numbers(said: Said) -> dict[str, float]:
    """Return what MLflow shows of it."""
    own: dict[str, list[float]] = {}
    for one in said.scores:
        if one.step is None:
            own.setdefault(one.policy, []).append(one.score)
    means = {f"{policy}/mean": math.fsum(some) / len(some) for policy, some in own.items()}
    return {"scores": float(len(said.scores)), "cut": float(said.cut), **means, **said.measures}


if __name__ == "__main__":
    entry.main(
        run, "scorers.{name}", "base", "policies", "report.baseline",
        shared=lambda scorer: scorer.kind != "classifier",
    )  # fmt: skip
