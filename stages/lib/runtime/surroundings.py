"""Tells what the machine denied, a full disk or a file it may not write, from what is a bug."""

import errno
import re
from collections.abc import Iterator

from stages.lib.runtime.schema import Refusal

ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it readable and writable for this user",
    errno.EPERM: "make it readable and writable for this user",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files",
    errno.ENOMEM: "free some memory",
    errno.EIO: "look after the disk",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name another place",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ELOOP: "name another place",
}
WRITTEN_OUT = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, safetensors among them, name what Python calls errno."""

NOT_WRITTEN = re.compile(r"enforce fail at inline_container|database or disk is full")
"""What torch.save and SQLite say where a file could not be written to its end."""
NO_MEMORY = re.compile(r"DefaultCPUAllocator: (can't|not enough)|CUDA out of memory|std::bad_alloc")
"""What torch says where Python has MemoryError."""


class MachineError(Refusal):
    """The machine does not do what is asked of it."""


def denied(error: BaseException) -> MachineError | None:
    """Return what the machine denied, in one line; None where an error has another cause.

    Libraries wrap what they met, so that the errors behind an error count as well.
    """
    for one in _behind(error):
        if isinstance(one, MemoryError) or NO_MEMORY.search(str(one)):
            return MachineError(f"out of memory; free some, or lower what is held at once{_KEPT}")
        if NOT_WRITTEN.search(str(one)):
            return MachineError(f"a file could not be written to its end; free some space{_KEPT}")
        number = _number(one)
        if number in ADVICE:
            return MachineError(f"{_said(one)}; {ADVICE[number]}{_KEPT}")
    return None


_KEPT = " and run again: nothing half-written was kept"


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    written = WRITTEN_OUT.search(str(error))
    return int(written[1]) if written else None


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^\[Errno \d+\] ", "", text)[:300]
