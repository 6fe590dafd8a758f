"""transformers' Trainer on demonstrations: the loss of their answers' tokens, and of no other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from stages.lib import likelihood, models, training
from stages.lib.anchor import Anchored
from stages.lib.models import LanguageModel
from stages.lib.records import Demonstration
from stages.lib.tokens import TokenSequence, encode

if TYPE_CHECKING:
    from stages.lib.algorithms.sft import Sft


def sequences(
    lm: LanguageModel, demonstrations: Sequence[Demonstration], *, max_tokens: int
) -> list[TokenSequence]:
    """Encode prompts and answers, with EOS where the answer is whole, as a person's is."""
    return [
        encode(
            lm, d.body(), d.answer, d.finish, max_tokens=max_tokens, where=f"demonstration {d.id}"
        )
        for d in demonstrations
    ]


def token_losses(lm: LanguageModel, given: Sequence[TokenSequence], *, label: str) -> Tensor:
    """Return each answer's loss in nats a token, without gradients."""
    lm.model.eval()
    with models.training_precision(lm):
        logps = likelihood.all_logps(lm, given, batch_tokens=4096, label=label)
    return -logps / torch.tensor([len(s.completion) for s in given])


class AnswerTrainer(Anchored, Trainer):
    """Cross-entropy of answers' tokens; every token of a batch weighs the same."""

    def __init__(
        self,
        lm: LanguageModel,
        policy: "Sft",
        given: list[TokenSequence],
        *,
        seed: int,
        checkpoints: Path,
    ) -> None:
        self._lm = lm
        arguments = training.arguments(
            policy, prompts=len(given), seed=seed, checkpoints=checkpoints
        )
        super().__init__(
            model=lm.model,
            args=TrainingArguments(**arguments),
            train_dataset=given,
            data_collator=lambda some: {"sequences": some},
            callbacks=[training.Curves()],
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, list[TokenSequence]], *_: Any, **__: Any
    ) -> Tensor:
        """Return the mean over the batch's answer tokens, in nats."""
        some = inputs["sequences"]
        with models.training_precision(self._lm):
            logps_B = likelihood.sequence_logps(self._lm, some)
        return -logps_B.sum() / sum(len(s.completion) for s in some)
