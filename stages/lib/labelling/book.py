"""A labeler's file: read once, appended to line by line, never rewritten.

A line is written by one call and forced to the disk before the page hears of it. A crash can
leave at most one piece of a line at the end, of an answer that was never acknowledged and that
the page still has. That piece is moved aside before the file is read or appended to; a whole line
that lacks only its line feed is given one. Anything else that is no label is refused.

Locks and pieces lie under .cache: the folder of labels is a dependency of the graph, and whatever
else lies in it would count as a label.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.lib.labelers import people
from stages.lib.records import AnyLabel
from stages.lib.runtime import locks
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check


class ElsewhereError(Exception):
    """A task was answered in another window after this one opened it."""

    def __init__(self, label: AnyLabel) -> None:
        super().__init__(label.prompt_id)
        self.label = label
        """What was answered there."""


class Book:
    """One labeler's file, shared by threads of this process and by other processes."""

    def __init__(self, path: Path, *, torn: Path = Path(".cache/labelling")) -> None:
        """Read the file, where there is one.

        Args:
            path: `<labeler>.jsonl`.
            torn: folder that pieces of torn lines are moved to.

        Raises:
            RecordError: a line is no label of this labeler, or the file is a link.
        """
        self.path, self.labeler, self._torn = path, path.stem, torn
        self.repaired: list[str] = []
        """What was mended, in words."""
        self._labels: list[AnyLabel] = []
        self._state: tuple[int, int, int] | None = None
        self._threads = threading.Lock()
        with self._alone():
            pass

    def labels(self) -> list[AnyLabel]:
        """Return every line, in order, those of other processes included."""
        with self._alone():
            return list(self._labels)

    def append(self, fields: Mapping[str, Any], *, seen: int) -> AnyLabel:
        """Write a label with the next revision and the time, and return it.

        Args:
            fields: the label without `revision` and `submitted`.
            seen: the highest revision that whoever answers knows of, 0 for none.

        Raises:
            RecordError: the fields are no label.
            ElsewhereError: there is a revision that was not seen; nothing is written.
            OSError: the line could not be written whole; the file is as it was.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        label: AnyLabel = parse({**fields, "submitted": now, "revision": 1})
        with self._alone():
            earlier = [one for one in self._labels if one.subject == label.subject]
            last = max(earlier, key=lambda one: one.revision, default=None)
            if last is not None and last.revision > seen:
                raise ElsewhereError(last)
            label = label.model_copy(update={"revision": last.revision + 1 if last else 1})
            self._write(line(label))
            self._labels.append(label)
            self._state = self._now()
        return label

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the file against other threads and processes, knowing what stands in it."""
        with self._threads:
            lock = locks.take(f"labels-{self.labeler}", f"{self.path} is being written")
            try:
                if self._state != self._now() or self._state is None:
                    self._require_own()
                    self._mend()
                    found = people.read(self.path) if self.path.exists() else []
                    self._labels = [label for _, label in found]
                    self._state = self._now()
                yield
            finally:
                lock.release()

    def _now(self) -> tuple[int, int, int] | None:
        """What changes when the file does; None where there is none."""
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _require_own(self) -> None:
        """An append to a link would change the file it leads to, such as one of DVC's cache."""
        if self.path.is_dir():
            raise RecordError(f"{self.path}: is a folder, and answers go to a file; move it away")
        if self.path.is_symlink() or (self.path.exists() and self.path.stat().st_nlink > 1):
            raise RecordError(
                f"{self.path}: is a link to a file elsewhere, which an answer would change as "
                f"well; `dvc unprotect {self.path}` makes it a file of its own"
            )

    def _mend(self) -> None:
        """Complete or move aside what follows the last line feed."""
        content = self.path.read_bytes() if self.path.exists() else b""
        piece = content.rpartition(b"\n")[2]
        if not piece:
            return
        try:
            json.loads(piece)  # of an object torn anywhere, no rest is JSON
        except ValueError:
            self._set_aside(piece, len(content) - len(piece))
        else:
            people.read(self.path)  # refuses what is no label, with its line
            self._write(b"\n")
            self.repaired.append(f"{self.path}: the last line had no line feed and was given one")

    def _set_aside(self, piece: bytes, start: int) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self._torn / f"{self.labeler}-{stamp}.torn"
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(piece)
        os.truncate(self.path, start)
        self.repaired.append(
            f"{self.path}: the last line was torn by a crash and never acknowledged; its "
            f"{len(piece)} bytes were moved to {aside}"
        )

    def _write(self, data: bytes) -> None:
        """Append all of `data` and force it to the disk, or leave the file as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(handle).st_size
            try:
                if os.write(handle, data) != len(data):
                    raise OSError(f"{self.path}: the disk took a part of the line only")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
        if new:
            _sync_folder(self.path.parent)


def _sync_folder(folder: Path) -> None:
    """Force a new file's name to the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse(row: Any) -> AnyLabel:
    """Return one label of plain data.

    Raises:
        RecordError: it is none.
    """
    label: AnyLabel = check(row, AnyLabel, "label", RecordError)
    return label


def line(label: AnyLabel) -> bytes:
    """Return a label as the line that is written: keys sorted, as all JSON Lines of the graph."""
    text = json.dumps(label.model_dump(mode="json"), ensure_ascii=False, sort_keys=True)
    return text.encode() + b"\n"
