"""Refuses inputs that are damaged, and results whose inputs were edited while they were made.

DVC hashes params and dependencies after a stage's command ends (iterative/dvc issue 11058). An edit
in between is recorded beside results of the state before it, and the cache later restores them
for a state that never ran.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.lib.runtime import files, hashes, params
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from stages.lib.runtime.declared import Declared

WHOLE = 1 << 20
"""Files up to this size in bytes are compared by content, larger ones by size and time."""


class EditedError(Refusal):
    """An input of a stage changed while it ran."""


class DamagedError(Refusal):
    """An input of a stage is not what DVC takes it for."""


def require_whole(inputs: "Declared") -> None:
    """Read what other stages made for this one, and compare it with what DVC says it is.

    Raises:
        DamagedError: one is something else, as after a flipped bit in DVC's cache.
    """
    place = files.cache("hashes.json")
    memory = _remembered(place)
    before = dict(memory)
    for path, md5 in inputs.data.items():
        if path not in inputs.sources and hashes.of(Path(path), memory) != md5:
            raise DamagedError(
                f"{path}: its content is not what dvc.lock says; it was changed by hand, or comes "
                "from a damaged object of DVC's cache; `make verify` says which and what would do"
            )
    if memory != before:
        files.write_json(place, memory)


def _remembered(place: Path) -> dict[str, list[str]]:
    """Return what was read before; a memory that is damaged itself is none."""
    try:
        found = files.read_json(place)
    except files.RecordError:
        return {}
    return found if isinstance(found, dict) else {}


_watched: "tuple[Declared, dict[str, str]] | None" = None


@contextmanager
def watching(inputs: "Declared") -> Iterator[None]:
    """Let `require_unchanged` compare with what the inputs are as the block begins."""
    global _watched
    _watched = inputs, snapshot(inputs)
    try:
        yield
    finally:
        _watched = None


def require_unchanged() -> None:
    """Compare the inputs of the stage that runs with what they were; without one all is well.

    Asked at the end, and wherever something is kept for the next run: code that was edited is not
    the code that runs, and what this makes must not be found under the name of that.

    Raises:
        EditedError: one differs. The stage's command fails, so that DVC records nothing.
    """
    if _watched is None:
        return
    inputs, before = _watched
    after = snapshot(inputs)
    edited = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if edited:
        others = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
        raise EditedError(
            f"{edited[0]}{others} changed while stage {inputs.name} ran; its results belong to "
            "neither state and are not kept; run `dvc repro` again"
        )


def snapshot(inputs: "Declared") -> dict[str, str]:
    """Return a fingerprint of each file and each param that a stage declares."""
    settings = params.read()
    found = {
        f"params.yaml: {key}": json.dumps(params.at(settings, key), default=str, sort_keys=True)
        for key in inputs.params
    }
    for path in inputs.deps:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            ignored = "__pycache__" in file.parts or files.is_partial(file)
            if not file.is_dir() and not ignored:
                found[str(file)] = _fingerprint(file)
    return found


def _fingerprint(file: Path) -> str:
    if not file.is_file():
        return "absent"
    state = file.stat()
    return files.sha256(file) if state.st_size <= WHOLE else f"{state.st_size} {state.st_mtime_ns}"
