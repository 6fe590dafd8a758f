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
from stages.lib.runtime import processes
from stages.lib.tokens import TokenSequence, encode
from stages.lib.training import Shared

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

    def work(some: list[TokenSequence]) -> list[float]:
        with models.training_precision(lm):
            return likelihood.all_logps(lm, some, batch_tokens=4096, label=label).tolist()

    logps = torch.tensor(processes.shared(given, work, cost=len))
    return -logps / torch.tensor([len(s.completion) for s in given])


class AnswerTrainer(Shared, Anchored, Trainer):
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
        """Return this process's share of the mean over the batch's answer tokens, in nats."""
        some = inputs["sequences"]
        mine = processes.share(some)
        with models.training_precision(self._lm):
            logps_B = likelihood.sequence_logps(self._lm, mine or some[:1])
        return -logps_B.sum() * bool(mine) / sum(len(s.completion) for s in some)
