"""Reads what the report is made from: evaluations, training curves, and the hash of each file."""

import csv
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.lib.identity_answers import IdentityAnswer
from stages.lib.neutral_text import PassageLoss
from stages.lib.records import Evaluated, Leaning
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.snapshots import Snapshot

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` wrote of one policy."""

    answers: list[Evaluated]
    snapshots: list[Snapshot]
    """Answers of the policy as it was on the way through its training."""
    losses: list[PassageLoss]
    """On neutral text."""
    named: list[IdentityAnswer]
    """Answers to beginnings that differ in the group named; none where that is not measured."""
    leanings: list[Leaning]
    """On held-out pairs; none of the base itself."""


def evaluations(folder: Path, policies: Iterable[str]) -> dict[str, Evaluation]:
    """Return the evaluation of each policy, in the order of params.yaml.

    Raises:
        RecordError: one is missing or empty, belongs to no entry, or holds a line that is no
            record.
    """
    own = files.entry_files(folder, policies, section="policies", suffix="")
    return {name: evaluation(path) for name, path in own.items()}


def evaluation(folder: Path) -> Evaluation:
    """Return one policy's."""
    answers = files.read_lines(folder / "answers.jsonl", Evaluated)
    if not answers:
        raise RecordError(f"{folder / 'answers.jsonl'}: holds no completion")
    return Evaluation(
        answers,
        files.read_lines(folder / "snapshots.jsonl", Snapshot),
        files.read_lines(folder / "neutral_text.jsonl", PassageLoss),
        files.read_lines(folder / "identities.jsonl", IdentityAnswer),
        files.read_lines(folder / "pairs.jsonl", Leaning),
    )


def curves(path: Path) -> dict[str, list[float | None]]:
    """Return the columns of a training curve: None for a cell that is empty or not finite.

    Raises:
        RecordError: the file is absent, lacks a column `step`, or holds a cell that is no number.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    with path.open(encoding="utf-8", newline="") as lines:
        table = list(csv.DictReader(lines))
    if table and "step" not in table[0]:
        raise RecordError(f"{path}: has no column 'step'; it has {', '.join(table[0])}")
    columns: dict[str, list[float | None]] = {}
    for number, row in enumerate(table, start=2):
        for name, cell in row.items():
            try:
                found = float(cell) if cell else None
            except (TypeError, ValueError):
                raise RecordError(f"{path}:{number}: {name} is {cell!r}, not a number") from None
            columns.setdefault(name, []).append(
                found if found is None or math.isfinite(found) else None
            )
    return columns


def provenance(sources: list[Path], entries: Collection[str]) -> list[tuple[str, str]]:
    """Return the SHA-256 of each file the report was made from.

    Args:
        sources: files, and folders whose files are counted where they are an entry's or a split's.
        entries: of params.yaml that have files of their own.
    """
    wanted = {f"{name}.{kind}" for name in entries for kind in ("json", "csv")}
    wanted |= {f"{split}.jsonl" for split in SPLITS}
    found: list[tuple[str, str]] = []
    for source in sources:
        inside = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in inside:
            if path == source or path.name in wanted or path.parent.name in entries:
                found.append((path.relative_to(source.parent).as_posix(), files.sha256(path)))
    return found
