"""A policy answers prompts, and how far each answer is from what the base would have said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stages.lib import likelihood, models, sampling
from stages.lib.base import Base
from stages.lib.likelihood import Divergence, Positions
from stages.lib.models import LanguageModel
from stages.lib.records import Prompt
from stages.lib.reward_model import Answer
from stages.lib.runtime import files
from stages.lib.sampling import Decoding, Draw, Request
from stages.lib.tokens import TokenSequence, encode_prompt

POLICY = "policy"  # name of the policy's adapter on its base


@dataclass(slots=True)
class Subject:
    """A policy and the quantised base that it is compared with."""

    policy: LanguageModel
    reference: LanguageModel
    """The same object where the policy is an adapter on it, or is it."""
    adapter: str | None

    @property
    def is_reference(self) -> bool:
        """Whether there is nothing to compare."""
        return self.policy is self.reference and self.adapter is None


@dataclass(frozen=True, slots=True)
class Answered:
    """One completion and its distance from the base."""

    prompt: Prompt
    set: str
    index: int
    text: str
    finish: str
    tokens: int
    drift: Divergence

    def as_answer(self) -> Answer:
        """The form in which reward models take it: text, not tokens."""
        return Answer(self.prompt.body(), self.text, self.finish)


def open_subject(base_folder: Path, policy_folder: Path, base: Base) -> Subject:
    """Load a policy that `align` wrote, and its reference.

    Raises:
        ModelError: the adapter does not fit the base.
        RecordError: the folder is no policy.
    """
    card = files.read_json(policy_folder / "policy.json")
    reference = models.load(base_folder, base)
    if card["algorithm"] == "none":
        if card["quantised"] or base.quantisation == "none":
            return Subject(reference, reference, None)
        return Subject(models.load(base_folder, base, quantised=False), reference, None)
    models.load_adapter(reference, policy_folder, name=POLICY)
    return Subject(reference, reference, POLICY)


def snapshot(subject: Subject, folder: Path, step: int) -> Subject:
    """Return the policy as it was at a step of its training, beside the same reference."""
    name = f"{POLICY}-{step}"
    models.load_adapter(subject.reference, folder, name=name)
    return replace(subject, adapter=name)


def answer(
    subject: Subject,
    prompts: Sequence[Prompt],
    name: str,
    decoding: Decoding,
    *,
    samples: int,
    tokens: int,
    seed: int,
    batch_tokens: int,
) -> list[Answered]:
    """Draw every completion of a set of prompts and measure its drift.

    Args:
        subject: who answers.
        prompts: what is asked.
        name: of the set.
        decoding: how tokens are drawn.
        samples: completions a prompt.
        tokens: at most, a completion.
        seed: with prompt id and index, selects the random numbers: the same for every policy.
        batch_tokens: in memory at once.
    """
    lm = subject.policy
    requests = [Request(p.id, encode_prompt(lm, p.body()), samples) for p in prompts]
    by_id = {p.id: (p, request) for p, request in zip(prompts, requests, strict=True)}
    answers: dict[str, list[Answered]] = {p.id: [] for p in prompts}
    with sampling.Rate(requests, name) as rate:
        for some in sampling.plan(requests, max_tokens=tokens, batch_tokens=batch_tokens):
            with models.adapter(lm, subject.adapter):
                draws, at = sampling.decode(
                    lm, some, decoding, max_tokens=tokens, seed=seed, states=True
                )
            sequences = [TokenSequence(by_id[d.prompt_id][1].ids, d.ids) for d in draws]
            drifts = drift(subject, sequences, at, temperature=decoding.temperature)
            for draw, measured in zip(draws, drifts, strict=True):
                answers[draw.prompt_id].append(
                    _answered(lm, by_id[draw.prompt_id][0], name, draw, measured)
                )
            rate.update(draws)
    return [answer for own in answers.values() for answer in own]


def _answered(
    lm: LanguageModel, prompt: Prompt, name: str, draw: Draw, measured: Divergence
) -> Answered:
    text = sampling.text(lm, draw)
    return Answered(prompt, name, draw.index, text, draw.finish, len(draw.ids), measured)


@torch.inference_mode()
def drift(
    subject: Subject, sequences: Sequence[TokenSequence], at: Positions, *, temperature: float
) -> list[Divergence]:
    """Return how far the policy is from the reference on its own completions.

    Args:
        subject: the two.
        sequences: what the policy drew.
        at: the policy's states from which it drew them.
        temperature: of the distribution that was sampled.
    """
    if subject.is_reference:
        nll_B = -likelihood.summed(at, subject.reference.unembedding_VD, len(sequences))
        return [Divergence(nll, 0.0, 0.0, 0.0) for nll in nll_B.tolist()]
    with models.adapter(subject.reference, None):
        reference = likelihood.positions(subject.reference, sequences)
    return likelihood.divergences(
        at,
        reference,
        subject.policy.unembedding_VD,
        subject.reference.unembedding_VD,
        temperature=temperature,
        count=len(sequences),
    )
