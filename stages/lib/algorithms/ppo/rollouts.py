"""One step's experience: completions of the present policy, with all that an update needs.

Everything that a token's loss needs is computed once, in the very microbatches that the update
will run: the same batch gives the same roundings, so that the ratio of the first update is 1.

Shape suffixes: B = completions, T = their tokens padded right, N = tokens of a part, in order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.lib import likelihood, models, reward_model
from stages.lib.algorithms.ppo import advantages, surrogates
from stages.lib.algorithms.ppo.advantages import Total
from stages.lib.algorithms.ppo.knobs import Ppo
from stages.lib.algorithms.ppo.values import ValueFunction
from stages.lib.likelihood import CHUNK, Positions
from stages.lib.models import LanguageModel
from stages.lib.online import Ask, Manner, respond
from stages.lib.reward_model import Answer, Scorer
from stages.lib.sampling import Draw
from stages.lib.tokens import TokenSequence

POLICY = "default"  # the adapter that trains


@dataclass(frozen=True, slots=True)
class Reference:
    """Who the policy is held to: an adapter of a model, or the model without any."""

    lm: LanguageModel
    adapter: str | None


@dataclass(slots=True)
class Roles:
    """Who takes part, as a rule all on one base: the policy is the adapter `default` of `lm`."""

    lm: LanguageModel
    reference: Reference
    reward: Scorer
    monitor: Scorer | None
    value: ValueFunction


@dataclass(slots=True)
class Part:
    """Completions that go through the model together: all of a few prompts."""

    sequences: list[TokenSequence]
    mask_BT: Tensor
    states_ND: Tensor
    """Frozen, which the value function reads again at every update."""
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
    clipped_B: Tensor
    """Which of them were clipped."""
    parts: list[Part]


def manner(ppo: Ppo) -> Manner:
    """Return how the policy answers."""
    return Manner(ppo.temperature, ppo.max_tokens, ppo.batch_tokens)


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
    draws, answers = respond(roles.lm, asks, manner(ppo), samples=ppo.samples, seed=seed)
    scores_B = torch.tensor(reward_model.scores(roles.reward, answers, label=None))
    ended_B = torch.tensor([d.finish == "stop" for d in draws])
    shaped_B, clipped_B = advantages.shaped_scores(
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
    return Rollout(answers, draws, scores_B, clipped_B, parts)


@torch.no_grad()
def _part(roles: Roles, sequences: list[TokenSequence], ppo: Ppo) -> Part:
    lm = roles.lm
    lengths_B = torch.tensor([len(s.completion) for s in sequences], device=lm.device)
    places_T = torch.arange(int(lengths_B.max()), device=lm.device)
    with models.training_precision(lm):
        with models.adapter(roles.reference.lm, roles.reference.adapter):
            reference = likelihood.positions(roles.reference.lm, sequences)
        policy = likelihood.positions(lm, sequences)
        old_logp_N, entropy_N = logps_and_entropy(lm, policy, ppo.temperature)
        reference_logp_N = logps(roles.reference.lm, reference, ppo.temperature)
    states_ND = roles.value.read(sequences, reference)
    with roles.value.on():
        values_N = roles.value(sequences, states_ND)
    nothing_N = torch.zeros_like(values_N)
    return Part(
        sequences,
        places_T[None, :] < lengths_B[:, None],
        states_ND,
        old_logp_N,
        reference_logp_N,
        entropy_N,
        values_N,
        nothing_N,
        nothing_N,
    )


def logps(lm: LanguageModel, at: Positions, temperature: float) -> Tensor:
    """Return each token's log-probability in nats, logp_N; gradients flow through.

    Of the whole vocabulary at `temperature`: what was sampled from, since PPO samples without
    truncation (property 10).
    """
    return torch.cat(
        [_logp(logits_NV, target_N) for logits_NV, target_N in _logits(lm, at, temperature)]
    )


def logps_and_entropy(
    lm: LanguageModel, at: Positions, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return `logps`, and the entropy in nats of what each token was drawn from.

    The entropy reads the logits several times more, so it is left out where nobody asks for it.
    """
    found = [
        (_logp(logits_NV, target_N), surrogates.entropy(logits_NV))
        for logits_NV, target_N in _logits(lm, at, temperature)
    ]
    return torch.cat([logp_N for logp_N, _ in found]), torch.cat([h_N for _, h_N in found])


def _logits(
    lm: LanguageModel, at: Positions, temperature: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and targets of a few positions at a time: all of them would be gigabytes."""
    for hidden_ND, target_N in zip(
        at.hidden_ND.split(CHUNK), at.target_N.split(CHUNK), strict=True
    ):
        logits_NV = torch.nn.functional.linear(hidden_ND, lm.unembedding_VD).float()
        yield (logits_NV if temperature == 1 else logits_NV / temperature), target_N


def _logp(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    return -torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none")


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
