"""TRL's DPO trainer on whole prompts, with soft labels and weights.

TRL's `sigmoid` loss ignores `label_smoothing`, has neither soft labels nor weights, appends EOS to
completions that were cut at the token limit, and runs a completion once for every pair it is in.
The subclass replaces data preparation and loss; loop, optimiser and adapter handling stay TRL's.

Shape suffixes: B = unique sequences of the batch, P = pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from stages.lib import likelihood, losses, models, training
from stages.lib.anchor import Anchored
from stages.lib.groups import Batch, Group, collate_share
from stages.lib.models import LanguageModel
from stages.lib.runtime import processes
from stages.lib.training import Shared

if TYPE_CHECKING:
    from stages.lib.algorithms.dpo import Dpo


def group_logps(lm: LanguageModel, groups: list[Group], *, label: str) -> dict[str, Tensor]:
    """Return log-probabilities of every group's sequences, by prompt id.

    Of the reference they are computed once: it never moves, and each is needed every epoch.
    """
    lm.model.eval()

    def work(some: list[Group]) -> Sequence[Tensor]:
        sequences = [s for g in some for s in g.sequences]
        with models.training_precision(lm):
            flat = likelihood.all_logps(lm, sequences, batch_tokens=4096, label=label)
        return [part.clone() for part in flat.split([len(g.sequences) for g in some])]

    parts = processes.shared(groups, work, cost=lambda g: g.tokens)
    return {g.prompt_id: part for g, part in zip(groups, parts, strict=True)}


def accuracy(groups: list[Group], policy: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return the share of pairs whose chosen completion has the larger log-ratio; ties count half.

    Over pairs, exactly: not a mean of batch means. NaN without pairs.
    """
    right = total = 0.0
    for one in groups:
        ratio = policy[one.prompt_id] - reference[one.prompt_id]
        margin = ratio[list(one.chosen)] - ratio[list(one.rejected)]
        right += float(((margin > 0).float() + 0.5 * (margin == 0).float()).sum())
        total += len(one.pairs)
    return right / total if total else float("nan")


class GroupedDPOTrainer(Shared, Anchored, DPOTrainer):
    """TRL's DPO on groups of pairs with soft labels and weights."""

    def __init__(
        self,
        lm: LanguageModel,
        policy: "Dpo",
        groups: list[Group],
        reference: dict[str, Tensor],
        *,
        seed: int,
        checkpoints: Path,
    ) -> None:
        self._groups, self._reference, self._policy, self._lm = groups, reference, policy, lm
        arguments = training.arguments(
            policy, prompts=len(groups), seed=seed, checkpoints=checkpoints
        )
        super().__init__(
            model=lm.model,
            args=DPOConfig(**arguments, beta=policy.beta),
            train_dataset=Dataset.from_dict({"index": list(range(len(groups)))}),
            data_collator=self._collate,
            processing_class=lm.tokenizer,
            peft_config=models.missing_adapter(lm, rank=policy.lora_rank, alpha=policy.lora_alpha),
            callbacks=[training.Curves()],
        )
        lm.model = models.trainable(self.model)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # groups are encoded already, by the tokens every other stage sees

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        some = [self._groups[row["index"]] for row in rows]
        mine = processes.share(some) or some[:1]
        reference = torch.cat([self._reference[g.prompt_id] for g in mine])
        return {"batch": collate_share(some), "reference": reference}

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        batch: Batch = inputs["batch"]
        with models.training_precision(self._lm):
            logps_B = likelihood.sequence_logps(self._lm, batch.sequences)
        reference_B = inputs["reference"].to(logps_B.device)
        losses_P, margins_P = pair_losses(self._policy, logps_B, reference_B, batch)
        mode = self._metrics["train" if model.training else "eval"]
        logps = logps_B.detach()
        seen = {
            "margin": self._policy.beta * margins_P.mean().item(),
            "accuracy": (margins_P > 0).float().mean().item(),
            "logp_chosen": logps[batch.chosen_P].mean().item(),
            "logp_rejected": logps[batch.rejected_P].mean().item(),
        }
        for name, mean in processes.means(seen, batch.count).items():
            mode[name].append(mean)
        weight_P = batch.weight_P.to(losses_P.device)
        return losses.weighted_mean(losses_P, weight_P, whole_weight=batch.whole_weight)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL writes a model card with every checkpoint; Trainer's own method does not.
        super(DPOTrainer, self)._save_checkpoint(model, trial)


def pair_losses(
    policy: "Dpo", logps_B: Tensor, reference_B: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return losses_P and margins_P (nats, detached) of a batch's pairs."""
    margins_P = losses.implicit_margins(
        logps_B[batch.chosen_P],
        logps_B[batch.rejected_P],
        reference_B[batch.chosen_P],
        reference_B[batch.rejected_P],
    )
    labels_P = losses.smoothed(
        batch.p_chosen_P.to(logps_B.device), label_smoothing=policy.label_smoothing
    )
    loss = losses.dpo_loss if policy.loss == "sigmoid" else losses.ipo_loss
    return loss(margins_P, labels_P, beta=policy.beta), margins_P.detach()
