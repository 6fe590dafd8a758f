"""The constitution: principles by which models judge, criticise and revise what was written."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

from stages.lib.records import Name
from stages.lib.runtime import yaml
from stages.lib.runtime.schema import Refusal, Strict, check


class ConstitutionError(Refusal):
    """A file of principles cannot be used."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; a model would be asked nothing")
    return text


Sentence = Annotated[str, AfterValidator(_not_blank)]


class Principle(Strict):
    """One thought about what makes a response better, in the three forms that models are asked."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
    """Its name in metrics and reports."""
    criterion: Name
    """What it is a part of: harmless, honest, helpful."""
    choose: Sentence
    """Asks which of two responses does better: `Choose the response that …`."""
    critique: Sentence
    """Asks what is wrong with one response."""
    revise: Sentence
    """Asks for a better one."""


def read(path: Path, criterion: str | None = None) -> list[Principle]:
    """Return the principles of a file in its order, or those of one criterion.

    Raises:
        ConstitutionError: there is no such file, it is no list of principles in YAML, an entry is
            incomplete or has a blank text, an id stands twice, or none has the criterion. The
            message names file and entry.
    """
    found: dict[str, Principle] = {}
    for number, entry in enumerate(_entries(path), start=1):
        principle = check(entry, Principle, _where(path, number, entry), ConstitutionError)
        if principle.id in found:
            raise ConstitutionError(
                f"{path}: entry {number} has the id '{principle.id}' of an earlier one; rename it"
            )
        found[principle.id] = principle
    fitting = [p for p in found.values() if criterion in (None, p.criterion)]
    if not fitting:
        has = ", ".join(sorted({p.criterion for p in found.values()}))
        raise ConstitutionError(f"{path}: no principle has the criterion {criterion}; it has {has}")
    return fitting


def _entries(path: Path) -> list[Any]:
    absent = "a constitution is a list of principles, as in data/sources/constitution.yaml"
    found = yaml.read(path, ConstitutionError, absent=absent)
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else type(found).__name__
        raise ConstitutionError(f"{path}: must be a list of principles, not {what}")
    return found


def _where(path: Path, number: int, entry: Any) -> str:
    name = entry.get("id") if isinstance(entry, dict) else None
    return f"{path}: {name}" if isinstance(name, str) and name else f"{path}: entry {number}"
