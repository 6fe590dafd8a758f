"""Public preference sets, as entries of params: one class for each format, told apart by `adapter`.

    sets.read(entry, Path("data/preferences")) -> Gathered(items, left_out)

Every row becomes part of an item, is left out for a reason that its entry names, or is refused by
file and row. Nothing is sampled or split here.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import importers
from stages.lib.importers import Row
from stages.lib.preferences import (
    hh_rlhf,
    open_assistant,
    summarize_from_feedback,
    tables,
    ultrafeedback,
)
from stages.lib.preferences.form import Collector, Gathered, PreferenceSet, refuse
from stages.lib.preferences.hh_rlhf import HhRlhf
from stages.lib.preferences.open_assistant import OpenAssistant
from stages.lib.preferences.summarize_from_feedback import SummarizeFromFeedback
from stages.lib.preferences.tables import Comparisons, Ranked
from stages.lib.preferences.ultrafeedback import UltraFeedback, UltraFeedbackBinarized

Source = Annotated[
    HhRlhf
    | UltraFeedback
    | UltraFeedbackBinarized
    | SummarizeFromFeedback
    | OpenAssistant
    | Comparisons
    | Ranked,
    Field(discriminator="adapter"),
]

ADAPTERS: dict[type[PreferenceSet], Callable[[Any, Iterable[Row], Collector], None]] = {
    HhRlhf: hh_rlhf.gather,
    UltraFeedback: ultrafeedback.gather,
    UltraFeedbackBinarized: ultrafeedback.gather_binarized,
    SummarizeFromFeedback: summarize_from_feedback.gather,
    OpenAssistant: open_assistant.gather,
    Comparisons: tables.gather_comparisons,
    Ranked: tables.gather_ranked,
}


def read(source: PreferenceSet, folder: Path) -> Gathered:
    """Read one set.

    Args:
        source: its entry in params.
        folder: the folder of preferences.

    Raises:
        RecordError: the set cannot be read, a row does not fit, or none is left.
    """
    into = Collector(source)
    rows = _rows(source, folder)
    if isinstance(source, Comparisons) and source.join is not None:
        more = importers.file_rows(
            folder / source.join.path, named_by=f"pairs.sources, {source.name}"
        )
        rows = tables.joined(rows, _objects(more), source.join)
    ADAPTERS[type(source)](source, rows, into)
    found = into.gathered()
    if not found.items:
        refuse(source.source, f"gives no preference; left out: {dict(found.left_out) or 'nothing'}")
    return found


def _rows(source: PreferenceSet, folder: Path) -> Iterator[Row]:
    if source.path is not None:
        found = importers.file_rows(folder / source.path, named_by=f"pairs.sources, {source.name}")
    else:
        found = importers.hub_rows(source.hub, folder)
    return _objects(islice(found, source.rows))


def _objects(rows: Iterable[Row]) -> Iterator[Row]:
    for where, count, row in rows:
        if not isinstance(row, dict):
            refuse(where, f"must be an object with named fields, not {type(row).__name__}")
        yield where, count, row
