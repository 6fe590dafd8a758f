"""Preferences in tables whose columns params name: comparisons of two texts, and ranked lists.

`Comparisons` reads rows of two texts and one or more verdicts, as crowds give them: one column an
annotator, or one row a vote with a column that names the labeler. Texts may stand in a second file
that is joined by a column. `Ranked` reads rows of several texts with ranks, scores or verdicts on
every two of them, as qa-feedback has (https://github.com/allenai/FineGrainedRLHF,
tasks/qa_feedback/data/README.md: six comparisons of four answers in the order 1-2, 1-3, 1-4, 2-3,
2-4, 3-4; 1 the first, 2 the second, 0 neither).

A verdict is a word or whole number that `values` translates; any other is refused. Texts may be
empty. A text that is none, as the `true` into which a spreadsheet turns the answer "True", is
refused unless `spelled` says what stands for it. A prompt's column may also hold a list, at any
depth, of texts, which are put on lines of their own, or a conversation, a list of turns.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.lib.importers import InsidePath, Row, reach
from stages.lib.preferences.form import (
    Body,
    Building,
    Collector,
    Given,
    PreferenceSet,
    body_of,
    conversation,
    messages_of,
    number,
    refuse,
)
from stages.lib.records import Form, Text
from stages.lib.runtime.schema import Strict

Verdict = Literal["first", "second", "tie"]
PLACES: dict[Verdict, tuple[int, int]] = {"first": (1, 2), "second": (2, 1), "tie": (1, 1)}
"""Places of the first and of the second, less is better."""

Columns = Annotated[list[Text], Field(min_length=1)]


class Join(Strict):
    """A file with more columns of the same rows."""

    path: InsidePath
    """Relative to the folder of preferences."""
    on: Text
    """Column by which its rows are found; both files have it, and here no value twice."""
    name: Text
    """Its columns are then called `name.column`."""


class TableSet(PreferenceSet):
    """What both kinds of table have."""

    form: Form
    """Of the prompts: one user turn of a chat, or a text to go on with."""
    prompt: Columns
    """Columns that make up the prompt, a blank line between them; blank ones are left out."""
    prompt_id: Text | None = None
    """Column that names the prompt; None: the number of the first row that has it."""
    labeler: Text | None = None
    """Column that names who judged."""
    spelled: dict[str, str] | None = None
    """What a text's cell that is no text stands for, by its JSON: {"true": "True"}."""


class Comparisons(TableSet):
    """Rows of two texts and verdicts on them."""

    adapter: Literal["comparisons"]
    first: Text
    """Column of the first text; `second` likewise."""
    second: Text
    first_model: Text | None = None
    """Columns that name who wrote them. Equal texts of one model are one completion."""
    second_model: Text | None = None
    verdicts: Columns
    """Columns of verdicts. Several are each a labeler's, who is called as the column is."""
    values: dict[str, Verdict]
    """What a verdict's cell says."""
    pair: Text | None = None
    """Column whose equal values are the same pair, where no model is named; None: the row."""
    in_order: bool
    """Whether the first was shown before the second; false: the order shown is not known."""
    skip: list[Literal["unjudged"]]
    """Left out and counted, and refused where not named. `unjudged`: a verdict's cell is empty."""
    join: Join | None = None

    @model_validator(mode="after")
    def _one_labeler(self) -> "Comparisons":
        if self.labeler is not None and len(self.verdicts) > 1:
            raise ValueError("with `labeler`, a row has one verdict; name one column")
        if (self.first_model is None) != (self.second_model is None):
            raise ValueError("name both first_model and second_model, or neither")
        return self


class Ranked(TableSet):
    """Rows of several texts and their order."""

    adapter: Literal["ranked"]
    texts: Columns
    """Columns of the texts, or one column that holds a list of them."""
    models: Columns | None = None
    """Columns that name who wrote them, as many, or one that holds a list."""
    places: Columns | None = None
    """Columns of their ranks or scores, as many, or one that holds a list."""
    best: Literal["low", "high"] | None = None
    """Which place is best."""
    verdicts: Text | None = None
    """Column with a list of verdicts on every two of them: 1-2, 1-3, …, 2-3, …."""
    values: dict[str, Verdict] | None = None
    """What a verdict says."""
    skip: list[Literal["unjudged"]]
    """Rows left out and counted, and refused where not named. `unjudged`: a place or verdict is
    missing."""

    @model_validator(mode="after")
    def _one_order(self) -> "Ranked":
        if (self.places is None) == (self.verdicts is None):
            raise ValueError("name either `places` or `verdicts`")
        if (self.places is None) != (self.best is None):
            raise ValueError("`places` need `best`: low for ranks, high for scores")
        if (self.verdicts is None) != (self.values is None):
            raise ValueError("`verdicts` need `values`, and only they")
        return self


