"""DVC's hashes, taken from what stands in files now.

DVC remembers a file's hash by its time and size, and trusts a write-protected object of its cache
unread. A bit that flips on a disk passes both.
"""

import hashlib
import json
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from stages.lib.runtime import files

Memory = MutableMapping[str, list[str]]
"""By file, the state that it was read in and its MD5: what has not changed is not read again."""


def of(path: Path, memory: Memory | None = None) -> str | None:
    """Return the MD5 by which DVC knows a file or folder; None where there is none.

    A folder's is that of the list of its files, and ends in `.dir`.
    """
    memory = {} if memory is None else memory
    if path.is_file():
        return _of_file(path, memory)
    if not path.is_dir():
        return None
    rows = [{"md5": _of_file(f, memory), "relpath": name} for name, f in sorted(_files(path))]
    return hashlib.md5(json.dumps(rows, sort_keys=True).encode()).hexdigest() + ".dir"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            within = file.relative_to(folder)
            if not files.is_partial(within):  # .dvcignore has these too
                yield within.as_posix(), file


def _of_file(file: Path, memory: Memory) -> str:
    now = file.stat()
    state = f"{now.st_mtime_ns} {now.st_size} {now.st_ino}"
    known = memory.get(str(file), ["", ""])
    if known[0] != state:
        with file.open("rb") as content:
            known = [state, hashlib.file_digest(content, "md5").hexdigest()]
        memory[str(file)] = known
    return known[1]
