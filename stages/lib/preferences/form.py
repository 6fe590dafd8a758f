"""What every format becomes: prompts, their completions, and what labelers said of them.

Nothing of it may give the verdict away: a completion whose author a set does not name is called
after the set and numbered by a hash of its text, and where a set does not say in which order it
showed texts, the order is a hash as well.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, StringConstraints, model_validator

from stages.lib import order
from stages.lib.importers import Commit, HubSource, InsidePath, Repository, reach
from stages.lib.records import (
    AnyLabel,
    Completion,
    Form,
    Message,
    Name,
    Ranking,
    SourcePrompt,
    Text,
)
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict, check

Body = str | list[Message]
"""A text to go on with, or a conversation to answer."""

SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, what was answered to it, and what was said of that."""

    prompt: SourcePrompt
    completions: list[Completion]
    labels: list[AnyLabel]


@dataclass(frozen=True, slots=True)
class Gathered:
    """What one set gave."""

    items: list[Item]
    left_out: Counter[str]
    """Rows, messages or completions that went no further, by reason."""


class PreferenceSet(Strict):
    """What every entry of a public set has, whatever its format.

    `kind: local` needs `path`; `kind: hub` needs `repository`, `revision` and `split`.
    """

    kind: Literal["local", "hub"]
    path: InsidePath | None = None
    """Relative to the folder of preferences: .jsonl, .json, .csv, each also .gz, or .parquet."""
    repository: Repository | None = None
    """owner/name. A folder of this name in the folder of preferences is read instead of the hub."""
    revision: Commit | None = None
    subset: Text | None = None
    """The hub calls it config; None is the only or the default one."""
    split: Text | None = None
    """As the repository names it."""
    name: SetName
    """First part of its prompts' ids; labeler and sampler, where the set names none."""
    category: Name
    """Of its prompts."""
    criterion: Name
    """What its labelers were asked: helpful, honest, harmless, overall."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """How many are read, from the first; None reads all."""

    @model_validator(mode="after")
    def _one_place(self) -> "PreferenceSet":
        wanted = {"local": ["path"], "hub": ["repository", "revision", "split"]}[self.kind]
        foreign = {"local": ["repository", "revision", "subset", "split"], "hub": ["path"]}
        for key in wanted:
            if getattr(self, key) is None:
                raise ValueError(f"kind {self.kind} needs '{key}'")
        for key in foreign[self.kind]:
            if getattr(self, key) is not None:
                raise ValueError(f"kind {self.kind} has no '{key}'; drop it")
        return self

    @property
    def hub(self) -> HubSource:
        """The same place as the importers of prompts know it."""
        keys = ("kind", "repository", "revision", "subset", "split")
        return HubSource.model_validate({key: getattr(self, key) for key in keys})

    @property
    def source(self) -> str:
        """Where its prompts come from, as they state it."""
        return self.path or f"{self.repository}@{self.revision}"


class Names:
    """Turns what a set calls somebody into a `Name`, so that two are never one.

    What a name may not hold becomes a hyphen, and hyphens at the ends are dropped. Where that
    gives a name that another has already, six hexadecimal digits of the SHA-256 are added.
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def of(self, original: str) -> str:
        """Return the name of `original`, the same each time it is asked for."""
        if original not in self._given:
            name = re.sub(r"[^A-Za-z0-9_.#]+", "-", original).strip("-_.#")
            if not name or name in self._given.values():
                digest = hashlib.sha256(original.encode()).hexdigest()[:6]
                name = f"{name}-{digest}".strip("-")
            self._given[original] = name
        return self._given[original]


@dataclass(frozen=True, slots=True)
class Given:
    """A text of a row, before it is a completion."""

    text: str
    sampler: str | None
    """Who wrote it, where the set says so."""
    place: str
    """Texts of a prompt with equal text, sampler and place are one completion: empty where a
    sampler's equal texts are one, else which text of which row it is."""


