"""One step's experience: completions of the present policy, with all that an update needs.

Everything that a token's loss needs is computed once, in the very microbatches that the update
will run: the same batch gives the same roundings, so that the ratio of the first update is 1.

Shape suffixes: B = completions, T = their tokens padded right, N = tokens of a part, in order.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.lib import likelihood, models, reward_model, sampling
from stages.lib.likelihood import CHUNK, Positions
from stages.lib.models import LanguageModel
from stages.lib.ppo import advantages, surrogates
from stages.lib.ppo.advantages import Total
from stages.lib.ppo.knobs import Ppo
from stages.lib.ppo.values import ValueFunction
from stages.lib.records import Prompt
from stages.lib.reward_model import Answer, Scorer
from stages.lib.sampling import Decoding, Draw, Request
from stages.lib.tokens import TokenSequence

POLICY = "default"  # the adapter that trains


@dataclass(slots=True)
class Roles:
    """Who takes part, all on one base: the policy is its adapter `default`."""

    lm: LanguageModel
    reference: str | None
    """Adapter of the reference; None where it is the base without adapters."""
    reward: Scorer
    monitor: Scorer | None
    value: ValueFunction


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt and its tokens."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(slots=True)
class Part:
    """Completions that go through the model together: all of a few prompts."""

    sequences: list[TokenSequence]
    mask_BT: Tensor
    reference: Positions
    """The reference's states, which the value head reads again at every update."""
    old_logp_N: Tensor
    reference_logp_N: Tensor
    entropy_N: Tensor
    old_values_N: Tensor
    advantages_N: Tensor
    returns_N: Tensor

    @property
    def k1_N(self) -> Tensor:
        """Each token's estimate of the KL from the reference, in nats, of either sign."""
        return self.old_logp_N - self.reference_logp_N


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's completions."""

    answers: list[Answer]
    draws: list[Draw]
    scores_B: Tensor
    """Normalised scores, before clip and penalty."""
    clipped_scores: float
    """Share of scores that were clipped."""
    parts: list[Part]


def roll_out(
    roles: Roles, asks: Sequence[Ask], ppo: Ppo, total: Total, *, beta: float, seed: int
) -> Rollout:
    """Answer prompts with the present policy, score the answers, and estimate advantages.

    Args:
        roles: who takes part.
        asks: prompts, a whole number of microbatches.
        ppo: the knobs.
        total: adds up over processes, for whitening.
        beta: what a nat from the reference costs.
        seed: of this step; with prompt and index it selects the random numbers.
    """
    draws, answers = respond(roles.lm, asks, ppo, samples=ppo.samples, seed=seed)
    scores_B = torch.tensor(score(roles.reward, answers))
    ended_B = torch.tensor([d.finish == "stop" for d in draws])
    shaped_B, clipped = advantages.shaped_scores(
        scores_B, ended_B, clip=ppo.score_clip, missing_eos_penalty=ppo.missing_eos_penalty
    )
    ids = {ask.prompt.id: ask.ids for ask in asks}
    sequences = [TokenSequence(ids[d.prompt_id], d.ids) for d in draws]
    size = ppo.microbatch_prompts * ppo.samples
    parts = [
        _part(roles, sequences[start : start + size], ppo)
        for start in range(0, len(sequences), size)
    ]
    _estimate(parts, shaped_B, ppo, total, beta=beta)
    return Rollout(answers, draws, scores_B, clipped, parts)


def respond(
    lm: LanguageModel, asks: Sequence[Ask], ppo: Ppo, *, samples: int, seed: int
) -> tuple[list[Draw], list[Answer]]:
    """Let the policy answer; both results are in the order of prompts and indices."""
    decoding = Decoding(temperature=ppo.temperature, top_k=0, top_p=1.0)
    requests = [Request(ask.prompt.id, ask.ids, samples) for ask in asks]
    with models.training_precision(lm), redirect_stderr(io.StringIO()):
        draws = sampling.sample(
            lm, requests, decoding, max_tokens=ppo.max_tokens, seed=seed,
            batch_tokens=ppo.batch_tokens, label="",
        )  # fmt: skip
    by_id = {ask.prompt.id: ask.prompt for ask in asks}
    answers = [Answer(by_id[d.prompt_id].body(), sampling.text(lm, d), d.finish) for d in draws]
    return draws, answers


