"""States of an adapter on the way through its training, which `evaluate` asks as it asks the last.

They show what each step away from the base bought, by the reward that training saw and by a scorer
that it did not.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib.records import Evaluated

FOLDER = "snapshots"
"""Of a policy's folder, and of the folder of a training's checkpoints."""


class Snapshot(Evaluated):
    """One completion of a policy as it was after some steps of its training."""

    step: Annotated[int, Field(ge=1)]


def kept(folder: Path) -> dict[int, Path]:
    """Return the adapters that a policy's folder holds beside its last one, by step."""
    return {int(path.name): path for path in sorted((folder / FOLDER).glob("[0-9]*"))}
