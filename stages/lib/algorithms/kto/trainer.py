"""TRL's KTO trainer on whole prompts, with completions that are encoded already.

What stock TRL does with our data, and this subclass does not: it appends EOS to every completion,
cut ones too; it encodes prompt and completion as one text, and cuts it at a length; it turns pairs
into a thousand good completions and then a thousand bad ones, and learns them in that order; it
estimates the reference point by moving completions on by one row, so that the second of two
completions of a prompt is set against its own prompt; it leaves a loss that is not a number out of
the mean; and it casts the adapter of a packed base to bfloat16. Replaced are data preparation and
loss; loop, order of batches and log stay TRL's.

Shape suffixes: E = examples of the batch, M = mismatched examples of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import KTOConfig, KTOTrainer

from stages.lib import likelihood, losses, models, training
from stages.lib.algorithms.kto.signals import Judged
from stages.lib.anchor import Anchored
from stages.lib.models import LanguageModel
from stages.lib.tokens import TokenSequence

if TYPE_CHECKING:
    from stages.lib.algorithms.kto import Kto


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt as the trainer takes it."""

    judged: Judged
    mismatched: tuple[TokenSequence, ...]
    """The prompt, followed by each completion of another prompt of its batch; where that prompt is
    shorter, by as many tokens longer than what `max_tokens` allows."""


def rows(judged: Sequence[Judged], *, batch_prompts: int, seed: int) -> list[Row]:
    """Put prompts in the order they are learned in, each beside the prompt that it borrows from.

    The seed decides the order once. Epochs repeat it, as TRL's do, so that the reference is asked
    of each mismatched sequence once. A prompt borrows the completions of the next one of its batch,
    the last those of the first: every completion of a batch is set against one wrong prompt. One
    that is alone in the last batch borrows from the prompt before it.

    Args:
        judged: at least two prompts.
        batch_prompts: prompts a step, at least two.
        seed: of the order.
    """
    order = torch.randperm(len(judged), generator=torch.Generator().manual_seed(seed)).tolist()
    ordered = [judged[place] for place in order]
    lenders = []
    for start in range(0, len(ordered), batch_prompts):
        batch = ordered[start : start + batch_prompts]
        lenders += [*batch[1:], batch[0]] if len(batch) > 1 else [ordered[start - 1]]
    return [Row(one, _borrow(one, lender)) for one, lender in zip(ordered, lenders, strict=True)]


def _borrow(one: Judged, lender: Judged) -> tuple[TokenSequence, ...]:
    prompt = one.sequences[0].prompt
    return tuple(TokenSequence(prompt, other.completion) for other in lender.sequences)


def logps(lm: LanguageModel, sequences: Sequence[TokenSequence], *, label: str) -> Tensor:
    """Return log-probabilities of sequences under the adapter that trains, without gradients."""
    lm.model.eval()
    with models.training_precision(lm):
        return likelihood.all_logps(lm, sequences, batch_tokens=4096, label=label)


class JudgedKTOTrainer(Anchored, KTOTrainer):
    """TRL's KTO on prompts with completions that are good or bad."""

    def __init__(
        self,
        lm: LanguageModel,
        policy: "Kto",
        given: Sequence[Row],
        *,
        weights: tuple[float, float],
        seed: int,
        checkpoints: Path,
    ) -> None:
        """Take what `lm` says now, adapter included, as the reference.

        Args:
            lm: with the adapter that trains, new or copied from a policy.
            policy: the entry of params.yaml.
            given: see `rows`.
            weights: of good and of bad completions.
            seed: of the loop; the order of rows is theirs.
            checkpoints: folder for checkpoints.
        """
        self._lm, self._given, self._reference = lm, given, _reference(lm, given)
        exact = {name: p.data for name, p in lm.model.named_parameters() if p.requires_grad}
        arguments = training.arguments(
            policy, prompts=len(given), seed=seed, checkpoints=checkpoints
        )
        super().__init__(
            model=lm.model,
            args=KTOConfig(
                **arguments,
                beta=policy.beta,
                desirable_weight=weights[0],
                undesirable_weight=weights[1],
            ),
            train_dataset=Dataset.from_dict({"index": list(range(len(given)))}),
            data_collator=self._collate,
            processing_class=lm.tokenizer,
            callbacks=[training.Curves()],
        )
        lm.model = self.model
        lm.model.delete_adapter("ref")  # TRL's copy of the reference, which is asked already
        for name, parameter in lm.model.named_parameters():
            if name in exact:
                parameter.data = exact[name]

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # completions are encoded already, by the tokens every other stage sees

    def _collate(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        places = [row["index"] for row in rows]
        some = [self._given[place] for place in places]
        matched, mismatched = zip(*(self._reference[place] for place in places), strict=True)
        return {
            "sequences": [s for row in some for s in row.judged.sequences],
            "mismatched": [s for row in some for s in row.mismatched],
            "up_E": torch.tensor([up for row in some for up in row.judged.up]),
            "reference_E": torch.cat(matched),
            "reference_M": torch.cat(mismatched),
        }

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        with models.training_precision(self._lm):
            with torch.no_grad():
                mismatched_M = likelihood.sequence_logps(self._lm, inputs["mismatched"])
            logps_E = likelihood.sequence_logps(self._lm, inputs["sequences"])
        up_E = inputs["up_E"].to(logps_E.device)
        ratios_E = logps_E - inputs["reference_E"].to(logps_E.device)
        z0 = losses.kto_reference_point(mismatched_M - inputs["reference_M"].to(logps_E.device))
        losses_E = losses.kto_loss(
            ratios_E, up_E, z0,
            beta=self.beta, up_weight=self.desirable_weight, down_weight=self.undesirable_weight,
        )  # fmt: skip
        self._log_batch(z0, self.beta * ratios_E.detach(), up_E)
        return losses_E.mean()

    def _log_batch(self, z0: Tensor, rewards_E: Tensor, up_E: Tensor) -> None:
        seen = self._metrics["train" if self.model.training else "eval"]
        seen["kl"].append(z0.item())
        for name, some in (("reward_up", rewards_E[up_E]), ("reward_down", rewards_E[~up_E])):
            if len(some):
                seen[name].append(some.mean().item())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL writes a model card with every checkpoint; Trainer's own method does not.
        super(KTOTrainer, self)._save_checkpoint(model, trial)


def _reference(lm: LanguageModel, given: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
    """Return each row's log-probabilities, of its own and of its mismatched sequences."""
    parts = [part for row in given for part in (row.judged.sequences, row.mismatched)]
    flat = logps(lm, [s for part in parts for s in part], label="reference")
    split = flat.split([len(part) for part in parts])
    return list(zip(split[::2], split[1::2], strict=True))
