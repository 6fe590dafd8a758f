"""Records kept on disk and given back prompt by prompt, however many there are.

SQLite sorts what is too much for memory. Its file has no name, so nothing is left of it however
the process ends; it lies in SQLITE_TMPDIR, or where that is not set in /var/tmp, and takes up to
three times the room of the files that were read.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, TypeVar

from pydantic import TypeAdapter

from stages.lib.runtime.files import RecordError

T = TypeVar("T")
CACHE_KIB = 4 * 1024
"""Of the file, held in memory."""


class Shelf:
    """Records of some kinds, each of one prompt."""

    def __init__(self, *kinds: Any) -> None:
        """Begin an empty shelf.

        Args:
            kinds: types of record; of one prompt they are given back in this order.
        """
        self._adapters = [TypeAdapter(kind) for kind in kinds]
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("PRAGMA temp_store = FILE")
        self._file.execute("CREATE TABLE line (prompt TEXT, kind INT, place TEXT, record TEXT)")
        self._file.execute("CREATE TABLE named (kind INT, id TEXT, UNIQUE (kind, id))")
        self._file.execute("BEGIN")  # one for all: each by itself is written out by itself

    def add(self, kind: int, lines: Iterable[tuple[str, Any]], *, what: str | None = None) -> None:
        """Take in records of one kind, each with where it stands.

        Args:
            kind: the place of its type among `kinds`.
            lines: where, and the record.
            what: the word for one, where their ids must differ; None: they have none.

        Raises:
            RecordError: an id occurs twice; the message begins with where the second stands.
        """
        dump = self._adapters[kind].dump_json
        for where, record in lines:
            if what is not None:
                self._name(kind, record.id, where, what)
            prompt = getattr(record, "prompt_id", None) or record.id
            row = prompt, kind, where, dump(record).decode()
            self._file.execute("INSERT INTO line VALUES (?, ?, ?, ?)", row)

    def _name(self, kind: int, name: str, where: str, what: str) -> None:
        try:
            self._file.execute("INSERT INTO named VALUES (?, ?)", (kind, name))
        except sqlite3.IntegrityError:
            raise RecordError(f"{where}: {what} {name} occurs twice; ids must differ") from None

    def each(self, kind: int) -> Iterator[Any]:
        """Yield the records of one kind in the order they came."""
        found = self._file.execute("SELECT record FROM line WHERE kind = ? ORDER BY rowid", (kind,))
        for (record,) in found:
            yield self._adapters[kind].validate_json(record)

    def stray(self, kind: int, of: int) -> tuple[str, Any] | None:
        """Return the first record of one kind whose prompt is no record of another, and where."""
        found = self._file.execute(
            "SELECT place, record FROM line WHERE kind = ? AND NOT EXISTS "
            "(SELECT 1 FROM named WHERE named.kind = ? AND id = prompt) ORDER BY rowid LIMIT 1",
            (kind, of),
        ).fetchone()
        return found and (found[0], self._adapters[kind].validate_json(found[1]))

    def by_prompt(self) -> Iterator[tuple[str, list[list[tuple[str, Any]]]]]:
        """Yield each prompt's id, sorted, and its records of each kind in the order they came."""
        order = "SELECT prompt, kind, place, record FROM line ORDER BY prompt, kind, rowid"
        for prompt, rows in groupby(self._file.execute(order), key=lambda row: row[0]):
            found: list[list[tuple[str, Any]]] = [[] for _ in self._adapters]
            for _, kind, where, record in rows:
                found[kind].append((where, self._adapters[kind].validate_json(record)))
            yield prompt, found
