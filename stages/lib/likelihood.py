"""Log-probabilities of given completions, and divergences between two models on them.

Logits are computed for completion positions only: with 49,152 entries each they cost as much as
the rest of the forward pass, and prompt and padding need none.

Shape suffixes: B = sequences in the batch, T = tokens, N = completion tokens of the whole batch,
D = hidden size, V = vocabulary.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from stages.lib.models import LanguageModel
from stages.lib.prefix import with_completions
from stages.lib.tokens import TokenSequence, batches_by_prompt

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


def choice(
    lm: LanguageModel,
    groups: Sequence[Sequence[tuple[int, ...]]],
    answers: Sequence[tuple[int, ...]],
    *,
    batch_tokens: int,
    label: str,
) -> Tensor:
    """Return how a model divides its belief among a few answers to each question.

    Where the tokenizer splits the answers alike but for one token, as it does " (A)" and " (B)" in
    most cases, one pass a question shows all of them: tokens after that one are the same in every
    answer and are left out. Otherwise each answer is read whole.

    Args:
        lm: the model that answers.
        groups: questions as token ids; what those of a group begin with alike is read once.
        answers: token ids.
        batch_tokens: padded tokens in memory at once.
        label: of the progress bar.

    Returns:
        p_QA: probability of each answer against the others, groups in order; rows sum to 1.
    """
    stem, last = differing_token(answers)
    if last:
        return _choice_of_token(lm, groups, stem, last, batch_tokens=batch_tokens, label=label)
    questions = [question for group in groups for question in group]
    logps = all_logps(
        lm,
        [TokenSequence(question, answer) for question in questions for answer in answers],
        batch_tokens=batch_tokens,
        label=label,
    )
    return logps.view(len(questions), len(answers)).double().softmax(-1)


def differing_token(
    answers: Sequence[tuple[int, ...]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens before the only one in which answers differ, and that one of each answer.

    (1, 2, 9) and (1, 3, 9) give (1,) and (2, 3). Where they differ in more than one token, or in
    length, both are empty.
    """
    columns = list(zip(*answers, strict=False))
    places = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    if len(places) != 1 or len({len(answer) for answer in answers}) != 1:
        return (), ()
    return answers[0][: places[0]], columns[places[0]]


@torch.inference_mode()
def _choice_of_token(
    lm: LanguageModel,
    groups: Sequence[Sequence[tuple[int, ...]]],
    stem: tuple[int, ...],
    last: tuple[int, ...],
    *,
    batch_tokens: int,
    label: str,
) -> Tensor:
    # A sequence needs a token that is predicted; the first answer's stands for all of them
    asked = [[(*question, *stem, last[0]) for question in group] for group in groups]
    sequences = [sequence for group in asked for sequence in sharing_a_start(group)]
    letters_AD = lm.unembedding_VD[torch.tensor(last, device=lm.device)].float()
    p_QA = torch.zeros(len(sequences), len(last), dtype=torch.float64)
    with tqdm(total=len(sequences), desc=label, unit="question", mininterval=1) as bar:
        for batch in batches_by_prompt(sequences, batch_tokens=batch_tokens):
            some = [sequences[i] for i in batch]
            prefix, ids_BT, lengths_B = with_completions(lm, some)
            hidden_BD = prefix.hidden_BD
            if ids_BT.shape[1] > 1:
                hidden_BTD = torch.cat([hidden_BD[:, None], prefix.read(ids_BT[:, :-1])], 1)
                hidden_BD = hidden_BTD[torch.arange(len(some), device=lm.device), lengths_B - 1]
            # In bfloat16 a logit of 20 is rounded to a multiple of 1/8, and p to one of 0.03
            logits_BA = hidden_BD.float() @ letters_AD.T
            p_QA[batch] = logits_BA.double().softmax(-1).cpu()
            bar.update(len(batch))
    return p_QA


def sharing_a_start(group: Sequence[tuple[int, ...]]) -> list[TokenSequence]:
    """Split texts where they cease to be alike; what they share becomes the prompt.

    Each keeps a token of its own; texts that share not even the first are split after it.
    """
    columns = zip(*group, strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    at = max(1, min(alike, min(map(len, group)) - 1))
    return [TokenSequence(ids[:at], ids[at:]) for ids in group]
