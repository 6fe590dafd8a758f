"""Distributional policy gradients on graded completions, with a proposal that may move.

`objective.py` has the estimator, `proposal.py` what moves the proposal.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.lib.algorithms import graded
from stages.lib.algorithms.graded import Matching
from stages.lib.algorithms.task import Task
from stages.lib.runtime.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from stages.lib.graded_groups import Batch
    from stages.lib.graded_trainer import GradedTrainer


class Adapting(Strict):
    """`adapt` of an entry: the policy becomes the proposal where it is nearer to the target."""

    every: Annotated[int, Field(ge=1)]
    """Steps between comparisons."""
    prompts: Annotated[int, Field(ge=1)]
    """The two are compared on, the first by hash."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once while completions are drawn."""


class Dpg(Matching):
    """An entry of `policies` that is aligned with a distributional policy gradient."""

    algorithm: Literal["dpg"]
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"]
    """Of the policy from the target. forward_kl covers all that is good; reverse_kl settles on
    what is best, and is the KL-penalised policy gradient; jensen_shannon lies between."""
    baseline: bool
    """Take from each weight what it is on average: less variance at the same mean (GDC++)."""
    max_ratio: Annotated[float, Field(gt=1)]
    """Largest importance weight; smaller is biased and steadier."""
    adapt: Adapting | None
    """Then `learns_from` is the reward model, `prompts` the graded completions that training begins
    with; null: these are all it learns from, and `learns_from` names them too."""

    def kind(self) -> dict[str, str]:
        """Say that what a moving proposal draws is its own."""
        return super().kind() | ({"answers": "mixed"} if self.adapt else {})


def train(policy: Dpg, task: Task) -> dict[str, float]:
    """Align an adapter on graded completions of role align; `graded.fit` says what is returned."""
    from stages.lib.algorithms.dpg import objective

    def estimator(logps_GN: "Tensor", batch: "Batch") -> "tuple[Tensor, dict[str, Tensor]]":
        return objective.loss(
            logps_GN, batch, temperature=policy.temperature, divergence=policy.divergence,
            baseline=policy.baseline, max_ratio=policy.max_ratio,
        )  # fmt: skip

    moves: list[float] = []

    def prepare(trainer: "GradedTrainer") -> None:
        from stages.lib.algorithms.dpg.proposal import Proposal

        if policy.adapt is not None:
            trainer.add_callback(Proposal(trainer, policy, task, moves))

    found = graded.fit(policy, task, estimator, folder=task.prompts, prepare=prepare)
    return found | {"proposals": 1.0 + len(moves)}