def score(scorer: Scorer, answers: Sequence[Answer]) -> list[float]:
    """Return normalised scores, without a bar of their own: the run has one."""
    with redirect_stderr(io.StringIO()):
        return reward_model.scores(scorer, answers, label="")


@torch.no_grad()
def _part(roles: Roles, sequences: list[TokenSequence], ppo: Ppo) -> Part:
    lm = roles.lm
    lengths_B = torch.tensor([len(s.completion) for s in sequences], device=lm.device)
    places_T = torch.arange(int(lengths_B.max()), device=lm.device)
    with models.training_precision(lm):
        with models.adapter(lm, roles.reference):
            reference = likelihood.positions(lm, sequences)
        policy = likelihood.positions(lm, sequences)
        old_logp_N, entropy_N = logps_and_entropy(lm, policy, ppo.temperature)
        reference_logp_N, _ = logps_and_entropy(lm, reference, ppo.temperature)
    with roles.value.on():
        values_N = roles.value(sequences, reference)
    nothing_N = torch.zeros_like(values_N)
    return Part(
        sequences,
        places_T[None, :] < lengths_B[:, None],
        reference,
        old_logp_N,
        reference_logp_N,
        entropy_N,
        values_N,
        nothing_N,
        nothing_N,
    )


def logps_and_entropy(
    lm: LanguageModel, at: Positions, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return each token's log-probability and the entropy of where it was drawn, in nats.

    Gradients flow through both. Of the whole vocabulary at `temperature`: what was sampled from,
    since PPO samples without truncation (property 10).
    """
    logps, entropies = [], []
    for hidden_ND, target_N in zip(
        at.hidden_ND.split(CHUNK), at.target_N.split(CHUNK), strict=True
    ):
        logits_NV = torch.nn.functional.linear(hidden_ND, lm.unembedding_VD).float() / temperature
        logps.append(-torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none"))
        entropies.append(surrogates.entropy(logits_NV))
    return torch.cat(logps), torch.cat(entropies)


def _estimate(
    parts: Sequence[Part], scores_B: Tensor, ppo: Ppo, total: Total, *, beta: float
) -> None:
    """Fill in advantages and returns of all parts."""
    rewards = []
    for part, scores in zip(parts, scores_B.split([len(p.sequences) for p in parts]), strict=True):
        k1_BT = _padded(part.k1_N, part.mask_BT)
        on = scores.to(k1_BT.device)
        rewards.append(advantages.token_rewards(on, k1_BT, part.mask_BT, beta=beta)[part.mask_BT])
    if ppo.whiten_rewards:
        rewards = _whitened(rewards, total, shift_mean=False)
    for part, rewards_N in zip(parts, rewards, strict=True):
        found = advantages.generalised_advantages(
            _padded(rewards_N, part.mask_BT),
            _padded(part.old_values_N, part.mask_BT),
            part.mask_BT,
            gamma=ppo.gamma,
            lam=ppo.lam,
        )
        part.advantages_N, part.returns_N = (one_BT[part.mask_BT] for one_BT in found)
    spread = _whitened([part.advantages_N for part in parts], total, shift_mean=True)
    for part, advantages_N in zip(parts, spread, strict=True):
        part.advantages_N = advantages_N


def _whitened(values: list[Tensor], total: Total, *, shift_mean: bool) -> list[Tensor]:
    joined_N = torch.cat(values)
    all_N = torch.ones_like(joined_N, dtype=torch.bool)
    white_N = advantages.whiten(joined_N, all_N, total, shift_mean=shift_mean)
    return list(white_N.split([len(v) for v in values]))


def _padded(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(
        mask_BT, values_N
    )