@dataclass(frozen=True, slots=True)
class Cells:
    """A row, and how its cells are read."""

    row: dict[str, Any]
    where: str
    spelled: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a text."""
        return self.as_text(reach(self.row, column, self.where), column)

    def as_text(self, value: Any, column: str) -> str:
        """Return a cell's text, or what stands for it."""
        written = value if isinstance(value, str) else self.spelled.get(json.dumps(value))
        if written is None:
            refuse(
                self.where,
                f"{column} must be a text, not {json.dumps(value)[:40]}; `spelled` may say what "
                "stands for it",
            )
        return written

    def texts(self, columns: list[str]) -> list[str]:
        """Return the texts of columns, or of one column's list."""
        found = [reach(self.row, column, self.where) for column in columns]
        if len(found) == 1 and isinstance(found[0], list):
            return [self.as_text(one, columns[0]) for one in found[0]]
        return [self.as_text(one, column) for one, column in zip(found, columns, strict=True)]

    def word(self, column: str) -> str:
        """Return a cell that holds a word or a whole number, as text."""
        return self.as_word(reach(self.row, column, self.where), column)

    def as_word(self, value: Any, column: str) -> str:
        """Return a word or whole number as text; empty where there is none."""
        if value is None:
            return ""
        if not isinstance(value, str) and type(value) is not int:
            refuse(self.where, f"{column} must be a word or whole number, not {value!r}")
        return str(value).strip()

    def prompt(self, columns: list[str], form: Form) -> Body:
        """Return the prompt: a conversation in one column, or texts."""
        found = [reach(self.row, column, self.where) for column in columns]
        one = found[0]
        if len(found) == 1 and isinstance(one, list) and one and isinstance(one[0], dict):
            return conversation(messages_of(one, self.where, columns[0]), self.where)
        parts = [
            "\n".join(self._flat(value, column))
            for value, column in zip(found, columns, strict=True)
        ]
        return body_of(parts, form, self.where)

    def _flat(self, value: Any, column: str) -> Iterator[str]:
        if isinstance(value, list):
            for one in value:
                yield from self._flat(one, column)
        else:
            yield self.as_text(value, column)


def gather_comparisons(entry: Comparisons, rows: Iterable[Row], into: Collector) -> None:
    """Add every row, already joined.

    Raises:
        RecordError: a cell is missing or says nothing that params know, or a text is compared with
            itself.
    """
    for where, count, row in rows:
        cells = Cells(row, where, entry.spelled or {})
        item = _item(cells, count, entry, into)
        within = str(count) if entry.pair is None else f"={cells.word(entry.pair)}"
        pair = _pair(entry, cells, within, item)
        for column in entry.verdicts:
            value = cells.word(column)
            if not value:
                into.fault(where, "unjudged", f"{column} is empty", entry.skip)
                continue
            places = dict(
                zip(pair, PLACES[_verdict(value, column, entry.values, where)], strict=True)
            )
            worker = column if len(entry.verdicts) > 1 else _worker(entry, cells)
            item.rank(places, worker=worker, shown=pair if entry.in_order else None)


def _pair(entry: Comparisons, cells: Cells, within: str, item: Building) -> list[str]:
    given = []
    for column, model in ((entry.first, entry.first_model), (entry.second, entry.second_model)):
        author = None if model is None else cells.word(model)
        if author == "":
            refuse(cells.where, f"{model} is empty")
        place = f"{within}:{column}" if author is None else ""
        given.append(Given(cells.text(column), author, place))
    pair = item.add(given)
    if pair[0] == pair[1]:
        refuse(cells.where, f"compares {given[0].sampler}'s text with itself")
    return pair


