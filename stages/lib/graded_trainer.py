"""transformers' Trainer on prompts with graded completions, and an objective of their log-ratios.

Shape suffixes: G = prompts of the batch, N = completions of each.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from stages.lib import graded_groups, likelihood, models, training
from stages.lib.anchor import Anchored
from stages.lib.graded_groups import Batch, Group
from stages.lib.lora import LoraTraining
from stages.lib.models import LanguageModel
from stages.lib.runtime import processes
from stages.lib.training import Shared

Objective = Callable[[Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]
"""From logps_GN of the policy, and the batch, to losses_G and figures of each prompt."""


class GradedTrainer(Shared, Anchored, Trainer):
    """An objective's mean over prompts, each with all of its completions."""

    def __init__(
        self,
        lm: LanguageModel,
        policy: LoraTraining,
        groups: Sequence[Group],
        objective: Objective,
        *,
        seed: int,
        checkpoints: Path,
    ) -> None:
        self.groups = list(groups)
        """May be replaced while it trains, prompt by prompt in the same order."""
        self.lm, self._objective = lm, objective
        self._seen: dict[str, list[float]] = defaultdict(list)
        arguments = training.arguments(
            policy, prompts=len(groups), seed=seed, checkpoints=checkpoints
        )
        super().__init__(
            model=lm.model,
            args=TrainingArguments(**arguments),
            train_dataset=[{"index": i} for i in range(len(groups))],
            data_collator=lambda rows: {"groups": [self.groups[row["index"]] for row in rows]},
            callbacks=[training.Curves()],
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, list[Group]], *_: Any, **__: Any
    ) -> Tensor:
        """Return this process's share of the mean over the batch's prompts."""
        some = inputs["groups"]
        mine = processes.share(some)
        batch = graded_groups.collate(mine or some[:1])
        with models.training_precision(self.lm):
            logps_B = likelihood.sequence_logps(self.lm, batch.sequences)
        losses_G, figures = self._objective(logps_B.view(batch.reward_GN.shape), on(batch, logps_B))
        seen = {name: float(value_G.mean()) for name, value_G in figures.items()}
        for name, mean in processes.means(seen, len(mine)).items():
            self._seen[name].append(mean)
        return losses_G.sum() * bool(mine) / len(some)

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """Add what the objective saw since the last call."""
        logs |= {key: sum(seen) / len(seen) for key, seen in self._seen.items()}
        self._seen.clear()
        super().log(logs, *rest, **named)


def on(batch: Batch, like: Tensor) -> Batch:
    """Return the batch where a tensor is."""
    device = like.device
    return Batch(
        batch.sequences, batch.reward_GN.to(device), batch.reference_GN.to(device),
        batch.proposal_GN.to(device),
    )  # fmt: skip


@torch.no_grad()
def logps(lm: LanguageModel, groups: Sequence[Group], *, label: str) -> Tensor:
    """Return logps_GN of the adapter that trains; processes share the prompts."""
    lm.model.eval()

    def work(some: list[Group]) -> list[list[float]]:
        flat = [s for g in some for s in g.sequences]
        with models.training_precision(lm):
            found = likelihood.all_logps(lm, flat, batch_tokens=4096, label=label)
        return found.view(len(some), -1).tolist()

    return torch.tensor(processes.shared(groups, work, cost=lambda g: sum(map(len, g.sequences))))
