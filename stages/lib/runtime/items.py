"""Keeps what models made, item by item, so that N new items cost N and a kill costs one batch.

    .cache/items/<kind>/<scope>/<writer>.jsonl

A scope is a digest of all that its items depend on, code and libraries included: whatever is
found under it is what would be made anew. (Up to rounding: in bfloat16 the same item of another
batch may differ in a last bit, and so, once in some thousand tokens, in a word.) Each process
writes a file of its own and reads those of all, so that several share a scope without a lock; a
line that was cut off or damaged does not count, and its item is made again.
"""

import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.lib.runtime import code, files, guard, locks


def folder() -> Path:
    """Return where all scopes lie."""
    return files.cache("items")


class Items:
    """What is known of one scope, and the place to add to it."""

    def __init__(self, kind: str, *made_from: Any, by: Path) -> None:
        """Open a scope.

        Args:
            kind: of the items, for people.
            made_from: paths (their content counts) and values (their repr counts).
            by: the module that makes them; it counts with all that it imports.
        """
        own = sorted(code.run_by(by))
        scope = files.digest(kind, *made_from, *own, code.beneath())
        guard.require_unchanged()
        self.folder = folder() / kind / scope[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mine = self.folder / f"{uuid.uuid4().hex}.jsonl"
        self._known: dict[str, Any] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            self._known |= _read(file)
        os.utime(self.folder)  # `make gc` goes by it

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def add(self, items: Mapping[str, Any]) -> None:
        """Keep items, each as plain data; they outlive a kill from here on."""
        lines = "".join(_line(key, value) for key, value in items.items())
        self.folder.mkdir(parents=True, exist_ok=True)  # `make gc` may have come by
        with self._mine.open("ab", buffering=0) as out:
            whole = out.tell()
            try:
                out.write(lines.encode())
                os.fsync(out.fileno())
            except OSError:  # no half of a batch: the rest would be a batch of another size
                out.truncate(whole)
                raise
        os.utime(self.folder)


def _line(key: str, value: Any) -> str:
    text = json.dumps([key, value], ensure_ascii=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _read(file: Path) -> dict[str, Any]:
    """Return the whole lines of a file; the last one may be half written, or be growing."""
    found = {}
    try:
        content = file.read_bytes()
    except FileNotFoundError:  # `make gc` came by
        return found
    for line in content.split(b"\n"):
        check, _, text = line.partition(b" ")
        if check == b"%08x" % zlib.crc32(text):
            key, value = json.loads(text)
            found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class Removed:
    """What `prune` took away."""

    folders: int
    bytes: int
    kept: int
    """Folders that stay."""


def prune(days: float) -> Removed:
    """Remove scopes and checkpoints that nothing has used for so many days.

    A run that goes on at the same time loses at most what it would have kept for the next, and a
    training nothing: its checkpoints stay.
    """
    before = time.time() - days * 86_400
    trainings = files.cache("checkpoints").glob("*")
    scopes = (one for one in folder().glob("*/*") if one.is_dir() and not one.is_symlink())
    found = [*scopes, *(one for one in trainings if locks.is_free(one.name))]
    old = [one for one in found if one.stat().st_mtime <= before]
    size = 0
    for one in old:
        size += sum(file.stat().st_size for file in one.rglob("*") if file.is_file())
        shutil.rmtree(one)
    return Removed(len(old), size, len(found) - len(old))