def gather_ranked(entry: Ranked, rows: Iterable[Row], into: Collector) -> None:
    """Add every row.

    Verdicts that contradict no ranking become one; others stay a ranking of two each.

    Raises:
        RecordError: a cell is missing or says nothing that params know.
    """
    for where, count, row in rows:
        cells = Cells(row, where, entry.spelled or {})
        texts = cells.texts(entry.texts)
        if len(texts) < 2:
            refuse(where, f"has {len(texts)} texts; two or more can be ranked")
        models = cells.texts(entry.models) if entry.models else [None] * len(texts)
        if len(models) != len(texts):
            refuse(where, f"has {len(texts)} texts and {len(models)} models")
        told = _told(entry, cells, len(texts))
        if told is None:
            into.fault(where, "unjudged", "a place or verdict is missing", entry.skip)
            continue
        item = _item(cells, count, entry, into)
        both = enumerate(zip(texts, models, strict=True))
        ids = item.add([Given(text, model, f"{count}:{at}") for at, (text, model) in both])
        for places in told:
            item.rank(
                {ids[at]: place for at, place in places.items()}, worker=_worker(entry, cells)
            )


def _told(entry: Ranked, cells: Cells, size: int) -> list[dict[int, float]] | None:
    """Return what a row says: places by the texts' numbers, one set or one for every two texts."""
    if entry.verdicts is None or entry.values is None:
        found = [reach(cells.row, column, cells.where) for column in entry.places or []]
        values = found[0] if len(found) == 1 and isinstance(found[0], list) else found
        if len(values) != size:
            refuse(cells.where, f"has {size} texts and {len(values)} places")
        numbers = [number(value) for value in values]
        sign = 1 if entry.best == "low" else -1
        places = {at: sign * n for at, n in enumerate(numbers) if n is not None}
        return [places] if len(places) == size else None
    stated = reach(cells.row, entry.verdicts, cells.where)
    couples = list(combinations(range(size), 2))
    if not isinstance(stated, list) or len(stated) != len(couples):
        refuse(cells.where, f"{entry.verdicts} must be a list of {len(couples)} verdicts")
    words = [cells.as_word(one, entry.verdicts) for one in stated]
    if not all(words):
        return None
    column = entry.verdicts
    said = {
        couple: PLACES[_verdict(word, column, entry.values, cells.where)]
        for couple, word in zip(couples, words, strict=True)
    }
    return _ranking_of(said, size)


def _ranking_of(
    said: Mapping[tuple[int, int], tuple[int, int]], size: int
) -> list[dict[int, float]]:
    """Return one set of places that says the same as all verdicts, or each verdict by itself."""
    worse_than = dict.fromkeys(range(size), 0)
    for couple, places in said.items():
        for at, place in zip(couple, places, strict=True):
            worse_than[at] += place - 1
    agree = all(
        (worse_than[a] > worse_than[b]) - (worse_than[a] < worse_than[b]) == here - there
        for (a, b), (here, there) in said.items()
    )
    if agree:
        return [{at: float(count) for at, count in worse_than.items()}]
    return [
        {at: float(place) for at, place in zip(couple, places, strict=True)}
        for couple, places in said.items()
    ]


def _item(cells: Cells, count: int, entry: Comparisons | Ranked, into: Collector) -> Building:
    own = str(count) if entry.prompt_id is None else cells.word(entry.prompt_id)
    return into.prompt(cells.prompt(entry.prompt, entry.form), cells.where, own_id=own)


def _worker(entry: Comparisons | Ranked, cells: Cells) -> str | None:
    if entry.labeler is None:
        return None
    return cells.word(entry.labeler) or refuse(cells.where, f"{entry.labeler} is empty")


def _verdict(value: str, column: str, values: Mapping[str, Verdict], where: str) -> Verdict:
    if value not in values:
        refuse(where, f"{column} is {value!r}; values name {', '.join(values)}")
    return values[value]


def joined(rows: Iterable[Row], more: Iterable[Row], how: Join) -> Iterator[Row]:
    """Yield rows with the columns of another file under a name of its own.

    Raises:
        RecordError: a row has no counterpart, a value stands twice in the other file, or the name
            is a column already.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, _, row in more:
        key = str(reach(row, how.on, where))
        if key in found:
            refuse(where, f"{how.on} {key} stands at {found[key][0]} too")
        found[key] = where, row
    for where, count, row in rows:
        key = str(reach(row, how.on, where))
        if key not in found:
            refuse(where, f"{how.path} has no row with {how.on} {key}")
        if how.name in row:
            refuse(where, f"has a column {how.name} already; join under another name")
        yield where, count, row | {how.name: found[key][1]}
