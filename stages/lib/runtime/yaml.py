"""Reads YAML as DVC does, and refuses what is none."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML  # DVC's own parser: `no` is text and 5e-7 a number, as in dvc.lock
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from stages.lib.runtime.schema import Refusal

DEEPEST, MOST = 32, 1_000_000
"""Levels and values of a file, aliases expanded: a few lines of them can stand for a billion."""


def read(path: Path, error: type[Refusal] = Refusal, *, absent: str = "") -> Any:
    """Return a file's content as plain data.

    Args:
        path: the file.
        error: the class of error to raise.
        absent: what would do, said where there is no such file.

    Raises:
        Refusal: of class `error`: there is no such file, it is not YAML, a key stands twice in a
            mapping, or its aliases stand for more than a file holds.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise error(f"{path}: no such file{absent and f'; {absent}'}") from None
    return parse(content, str(path), error)


def parse(content: bytes | str, where: str, error: type[Refusal] = Refusal) -> Any:
    """Return the content of a YAML file as plain data.

    Args:
        content: of the file.
        where: how the error message names it.
        error: the class of error to raise.

    Raises:
        Refusal: of class `error`: as `read` does.
    """
    try:
        found = YAML(typ="safe").load(content)
    except DuplicateKeyError as fault:
        key = re.sub(r'.*?duplicate key "(.*?)".*', r"\1", fault.problem)
        line = fault.problem_mark.line + 1
        raise error(f"{where}:{line}: '{key}' stands here a second time; rename it") from None
    except (YAMLError, ValueError, KeyError) as fault:  # a date 2001-99-99; `!!bool maybe`
        raise error(f"{where}: not YAML: {' '.join(str(fault).split())}") from None
    if not _is_bounded(found):
        raise error(
            f"{where}: has more than {DEEPEST} levels or {MOST:,} values, aliases expanded; "
            "write it plainly"
        )
    return found


def _is_bounded(found: Any) -> bool:
    """Say whether it can be walked through: an alias may also stand within what it means."""
    left, count = [(found, 0)], 0
    while left:
        value, level = left.pop()
        if isinstance(value, dict | list | set | tuple):
            inner = [*value, *(value.values() if isinstance(value, dict) else ())]
            count += len(inner)
            if level >= DEEPEST or count > MOST:
                return False
            left += [(one, level + 1) for one in inner]
    return True
