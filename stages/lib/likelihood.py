"""Log-probabilities of given completions, and divergences between two models on them.

Logits are computed for completion positions only: with 49,152 entries each they cost as much as
the rest of the forward pass, and prompt and padding need none.

Shape suffixes: B = sequences in the batch, T = tokens, N = completion tokens of the whole batch,
D = hidden size, V = vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from stages.lib.models import LanguageModel, ModelError
from stages.lib.prefix import with_completions
from stages.lib.tokens import TokenSequence, batches, batches_by_prompt

CHUNK = 64
"""Completion tokens whose logits are in memory at once. 64 x 49,152 x 4 bytes = 13 MB stay in the
processor's cache, and are small enough for the C library to use again and not give back."""


@dataclass(frozen=True, slots=True)
class Positions:
    """The hidden states from which a batch's completion tokens are predicted."""

    hidden_ND: Tensor
    target_N: Tensor
    """Token ids predicted."""
    owner_N: Tensor
    """Row of the batch that each belongs to."""


def positions(lm: LanguageModel, sequences: Sequence[TokenSequence]) -> Positions:
    """Run the decoder and gather what predicts completion tokens; gradients flow through.

    The prompt of several completions is read once: with four as long as itself that saves three
    tokens of eight.
    """
    prefix, ids_BT, lengths_B = with_completions(lm, sequences)
    hidden_BTD = prefix.hidden_BD[:, None]
    if ids_BT.shape[1] > 1:
        hidden_BTD = torch.cat([hidden_BTD, prefix.read(ids_BT[:, :-1])], 1)
    real_BT = torch.arange(ids_BT.shape[1], device=lm.device)[None, :] < lengths_B[:, None]
    return Positions(hidden_BTD[real_BT], ids_BT[real_BT], real_BT.nonzero()[:, 0])


def token_logps(hidden_ND: Tensor, target_N: Tensor, unembedding_VD: Tensor) -> Tensor:
    """Return each target's log-probability in nats, float32, at most 0.

    As a cross-entropy, whose backward pass reads the logits once where gather and logsumexp read
    them four times.
    """
    logits_NV = torch.nn.functional.linear(hidden_ND, unembedding_VD).float()
    return -torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none")


