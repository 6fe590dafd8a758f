"""Writes files and folders whole or not at all, and reads and writes JSON Lines.

A stage killed half-way must leave nothing that DVC could take for its output: everything is
written beside its place and renamed into it. Of several processes that share a stage, rank 0 alone
writes; what the others write is the same, and goes nowhere.
"""

import functools
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from stages.lib.runtime import processes
from stages.lib.runtime.schema import Refusal, check_json, plain

T = TypeVar("T")


class RecordError(Refusal):
    """A line of a data file cannot be used."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` on success only."""
    if processes.rank():
        with _nowhere() as folder:
            yield folder / path.name
        return
    if path.exists() and not path.is_file():  # /dev/stdout would be one file less
        raise RecordError(f"{path}: is there and no ordinary file; name another")
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it takes the place of `path` on success only."""
    if processes.rank():
        with _nowhere() as folder:
            yield folder
        return
    if path.exists() and not path.is_dir():
        raise RecordError(f"{path}: is there and no folder; name another")
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Say whether a path is one at which something is not whole yet, or lies in such a folder."""
    return any(part.startswith(".") and part.endswith(".partial") for part in path.parts)


def _partial(path: Path) -> Path:
    """Return a path beside `path`, free of what an earlier process left that was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beginning = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(beginning)}[0-9]*.partial"):
        process = int(left.name.removeprefix(beginning).removesuffix(".partial"))
        if process != os.getpid() and psutil.pid_exists(process):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    return path.with_name(f"{beginning}{os.getpid()}.partial")


@contextmanager
def _nowhere() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        RecordError: it is absent or no JSON.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    return plain(path.read_bytes(), str(path), RecordError)


def plain_json(text: str, where: str) -> Any:
    """Return what a text of JSON holds.

    Raises:
        RecordError: it is no JSON.
    """
    return plain(text.encode(), where, RecordError)


def read_text(path: Path, *, absent: str = "") -> str:
    """Read a text file in UTF-8.

    Args:
        path: the file.
        absent: what would do, said where there is no such file.

    Raises:
        RecordError: it is absent or something else.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file{absent and f'; {absent}'}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8: {error}") from None


def write_lines(path: Path, rows: Iterable[Any]) -> int:
    """Write one JSON object a line, keys sorted so equal rows are equal bytes. Return the count."""
    count = 0
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(_line(row))
            count += 1
    return count


@contextmanager
def growing(folder: Path, names: Iterable[str]) -> Iterator[Callable[[str, Any], None]]:
    """Yield what adds a row to one of several JSON Lines files of a folder, which begin empty.

    For a folder of `whole_folder`: the files themselves are there before they are whole.
    """
    with ExitStack() as opened:
        outs = {
            name: opened.enter_context((folder / name).open("w", encoding="utf-8"))
            for name in names
        }
        yield lambda name, row: outs[name].write(_line(row))


def _line(row: Any) -> str:
    data = row.model_dump(mode="json") if hasattr(row, "model_dump") else row
    return json.dumps(data, ensure_ascii=False, sort_keys=True) + "\n"


def read_lines(path: Path, into: type[T]) -> list[T]:
    """Read a JSON Lines file of records of one class; blank lines are passed over.

    Raises:
        RecordError: the file is absent, or a line is not JSON or not such a record. The message
            begins with file:line.
    """
    return [record for _, record in records(path, into)]


def records(path: Path, into: Any) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, record) for each line that is not blank, as `read_lines` reads it.

    Raises:
        RecordError: as `read_lines`, when the line is come to.
    """
    for where, line in _lines(path):
        yield where, check_json(line, into, where, RecordError)


def raw_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, plain data) for each line that is not blank.

    Raises:
        RecordError: the file is absent, or a line is not JSON.
    """
    for where, line in _lines(path):
        yield where, plain(line, where, RecordError)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digest(*inputs: Any) -> str:
    """Return a SHA-256 in hexadecimal of paths (their content counts) and values (their repr)."""
    total = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            for file in sorted(item.rglob("*")) if item.is_dir() else [item]:
                if file.is_file() and "__pycache__" not in file.parts:
                    now = file.stat()
                    content = _sha256_as_of(file, now.st_mtime_ns, now.st_size)
                    total.update(f"{file.relative_to(item)}:{content}\0".encode())
        else:
            total.update(f"{item!r}\0".encode())
    return total.hexdigest()


@functools.cache
def _sha256_as_of(file: Path, changed: int, size: int) -> str:
    """Return a file's SHA-256; `evaluate` asks for that of its base once for every set."""
    return sha256(file)


def cache(kind: str) -> Path:
    """Return the folder of what is kept between runs and is no output of any.

    It lies under DVC_ROOT, so that temporary copies of a repository, which `dvc exp run --temp`
    makes, share it with the repository.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()) / ".cache" / kind


STAGES = {
    "samplers": "sample",
    "labelers": "rank",
    "policies": "evaluate",
    "provokers": "provoke",
    "scorers": "score",
}
"""The stage that makes one file for each entry of a section of params.yaml."""


def entry_files(
    folder: Path, entries: Iterable[str], *, section: str, suffix: str = ".jsonl"
) -> dict[str, Path]:
    """Return the file, or folder, of each entry of a section of params.yaml, by name.

    A file of an entry that is gone would slip into the results unseen: DVC leaves the outputs of
    removed stages where they are.

    Args:
        folder: that holds them.
        entries: names.
        section: of params.yaml.
        suffix: of the files; "" where each entry has a folder.

    Raises:
        RecordError: a file is missing, or belongs to no entry.
    """
    wanted = {name: folder / f"{name}{suffix}" for name in entries}
    found = {
        path.name.removesuffix(suffix): path
        for path in folder.glob(f"*{suffix}")
        if not path.name.startswith(".") and path.is_dir() == (not suffix)
    }
    for name in sorted(found.keys() - wanted.keys()):
        raise RecordError(
            f"{found[name]}: params.yaml has no {section}.{name}; delete what an earlier "
            f"configuration left, or add the entry (it has {', '.join(wanted) or 'none'})"
        )
    kind = "file" if suffix else "folder"
    for name in sorted(wanted.keys() - found.keys()):
        raise RecordError(
            f"{wanted[name]}: no such {kind}, and params.yaml has {section}.{name}; "
            f"`dvc repro {STAGES[section]}@{name}` makes it"
        )
    return wanted


def read_entries(folder: Path, entries: Iterable[str], into: type[T], *, section: str) -> list[T]:
    """Read the records of every entry of a section, in the order of their names.

    Raises:
        RecordError: as `entry_files` and `read_lines` do.
    """
    return list(each_of_entries(folder, entries, into, section=section))


def each_of_entries(
    folder: Path, entries: Iterable[str], into: type[T], *, section: str
) -> Iterator[T]:
    """Yield what `read_entries` reads, one record at a time."""
    paths = entry_files(folder, entries, section=section)
    for name in sorted(paths):
        yield from (record for _, record in records(paths[name], into))
