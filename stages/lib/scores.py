"""What a model says of the answers that `evaluate` wrote: a probability each, and the model's card.

A model is asked by an entry of `scorers` in params.yaml. Its scores are joined to the answers they
are of by name, and must be of exactly those.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.order import by_hash
from stages.lib.records import Evaluated, Name
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict, check

SCORES = "scores.jsonl"
CARD = "identity.json"

ByPolicy = Mapping[str, Sequence[Evaluated]]
"""Policy to its answers, those of states on the way through its training among them."""
Key = tuple[str, int | None, str, str, int]
"""The name of an answer: the values of NAMES."""
NAMES = ("policy", "step", "set", "prompt_id", "index")


class Score(Strict):
    """What one entry of `scorers` says of one answer."""

    policy: Name
    step: Annotated[int, Field(ge=1)] | None
    """Of a state on the way through the policy's training; None: of the policy itself."""
    set: Name
    prompt_id: Name
    index: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(ge=0, le=1)]
    """A probability: of harm, or that the answer is better than the baseline's."""

    @property
    def key(self) -> Key:
        """Which answer it is of."""
        return self.policy, self.step, self.set, self.prompt_id, self.index


class Card(Strict):
    """What scored, what it was asked, and what it read of a text."""

    kind: Literal["classifier", "judge", "preference"]
    model: str
    """Repository, package or folder that it came from."""
    revision: str
    licence: str
    asks: str
    """What a score is the probability of."""
    reads: str
    """What it reads of a text, and what it cuts."""
    texts: Annotated[int, Field(ge=0)]
    """Different texts, or pairs of texts, that it was asked about."""
    cut: Annotated[int, Field(ge=0)]
    """Of those, how many it did not read to their end."""
    sets: Annotated[list[Name], Field(min_length=1)]
    """Of `evaluate.sets`, those whose answers have a score."""
    prompts: Annotated[int, Field(ge=1)] | None
    """Of each set, the first by hash; None: all."""
    measures: dict[str, float]
    """What it reports of itself."""


def score(policy: str, row: Evaluated, value: float) -> Score:
    """Return the score of an answer.

    Raises:
        RecordError: the value is no probability: a model that overflowed gives NaN.
    """
    named = dict(zip(NAMES, key(policy, row), strict=True))
    where = f"score of completion {row.index} of prompt {row.prompt_id} by {policy}"
    return check({**named, "score": round(value, 6)}, Score, where, RecordError)


def key(policy: str, row: Evaluated) -> Key:
    """Return the name of an answer; a `Snapshot` has a step."""
    return policy, getattr(row, "step", None), row.set, row.prompt_id, row.index


def asked(
    answers: ByPolicy, sets: Sequence[str], prompts: int | None
) -> list[tuple[str, Evaluated]]:
    """Return the answers that are scored, each with its policy.

    Args:
        answers: all there are.
        sets: whose answers.
        prompts: of each set, the first by hash; None: all.
    """
    first = {
        name: sorted({r.prompt_id for own in answers.values() for r in own if r.set == name},
                     key=by_hash)[:prompts]
        for name in sets
    }  # fmt: skip
    return [
        (policy, row)
        for policy, own in answers.items()
        for row in own
        if row.prompt_id in first.get(row.set, ())
    ]


def compared(
    answers: ByPolicy, sets: Sequence[str], prompts: int | None, baseline: str
) -> list[tuple[str, Evaluated]]:
    """Return the answers that are compared with the baseline's: the policies' last."""
    given = asked(answers, sets, prompts)
    return [(who, row) for who, row in given if who != baseline and key(who, row)[1] is None]


def read_card(folder: Path) -> Card:
    """Return the card that `score` wrote of a model."""
    path = folder / CARD
    return check(files.read_json(path), Card, str(path), RecordError)


def read(folder: Path, wanted: Iterable[Key]) -> dict[Key, float]:
    """Return the scores that `score` wrote, by answer.

    Args:
        folder: of one entry of `scorers`.
        wanted: the answers that must have a score, and no others.

    Raises:
        RecordError: an answer has no score or two, or a score is of no answer. A missing score is
            not a score of zero.
    """
    path, wanted, found = folder / SCORES, set(wanted), {}
    again = f"`dvc repro score@{folder.name}` scores what evaluate wrote"
    for row in files.read_lines(path, Score):
        if row.key in found:
            raise RecordError(f"{path}: {_named(row.key)} has two scores; {again}")
        if row.key not in wanted:
            raise RecordError(
                f"{path}: {_named(row.key)} is scored, and evaluate wrote no such answer; {again}"
            )
        found[row.key] = row.score
    for lacking in sorted(wanted - found.keys(), key=str):
        raise RecordError(f"{path}: {_named(lacking)} has no score; {again}")
    return found


def _named(key: Key) -> str:
    policy, step, of, prompt, index = key
    at = "" if step is None else f" after {step} steps"
    return f"completion {index} of prompt {prompt} (set {of}) by {policy}{at}"
