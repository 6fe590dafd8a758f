"""A table of pairs: one row a pair, a column a field of the record.

Texts stand as they are; a chat's prompt, and what is no text, as JSON. Read back, the records are
the same. A spreadsheet may run what begins with `=`: open it as text.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from stages.lib.preferences.form import refuse
from stages.lib.records import Message, Pair
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check

COLUMNS = tuple(Pair.model_fields)
AS_JSON = ("p_chosen", "weight", "margin", "votes", "labelers", "junk")
FORM = "prompt_form"
"""Column that says how `prompt` is written: a text may look like JSON."""


def write(pairs: Iterable[Pair]) -> str:
    """Return pairs as a table."""
    out = io.StringIO(newline="")
    # All quoted: Python before 3.13 leaves a lone carriage return bare, which ends the row.
    table = csv.DictWriter(out, (*COLUMNS, FORM), lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writeheader()
    for pair in pairs:
        plain = pair.model_dump(mode="json")
        chat = not isinstance(pair.prompt, str)
        as_json = (*AS_JSON, "prompt") if chat else AS_JSON
        cells = {key: _json(plain[key]) if key in as_json else plain[key] for key in COLUMNS}
        table.writerow(cells | {FORM: "chat" if chat else "continuation"})
    return out.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def pair_of(row: Mapping[str, str], where: str) -> Pair:
    """Return the pair of a row.

    Raises:
        RecordError: it is none.
    """
    plain: dict[str, Any] = dict(row)
    chat = plain.pop(FORM, None) == "chat"
    for column in (*AS_JSON, "prompt") if chat else AS_JSON:
        try:
            plain[column] = json.loads(plain.get(column, ""))
        except json.JSONDecodeError:
            refuse(where, f"{column} is {plain.get(column)!r}, which is no JSON")
    if chat:
        plain["prompt"] = [check(turn, Message, where, RecordError) for turn in plain["prompt"]]
    found: Pair = check(plain, Pair, where, RecordError)
    return found
