"""No training: the policy is the base itself, quantised or as it was fetched."""

from typing import Literal

from stages.lib.algorithms.task import Entry, Task
from stages.lib.runtime import files


class NoTraining(Entry):
    """An entry of `policies` that is the base."""

    objective = "none"

    algorithm: Literal["none"]
    quantised: bool
    """False holds the base as it was fetched, whatever `base.quantisation` says."""


def train(policy: NoTraining, task: Task) -> dict[str, float]:
    """Write no adapter; the curves have a header and no rows."""
    files.write_text(task.curves, "step,loss\n")
    return {"steps": 0.0, "trainable_parameters": 0.0}
