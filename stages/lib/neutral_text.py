"""Neutral text: passages on which the loss of two language models is compared."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib.records import Name, Text
from stages.lib.runtime.files import RecordError, raw_lines
from stages.lib.runtime.schema import Strict, check


class Passage(Strict):
    """A whole short text that no model of the graph has learned from."""

    id: Name
    genre: Name
    """What kind of writing it is, for results by kind."""
    text: Text


class PassageLoss(Strict):
    """A policy's loss on one passage."""

    id: Name
    genre: Name
    tokens: Annotated[int, Field(ge=1)]
    """Predicted, so all but the first."""
    nll: Annotated[float, Field(ge=0)]
    """Sum over them of -log p(token | all before it), in nats."""


def read(path: Path) -> list[Passage]:
    """Return the passages of a JSON Lines file in its order.

    Raises:
        RecordError: there is no such file or nothing in it, a line is not a passage or has a blank
            text, or an id or a text stands twice. The message begins with file:line.
    """
    found: dict[str, tuple[str, Passage]] = {}
    texts: dict[str, str] = {}
    for where, row in raw_lines(path):
        passage = check(row, Passage, where, RecordError)
        if not passage.text.strip():
            raise RecordError(f"{where}: text is blank; a loss on nothing is no number")
        if passage.id in found:
            earlier = found[passage.id][0]
            raise RecordError(f"{where}: id {passage.id} stands at {earlier} already; change one")
        if passage.text in texts:
            raise RecordError(
                f"{where}: the text of {texts[passage.text]} again; it would count twice"
            )
        found[passage.id] = where, passage
        texts[passage.text] = passage.id
    if not found:
        raise RecordError(f"{path}: has no passage; each is a line with id, genre and text")
    return [passage for _, passage in found.values()]
