"""What the models of `scorers` say beside what `evaluate` measured, and each scorer's part.

One scorer gives the verdict, some are what labels and rewards were made from, the others are second
opinions; a judge of preference scores no answer by itself and gives a win rate.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.lib import scores
from stages.lib.records import Evaluated
from stages.lib.reporting.comparison import Plan, Scoring
from stages.lib.reporting.inputs import Evaluation
from stages.lib.runtime import files
from stages.lib.runtime.params import ParamError
from stages.lib.scores import ByPolicy, Card, Key

RESERVED = ("independent", "cost", "reward", "by_category", "sets", "identities")
"""Names of groups of figures, which a scorer's stand beside."""


@dataclass(frozen=True, slots=True)
class Opinions:
    """Every model that scored, by the name of its entry."""

    cards: Mapping[str, Card]
    folders: Mapping[str, Path]

    @property
    def of_harm(self) -> dict[str, Card]:
        """Those that give an answer a probability of harm."""
        return {name: card for name, card in self.cards.items() if card.kind != "preference"}

    @property
    def of_preference(self) -> dict[str, Card]:
        """Those that compare an answer with the baseline's."""
        return {name: card for name, card in self.cards.items() if card.kind == "preference"}

    def joined(self, found: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
        """Return the evaluations with each model's score of harm among the scores of an answer.

        Raises:
            RecordError: an answer that a model should have scored has no score of it.
        """
        answers = _answers(found)
        tables = {}
        for name, card in self.of_harm.items():
            wanted = scores.asked(answers, card.sets, card.prompts)
            tables[name] = scores.read(self.folders[name], [scores.key(*one) for one in wanted])
        return {
            policy: replace(
                own,
                answers=[_with(tables, policy, row) for row in own.answers],
                snapshots=[_with(tables, policy, row) for row in own.snapshots],
            )
            for policy, own in found.items()
        }

    def preferences(
        self, found: Mapping[str, Evaluation], baseline: str
    ) -> dict[str, dict[Key, float]]:
        """Return each judge's probabilities that an answer is better than the baseline's.

        Raises:
            RecordError: an answer that it should have compared has no score of it.
        """
        answers = _answers(found)
        tables = {}
        for name, card in self.of_preference.items():
            wanted = scores.compared(answers, card.sets, card.prompts, baseline)
            tables[name] = scores.read(self.folders[name], [scores.key(*one) for one in wanted])
        return tables


def read(folder: Path, entries: Mapping[str, Any]) -> Opinions:
    """Return the cards of the models of `scorers`.

    Raises:
        RecordError: a folder is missing, or belongs to no entry.
    """
    own = files.entry_files(folder, entries, section="scorers", suffix="")
    return Opinions({name: scores.read_card(path) for name, path in own.items()}, own)


def roles(plan: Plan, evaluate: Mapping[str, Any], opinions: Opinions) -> Scoring:
    """Return which part each scorer plays.

    Raises:
        ParamError: the plan names a scorer that there is not, or one that did not score the sets
            its part needs; or an entry bears a name that is taken.
    """
    texts, models = evaluate["scorers"], opinions.of_harm
    for name in opinions.cards:
        if name in (*RESERVED, *texts):
            raise ParamError(f"params.yaml: scorers.{name}: this name is taken; choose another")
    every = [*texts, *models]
    for key, name in (
        ("independent", plan.independent),
        *(("labelers", labeler) for labeler in plan.labelers),
    ):
        if name not in every:
            raise ParamError(
                f"params.yaml: report.{key} names '{name}', which is neither in evaluate.scorers "
                f"nor an entry of scorers that scores harm; there are {', '.join(every)}"
            )
        wanted = evaluate["sets"] if key == "independent" else [plan.set]
        _require_sets(key, name, wanted, models)
    parts = (plan.independent, *plan.labelers)
    return Scoring(
        plan.independent,
        plan.labelers,
        evaluate["threshold"],
        [name for name in every if name not in parts],
        {name: card.sets for name, card in models.items()},
    )


def _require_sets(key: str, name: str, wanted: Collection[str], models: Mapping[str, Card]) -> None:
    lacking = [one for one in wanted if name in models and one not in models[name].sets]
    if lacking:
        raise ParamError(
            f"params.yaml: report.{key} names '{name}', which did not score set {lacking[0]}; "
            f"scorers.{name}.sets needs {', '.join(wanted)}"
        )


def _answers(found: Mapping[str, Evaluation]) -> ByPolicy:
    return {policy: [*own.answers, *own.snapshots] for policy, own in found.items()}


def _with(tables: Mapping[str, Mapping[Key, float]], policy: str, row: Evaluated) -> Evaluated:
    named = scores.key(policy, row)
    own = {name: table[named] for name, table in tables.items() if named in table}
    return row.model_copy(update={"scores": row.scores | own}) if own else row
