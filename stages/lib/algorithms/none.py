"""No training: the policy is the base itself, quantised or as it was fetched."""

from pathlib import Path
from typing import Literal

from stages.lib.base import Base
from stages.lib.records import Name
from stages.lib.runtime.schema import Strict


class NoTraining(Strict):
    """An entry of `policies` that is the base."""

    algorithm: Literal["none"]
    learns_from: Name
    """models/base: there is nothing else to learn from."""
    quantised: bool
    """False holds the base as it was fetched, whatever `base.quantisation` says."""


def train(
    policy: NoTraining,
    base: Base,
    seed: int,
    *,
    base_folder: Path,
    data: Path,
    out: Path,
    curves: Path,
) -> dict[str, float]:
    """Write no adapter; the curves have a header and no rows."""
    curves.parent.mkdir(parents=True, exist_ok=True)
    curves.write_text("step,loss\n", encoding="utf-8")
    return {"steps": 0.0, "trainable_parameters": 0.0}