@dataclass(slots=True)
class Building:
    """An item that rows are added to."""

    prompt: SourcePrompt
    entry: PreferenceSet
    names: Names
    completions: dict[tuple[str | None, str, str], Completion] = field(default_factory=dict)
    labels: list[AnyLabel] = field(default_factory=list)
    said: Counter[tuple[str, frozenset[str]]] = field(default_factory=Counter)
    drawn: Counter[str] = field(default_factory=Counter)

    def add(self, texts: Sequence[Given]) -> list[str]:
        """Return the ids of a row's texts, in the order given.

        New ones are numbered in the order of a hash of their text, so that an id says nothing of
        its rank.
        """
        keys = [(t.sampler, t.text, t.place) for t in texts]
        for key in sorted(keys, key=lambda key: (order.by_hash(key[1]), key[2])):
            if key not in self.completions:
                self.completions[key] = self._completion(key[0], key[1])
        return [self.completions[key].id for key in keys]

    def _completion(self, author: str | None, text: str) -> Completion:
        sampler = self.names.of(author) if author else self.entry.name
        index = self.drawn[sampler]
        self.drawn[sampler] += 1
        return Completion(
            id=f"{self.prompt.id}/{sampler}-{index}",
            prompt_id=self.prompt.id,
            sampler=sampler,
            index=index,
            text=text,
            finish="stop",
            tokens=None,
            logp=None,
        )

    def rank(
        self,
        places: Mapping[str, float],
        *,
        worker: str | None,
        shown: Sequence[str] | None = None,
        scores: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """Add what one labeler said of some completions.

        Args:
            places: completion id to place, less is better, equal is a tie.
            worker: as the set calls the labeler; None is the set as a whole.
            shown: ids in the order shown; None takes a hash's.
            scores: higher is better, where the labeler gave some.
            note: to go with it.

        Who judges the very same completions again is asked again: from the second time on the
        ranking is a `repeat`, which makes no pairs.
        """
        labeler = (
            self.entry.name if worker is None else f"{self.entry.name}-{self.names.of(worker)}"
        )
        hashed = sorted(places, key=lambda cid: order.by_hash(f"{labeler} {cid}"))
        before = self.said[labeler, frozenset(places)]
        self.said[labeler, frozenset(places)] += 1
        self.labels.append(
            Ranking(
                schema_version=1,
                kind="ranking",
                criterion=self.entry.criterion,
                prompt_id=self.prompt.id,
                labeler=labeler,
                shown=hashed if shown is None else list(shown),
                ranks=competition(places),
                junk={},
                scores=None if scores is None else dict(scores),
                note=note,
                repeat=before > 0,
                revision=max(1, before),
            )
        )


class Collector:
    """Gathers the rows of one set into items; rows with the same prompt are one item."""

    def __init__(self, entry: PreferenceSet) -> None:
        self.entry = entry
        self.names = Names()
        self.left_out: Counter[str] = Counter()
        self._items: dict[str, Building] = {}
        self._ids: dict[str, str] = {}

    def prompt(self, body: Body, where: str, *, own_id: str) -> Building:
        """Return the item of a prompt.

        Args:
            body: the prompt.
            where: of the row.
            own_id: what the set calls the prompt, or the row's number; of equal prompts the first
                counts.

        Raises:
            RecordError: the prompt is blank or its turns do not alternate, or the set gives the id
                to another prompt.
        """
        key = body if isinstance(body, str) else _dumped([m.model_dump() for m in body])
        if key not in self._items:
            name = f"{self.entry.name}:{Names().of(own_id)}"
            first = self._ids.setdefault(name, where)
            if first != where:
                refuse(where, f"calls its prompt {name}, as the other prompt of {first}")
            self._items[key] = Building(
                self._source_prompt(name, body, where), self.entry, self.names
            )
        return self._items[key]

    def _source_prompt(self, name: str, body: Body, where: str) -> SourcePrompt:
        said = (
            {"form": "continuation", "text": body}
            if isinstance(body, str)
            else {"form": "chat", "messages": body}
        )
        rest = {"id": name, "category": self.entry.category, "source": self.entry.source}
        prompt: SourcePrompt = check(said | rest, SourcePrompt, where, RecordError)
        return prompt

    def fault(self, where: str, reason: str, because: str, skip: Sequence[str]) -> None:
        """Count a row that cannot be used under a reason that params skip.

        Raises:
            RecordError: params do not skip it.
        """
        if reason not in skip:
            refuse(where, f"{because}; `skip: [{reason}]` leaves such rows out and counts them")
        self.left_out[reason] += 1

    def gathered(self) -> Gathered:
        """Return the items in the order of their first rows; ones without labels are no items."""
        found = [
            Item(one.prompt, list(one.completions.values()), one.labels)
            for one in self._items.values()
            if one.labels
        ]
        return Gathered(found, +self.left_out)


def competition(places: Mapping[str, float]) -> dict[str, int]:
    """Return competition ranks: places 0, 1, 1, 7 give 1, 2, 2, 4."""
    return {key: 1 + sum(other < at for other in places.values()) for key, at in places.items()}


def body_of(parts: Sequence[str], form: Form, where: str) -> Body:
    """Return texts, blank ones left out and a blank line between them, as a prompt of a form."""
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        refuse(where, "its prompt is blank")
    return text if form == "continuation" else [Message(role="user", content=text)]


def messages_of(value: Any, where: str, name: str) -> list[dict[str, str]]:
    """Return a list of turns, each an object with `role` and `content`; other keys are not read.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(value, list) or not value:
        refuse(where, f"{name} must be a list of turns with role and content")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        ):
            refuse(where, f"{name} must be a list of turns with role and content")
        turns.append({"role": turn["role"], "content": turn["content"]})
    return turns


def conversation(turns: Sequence[Mapping[str, str]], where: str) -> list[Message]:
    """Return turns as messages.

    Raises:
        RecordError: a turn is blank, or its role is none of system, user, assistant.
    """
    return [check(dict(turn), Message, where, RecordError) for turn in turns]


def text(row: Any, column: str, where: str) -> str:
    """Return a column that must hold a text; it may be empty.

    Raises:
        RecordError: it holds something else, is absent, or `row` has no columns.
    """
    if not isinstance(row, Mapping):
        refuse(where, f"must have a {column}, not be {row!r}")
    found = reach(dict(row), column, where)
    if not isinstance(found, str):
        refuse(where, f"{column} must be a text, not {found!r}")
    return found


def number(value: Any) -> float | None:
    """Return a number, also one written as text; None where it is none, as N/A is."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def refuse(where: str, what: str) -> NoReturn:
    """Refuse a row."""
    raise RecordError(f"{where}: {what}") from None


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
