"""Holds a policy to its reference on text that has nothing to do with what it is aligned on.

Alignment moves the whole language model: a DPO that is paid for calm sentences predicts recipes
less well afterwards. InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, Eq. 2) counters by mixing
pretraining text into PPO, as a likelihood. Here it is the divergence from the reference instead,

    weight * mean over tokens of KL( reference || policy )

whose minimum is the reference itself: a policy cannot earn by learning the text (Li and Hoiem 2016,
"Learning without Forgetting", arXiv:1606.09282, do so for classifiers).

Shape suffixes: N = tokens, D = hidden size, V = vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.lib import likelihood, models, neutral_text
from stages.lib.language_loss import sequences
from stages.lib.likelihood import CHUNK
from stages.lib.models import LanguageModel
from stages.lib.order import by_hash
from stages.lib.runtime import processes
from stages.lib.tokens import TokenSequence


def read(path: Path, lm: LanguageModel, *, weight: float, passages: int) -> "Anchor":
    """Return the anchor on a file of passages, in an order by hash that mixes genres.

    Args:
        path: see `neutral_text.read`.
        lm: the reference, as it is now.
        weight: of the divergence.
        passages: an update.

    Raises:
        RecordError: as `neutral_text.read` does.
    """
    found = sorted(neutral_text.read(path), key=lambda passage: by_hash(passage.id))
    return Anchor(lm, sequences(lm, found), weight=weight, count=passages)


class Anchor:
    """Passages, and what the reference predicts after each of their tokens."""

    def __init__(
        self, lm: LanguageModel, passages: Sequence[TokenSequence], *, weight: float, count: int
    ) -> None:
        """Take what `lm` predicts now, adapter included, as the reference."""
        self._lm, self._passages, self._weight, self._count = lm, passages, weight, count
        self._states = processes.shared(passages, lambda some: _states(lm, some), cost=len)

    def pull(self, turn: int) -> float:
        """Add the gradient of the divergence to that of the adapter that trains.

        Of several processes each reads its share of the passages; their gradients add up.

        Args:
            turn: of this update, from 0; each has passages of its own, all of them in turn.

        Returns:
            The divergence in nats a token, unweighted, before the update.
        """
        lm, size = self._lm, len(self._passages)
        every = [(turn * self._count + i) % size for i in range(self._count)]
        mine = processes.share(every)
        weight = self._weight if mine else 0.0
        chosen = mine or every[:1]
        with models.training_precision(lm):
            at = likelihood.positions(lm, [self._passages[i] for i in chosen])
        reference_ND = torch.cat([self._states[i] for i in chosen]).to(at.hidden_ND.device)
        kl_N, gradient_ND = divergence(at.hidden_ND.detach(), reference_ND, lm.unembedding_VD)
        tokens = sum(len(self._states[i]) for i in every)
        at.hidden_ND.backward(gradient_ND * (weight / tokens))
        return processes.means({"kl": float(kl_N.mean())}, len(kl_N) if mine else 0)["kl"]


class Anchored:
    """Mix-in of transformers' trainers: after each loss's gradient comes the anchor's.

    After `training.Shared`, which adds up the gradients of several processes.
    """

    anchor: Anchor | None = None

    def training_step(self, *given: Any, **named: Any) -> Tensor:
        """Return the loss of the algorithm, without the anchor's part."""
        loss = super().training_step(*given, **named)  # type: ignore[misc]
        if self.anchor is not None:
            pulled = self.anchor.pull(self.state.global_step)  # type: ignore[attr-defined]
            self._pulled = pulled
        return loss

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """Log the divergence beside the loss."""
        if self.anchor is not None and "loss" in logs:
            logs = logs | {"anchor_kl": self._pulled}
        super().log(logs, *rest, **named)  # type: ignore[misc]


@torch.no_grad()
def divergence(
    policy_ND: Tensor, reference_ND: Tensor, unembedding_VD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return KL(reference || policy) at each position, and its gradient by the policy's states.

        KL = sum_v p_v (log p_v - log q_v),    dKL/dlogits = q - p,    dKL/dh = (q - p) W

    In closed form, so that the logits of one chunk alone are in memory.

    Args:
        policy_ND: hidden states of the policy (q); reference_ND likewise (p).
        unembedding_VD: the output layer of both.

    Returns:
        kl_N: in nats, float32, at least 0. gradient_ND: in the dtype of policy_ND; 0 where the two
        are equal.
    """
    kl, gradients = [], []
    for q_ND, p_ND in zip(policy_ND.split(CHUNK), reference_ND.split(CHUNK), strict=True):
        log_q_NV = torch.nn.functional.linear(q_ND, unembedding_VD).float().log_softmax(-1)
        log_p_NV = torch.nn.functional.linear(p_ND, unembedding_VD).float().log_softmax(-1)
        p_NV = log_p_NV.exp()
        kl.append((p_NV * (log_p_NV - log_q_NV)).sum(-1).clamp(min=0))  # rounding only
        gap_NV = log_q_NV.exp().sub_(p_NV)
        gradients.append(gap_NV.to(unembedding_VD.dtype) @ unembedding_VD)
    return torch.cat(kl), torch.cat(gradients).to(policy_ND.dtype)


@torch.no_grad()
def _states(lm: LanguageModel, passages: Sequence[TokenSequence]) -> list[Tensor]:
    lm.model.eval()
    with models.training_precision(lm):
        return [likelihood.positions(lm, [one]).hidden_ND.cpu() for one in passages]