def sequence_logps(lm: LanguageModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Return log p(completion | prompt) of each sequence: a sum over its tokens, in nats.

    A sum and not a mean: DPO's derivation needs log pi(y|x) itself. Gradients flow through.
    """
    return summed(positions(lm, sequences), lm.unembedding_VD, len(sequences))


def summed(at: Positions, unembedding_VD: Tensor, count: int) -> Tensor:
    """Return the log-probability of each of `count` completions from its positions."""
    parts = [
        token_logps(hidden_ND, target_N, unembedding_VD)
        for hidden_ND, target_N in zip(
            at.hidden_ND.split(CHUNK), at.target_N.split(CHUNK), strict=True
        )
    ]
    total_B = torch.zeros(count, device=at.hidden_ND.device)
    return total_B.index_add(0, at.owner_N, torch.cat(parts))


@torch.no_grad()
def all_logps(
    lm: LanguageModel, sequences: Sequence[TokenSequence], *, batch_tokens: int, label: str
) -> Tensor:
    """Return `sequence_logps` of any number of sequences, in batches, under a progress bar."""
    logps = torch.zeros(len(sequences))
    with tqdm(total=len(sequences), desc=label, unit="text", mininterval=1) as bar:
        for batch in batches_by_prompt(sequences, batch_tokens=batch_tokens):
            some = [sequences[i] for i in batch]
            at = positions(lm, some)
            logps[batch] = summed(at, lm.unembedding_VD, len(some)).cpu()
            bar.update(len(batch))
    return logps


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a policy's own completion is from the reference: sums over its tokens, in nats."""

    nll: float
    """-log p(completion) under the reference, at temperature 1."""
    k1: float
    """Sum of log pi - log p: unbiased for the sequence's KL, either sign."""
    k3: float
    """Sum of (p / pi - 1) - log(p / pi): unbiased too for completions drawn from pi, never negative
    (Schulman 2020)."""
    exact: float
    """Sum over positions of KL(pi || p) over the whole vocabulary."""


@torch.inference_mode()
def divergences(
    policy: Positions,
    reference: Positions,
    policy_VD: Tensor,
    reference_VD: Tensor,
    *,
    temperature: float,
    count: int,
) -> list[Divergence]:
    """Compare two models at the positions of the same sequences.

    Args:
        policy: positions of the model that drew the completions.
        reference: positions of the same sequences under the other model.
        policy_VD: the policy's output layer; reference_VD likewise.
        temperature: of the distribution that was sampled; `nll` alone is at temperature 1.
        count: sequences in the batch.
    """
    sums = torch.zeros(4, count, dtype=torch.float64)
    for start in range(0, len(policy.target_N), CHUNK):
        part = slice(start, start + CHUNK)
        target_N1 = policy.target_N[part, None]
        raw_NV = torch.nn.functional.linear(reference.hidden_ND[part], reference_VD).float()
        pi_NV = torch.nn.functional.linear(policy.hidden_ND[part], policy_VD).float() / temperature
        nll_N = raw_NV.logsumexp(-1) - raw_NV.gather(1, target_N1).squeeze(1)
        p_NV = raw_NV.div_(temperature)
        gap_N = p_NV.logsumexp(-1) - pi_NV.logsumexp(-1)  # log Z of p, less that of pi
        belief_NV = pi_NV.softmax(-1)
        ratio_NV = pi_NV.sub_(p_NV)  # log pi - log p, less the gap
        k1_N = (ratio_NV.gather(1, target_N1).squeeze(1) + gap_N).double()
        exact_N = (belief_NV.mul_(ratio_NV).sum(-1) + gap_N).clamp(min=0)  # rounding only
        k3_N = torch.expm1(-k1_N) + k1_N
        values = torch.stack([nll_N.double(), k1_N, k3_N, exact_N.double()]).cpu()
        sums.index_add_(1, policy.owner_N[part].cpu(), values)
    return [Divergence(*column) for column in sums.T.tolist()]


@torch.inference_mode()
def choice(
    lm: LanguageModel,
    questions: Sequence[tuple[int, ...]],
    answers: Sequence[tuple[int, ...]],
    *,
    batch_tokens: int,
    label: str,
) -> Tensor:
    """Return how a model divides its belief among a few answers to each question.

    Args:
        lm: the model that answers.
        questions: token ids.
        answers: token ids, alike but for their last one, so that one pass a question does.
        batch_tokens: padded tokens in memory at once.
        label: of the progress bar.

    Returns:
        p_QA: probability of each answer against the others; rows sum to 1.

    Raises:
        ModelError: the tokenizer splits the answers so that more than the last token differs.
    """
    stems = {answer[:-1] for answer in answers}
    if len(stems) != 1:
        raise ModelError(
            f"{lm.folder}: the tokenizer splits the judge's answers unevenly; another model "
            "would do"
        )
    stem = stems.pop()
    last = torch.tensor([answer[-1] for answer in answers], device=lm.device)
    # A sequence needs a completion; the one token stands for the answer, whose state is not used
    sequences = [TokenSequence((*question, *stem), answers[0][-1:]) for question in questions]
    p_QA = torch.zeros(len(questions), len(answers), dtype=torch.float64)
    with tqdm(total=len(sequences), desc=label, unit="question", mininterval=1) as bar:
        for batch in batches([len(s) for s in sequences], batch_tokens=batch_tokens):
            at = positions(lm, [sequences[i] for i in batch])
            logits_BV = torch.nn.functional.linear(at.hidden_ND, lm.unembedding_VD)
            p_QA[batch] = logits_BV[:, last].double().softmax(-1).cpu()
            bar.update(len(batch))
    return p_QA
