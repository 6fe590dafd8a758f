"""A table of labels: one row a judgement of one completion, for spreadsheets and scripts.

    label,labeler,kind,criterion,prompt_id,completion_id,text,rank,junk,…

Rows with the same `label` are one line of data/labels. A ranking has a row for each completion, in
the order shown, with a `rank` (1 is best, equal ranks tie) or, in `junk`, the reason; thumbs have
`up`, true or false; a written answer has `answer`; a skip has `task` and `reason`. `preferences`
is JSON. `text` is there to be read and is checked against data/completions.

Written by hand, a table needs `labeler`, `prompt_id`, `completion_id`, and `rank` or `junk`; where
a column is absent, rows are rankings of revision 1, those of a labeler, prompt and criterion are
one label, and the criterion is the command's. All four kinds of label come back as they went. CSV
knows no difference between an empty text and none, so a label with an empty note, time, hash or
reason is refused on the way out; so are scores of completions that were not shown. A spreadsheet
may run what begins with `=`: open it as text.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from stages.lib.importers import Row
from stages.lib.preferences.form import refuse
from stages.lib.preferences.tools import Known, Read, Task, ToolError
from stages.lib.records import AnyLabel, Ranking, Thumbs
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check

COLUMNS = (
    "label", "labeler", "kind", "criterion", "prompt_id", "completion_id", "text", "rank", "junk",
    "score", "preferences", "up", "answer", "task", "reason", "repeat", "confidence", "note",
    "ms_active", "submitted", "instructions_sha", "task_sha", "revision",
)  # fmt: skip

Convert = Callable[[str], Any]


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


WHOLE: dict[str, Convert] = {
    "criterion": str,
    "note": str,
    "submitted": str,
    "instructions_sha": str,
    "task_sha": str,
    "ms_active": int,
    "confidence": float,
    "revision": int,
}
"""Columns that every kind of label has, by how a cell is read."""

OF_KIND: dict[str, dict[str, Convert]] = {
    "ranking": {"repeat": _truth, "preferences": json.loads},
    "thumbs": {"up": _truth},
    "demonstration": {"answer": str},
    "skip": {"task": str, "reason": str, "repeat": _truth},
}


def write(labels: Iterable[AnyLabel], known: Known) -> str:
    """Return labels as a table.

    Raises:
        ToolError: a label has what CSV cannot hold.
    """
    out, table = _table()
    for count, label in enumerate(labels, start=1):
        common = {"label": count, "kind": label.kind, "labeler": label.labeler}
        common["prompt_id"] = label.prompt_id
        plain = label.model_dump(mode="json")
        for column in (*WHOLE, *OF_KIND[label.kind]):
            common[column] = _cell(plain[column], label, column)
        for cid, cells in _rows(label).items():
            known_text = known.completions[cid].text if cid in known.completions else ""
            table.writerow(common | {"completion_id": cid, "text": known_text} | cells)
    return out.getvalue()


def write_open(tasks: Iterable[Task]) -> str:
    """Return tasks as a table whose labeler, rank and junk are to be filled in."""
    out, table = _table()
    for count, task in enumerate(tasks, start=1):
        cells = {"label": count, "kind": "ranking", "criterion": task.criterion}
        for completion in task.completions:
            about = {"prompt_id": task.prompt.id, "completion_id": completion.id}
            table.writerow(cells | about | {"text": completion.text, "revision": 1})
    return out.getvalue()


def _table() -> "tuple[io.StringIO, csv.DictWriter[str]]":
    out = io.StringIO(newline="")
    # All quoted: Python before 3.13 leaves a lone carriage return bare, which ends the row.
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writeheader()
    return out, table


def _cell(value: Any, label: AnyLabel, column: str) -> str:
    if value == "":
        raise ToolError(
            f"{label.labeler}'s {label.kind} of {label.prompt_id} has an empty {column}, which CSV "
            "does not tell from none"
        )
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def _rows(label: AnyLabel) -> dict[str, dict[str, str]]:
    """Return the cells of each completion; one empty id where a label is about none."""
    if isinstance(label, Thumbs):
        return {label.completion_id: {}}
    if not isinstance(label, Ranking):
        return {cid: {} for cid in getattr(label, "shown", [])} or {"": {}}
    scores = label.scores or {}
    if label.scores is not None and (not scores or scores.keys() - set(label.shown)):
        raise ToolError(
            f"{label.labeler} scores of {label.prompt_id} none or more than was shown; CSV has a "
            "score beside a completion"
        )
    return {
        cid: {
            "rank": str(label.ranks.get(cid, "")),
            "junk": _cell(label.junk.get(cid), label, "junk"),
            "score": _cell(scores.get(cid), label, "score"),
        }
        for cid in label.shown
    } or {"": {}}


def read(rows: Iterable[Row], known: Known, criterion: str | None) -> Read:
    """Return the labels of a table.

    Args:
        rows: each with where it stands.
        known: what labels may be about.
        criterion: of rows without one.

    Raises:
        RecordError: rows of a label disagree, or it is no label.
    """
    found: dict[tuple[str, ...], list[tuple[str, dict[str, str]]]] = {}
    for where, _, row in rows:
        if row.keys() - set(COLUMNS):
            unknown = sorted(row.keys() - set(COLUMNS))[0]
            refuse(where, f"has a column {unknown}; a table of labels has {', '.join(COLUMNS)}")
        for needed in ("labeler", "prompt_id"):
            if not row.get(needed):
                refuse(where, f"{needed} is empty")
        key = ("labeler", "prompt_id", "criterion", "revision", "repeat", "label")
        found.setdefault(tuple(row.get(k, "") for k in key), []).append((where, row))
    labels = [_label(group, known, criterion) for group in found.values()]
    return Read(
        [(group[0][0], x) for group, x in zip(found.values(), labels, strict=True)], Counter()
    )


def _label(
    group: list[tuple[str, dict[str, str]]], known: Known, criterion: str | None
) -> AnyLabel:
    where, first = group[0]
    kind = first.get("kind") or "ranking"
    if kind not in OF_KIND:
        refuse(where, f"kind must be one of {', '.join(OF_KIND)}, not '{kind}'")
    plain = {"schema_version": 1, "kind": kind, "labeler": first["labeler"], "revision": 1}
    plain["prompt_id"] = first["prompt_id"]
    if criterion is not None:
        plain["criterion"] = criterion
    for column, convert in (WHOLE | OF_KIND[kind]).items():
        for other_where, row in group:
            if row.get(column, "") != first.get(column, ""):
                refuse(other_where, f"has another {column} than {where}, of the same label")
        if first.get(column):
            plain[column] = _converted(first[column], convert, column, where)
    plain |= dict(_about(group, kind))
    label: AnyLabel = check(plain, AnyLabel, where, RecordError)
    texts = {row["completion_id"]: row.get("text") or None for _, row in group if _id(row)}
    known.require(label.prompt_id, texts, where)
    return label


def _about(group: list[tuple[str, dict[str, str]]], kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the fields that name completions."""
    ids = [_id(row) for _, row in group if _id(row)]
    if kind == "thumbs":
        if len(ids) != 1:
            refuse(group[0][0], f"thumbs are of one completion, not {len(ids)}")
        yield "completion_id", ids[0]
    elif kind == "skip":
        yield "shown", ids
    elif kind == "ranking":
        yield "shown", ids
        rated: Mapping[str, Mapping[str, Any]] = {
            name: {
                _id(row): _converted(row[name], convert, name, where)
                for where, row in group
                if row.get(name)
            }
            for name, convert in (("rank", int), ("junk", str), ("score", float))
        }
        yield "ranks", rated["rank"]
        yield "junk", rated["junk"]
        if rated["score"]:
            yield "scores", rated["score"]


def _id(row: Mapping[str, str]) -> str:
    return row.get("completion_id", "")


def _converted(text: str, convert: Convert, column: str, where: str) -> Any:
    try:
        return convert(text)
    except (ValueError, KeyError):
        refuse(where, f"{column} is {text!r}, which is none")
