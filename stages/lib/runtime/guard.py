"""Refuses inputs that are damaged, and results whose inputs were edited while they were made.

DVC hashes params and dependencies after a stage's command ends (iterative/dvc issue 11058). An edit
in between is recorded beside results of the state before it, and the cache later restores them
for a state that never ran.
"""

import json
from pathlib import Path

from stages.lib.runtime import files, hashes, params
from stages.lib.runtime.declared import Declared
from stages.lib.runtime.schema import Refusal

WHOLE = 1 << 20
"""Files up to this size in bytes are compared by content, larger ones by size and time."""


class EditedError(Refusal):
    """An input of a stage changed while it ran."""


class DamagedError(Refusal):
    """An input of a stage is not what DVC takes it for."""


def require_whole(inputs: Declared) -> None:
    """Read what other stages made for this one, and compare it with what DVC says it is.

    Raises:
        DamagedError: one is something else, as after a flipped bit in DVC's cache.
    """
    place = files.cache("hashes.json")
    memory = files.read_json(place) if place.is_file() else {}
    before = dict(memory)
    for path, md5 in inputs.data.items():
        if path not in inputs.sources and hashes.of(Path(path), memory) != md5:
            raise DamagedError(
                f"{path}: its content is not what dvc.lock says; it was changed by hand, or comes "
                "from a damaged object of DVC's cache; `make verify` says which and what would do"
            )
    if memory != before:
        files.write_json(place, memory)


def require_unchanged(inputs: Declared, before: dict[str, str]) -> None:
    """Compare a stage's inputs with their snapshot of before it ran.

    Raises:
        EditedError: one differs. The stage's command fails, so that DVC records nothing.
    """
    after = snapshot(inputs)
    edited = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if edited:
        others = f" and {len(edited) - 1} more" if len(edited) > 1 else ""
        raise EditedError(
            f"{edited[0]}{others} changed while stage {inputs.name} ran; its results belong to "
            "neither state and are not kept; run `dvc repro` again"
        )


def snapshot(inputs: Declared) -> dict[str, str]:
    """Return a fingerprint of each file and each param that a stage declares."""
    settings = params.read()
    found = {
        f"params.yaml: {key}": json.dumps(params.at(settings, key), default=str, sort_keys=True)
        for key in inputs.params
    }
    for path in inputs.deps:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir() and "__pycache__" not in file.parts:
                found[str(file)] = _fingerprint(file)
    return found


def _fingerprint(file: Path) -> str:
    if not file.is_file():
        return "absent"
    state = file.stat()
    return files.sha256(file) if state.st_size <= WHOLE else f"{state.st_size} {state.st_mtime_ns}"
