"""A policy answers prompts, and how far each answer is from what the base would have said."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages.lib import likelihood, models, sampling
from stages.lib.base import Base
from stages.lib.likelihood import Divergence, Positions
from stages.lib.models import LanguageModel
from stages.lib.records import Prompt
from stages.lib.reward_model import Answer
from stages.lib.runtime import files, processes
from stages.lib.runtime.items import Items
from stages.lib.sampling import Decoding, Draw, Request
from stages.lib.tokens import TokenSequence, encode_prompt


@dataclass(slots=True)
class Subject:
    """A policy and the quantised base that it is compared with."""

    policy: LanguageModel
    reference: LanguageModel
    """The same object where the policy is an adapter on it, or is it."""
    adapter: str | None
    made_from: tuple[Any, ...] = ()
    """Folders of base and adapter, and how they are held: what is kept of the answers is kept
    under these. Of a subject without any nothing is."""

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
            return Subject(reference, reference, None, (base_folder, None, base))
        policy = models.load(base_folder, base, quantised=False)
        return Subject(policy, reference, None, (base_folder, "unquantised", base))
    models.load_adapter(reference, policy_folder, name=models.POLICY)
    return Subject(reference, reference, models.POLICY, (base_folder, policy_folder, base))


def snapshot(subject: Subject, folder: Path, step: int) -> Subject:
    """Return the policy as it was at a step of its training, beside the same reference."""
    name = f"{models.POLICY}-{step}"
    models.load_adapter(subject.reference, folder, name=name)
    base_folder, _, base = subject.made_from
    return replace(subject, adapter=name, made_from=(base_folder, folder, base))


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
    drawn: dict[str, Any] = {"max_tokens": tokens, "seed": seed}
    long: dict[str, Any] = {"batch_tokens": batch_tokens, "label": name}

    def work(some: list[Prompt]) -> list[list[Answered]]:
        requests = [Request(p.id, encode_prompt(lm, p.body()), samples) for p in some]
        of_base = subject.is_reference and decoding.is_plain
        make = _drawn if of_base else _measured
        found = sampling.by_request(make(subject, requests, decoding, **drawn, **long), requests)
        return [
            [_answered(lm, prompt, name, one) for one in own]
            for prompt, own in zip(some, found, strict=True)
        ]

    told = processes.shared(prompts, work, cost=lambda prompt: len(prompt.plain()))
    return [one for own in told for one in own]


@dataclass(frozen=True, slots=True)
class Measured(Draw):
    """A draw and its distance from the reference."""

    drift: Divergence

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> "Measured":
        """Return what `asdict` made plain."""
        drift = Divergence(**plain["drift"])
        return cls(**{**plain, "ids": tuple(plain["ids"]), "drift": drift})


def measure(
    subject: Subject,
    decoding: Decoding,
    requests: Sequence[Request],
    *,
    max_tokens: int,
    seed: int,
) -> list[Measured]:
    """Draw the answers of one batch and measure them."""
    with models.adapter(subject.policy, subject.adapter):
        draws, at = sampling.decode(
            subject.policy, requests, decoding, max_tokens=max_tokens, seed=seed, states=True
        )
    asked = [r.ids for r in requests for _ in r.indices]
    sequences = [TokenSequence(ids, d.ids) for ids, d in zip(asked, draws, strict=True)]
    drifts = drift(subject, sequences, at, temperature=decoding.temperature)
    return [Measured(*astuple(d), far) for d, far in zip(draws, drifts, strict=True)]


def _drawn(
    subject: Subject, requests: Sequence[Request], decoding: Decoding, *,
    max_tokens: int, seed: int, **long: Any,
) -> list[Measured]:  # fmt: skip
    """Return the base's own answers; what `sample` drew of them is not drawn again."""
    drawn = {"max_tokens": max_tokens, "seed": seed}
    kept = kept_draws(subject, decoding, **drawn)
    draws = sampling.sample(subject.policy, requests, decoding, kept=kept, **drawn, **long)
    return [Measured(*astuple(d), Divergence(-d.logp, 0.0, 0.0, 0.0)) for d in draws]


def _measured(
    subject: Subject, requests: Sequence[Request], decoding: Decoding, *,
    max_tokens: int, seed: int, **long: Any,
) -> list[Measured]:  # fmt: skip
    """Return answers and how far each is from the base's."""
    drawn = {"max_tokens": max_tokens, "seed": seed}
    scope = _scope(subject, decoding, **drawn)
    kept = Items("answers", *scope, by=Path(__file__)) if scope else None
    make = partial(measure, subject, decoding, **drawn)
    return sampling.in_batches(
        requests, make, Measured.restored, kept, max_tokens=max_tokens, **long
    )


def kept_draws(subject: Subject, decoding: Decoding, *, max_tokens: int, seed: int) -> Items | None:
    """Return where the subject's draws are kept; those of a base, where `sample` keeps its own."""
    scope = _scope(subject, decoding, max_tokens=max_tokens, seed=seed)
    return sampling.kept(*scope) if scope else None


def _scope(subject: Subject, decoding: Decoding, *, max_tokens: int, seed: int) -> tuple[Any, ...]:
    """Return all that the subject's draws depend on beside prompts; nothing where none is kept."""
    own = sampling.settings(subject.policy, decoding, max_tokens=max_tokens, seed=seed)
    return (*subject.made_from, own) if subject.made_from else ()


def _answered(lm: LanguageModel, prompt: Prompt, name: str, one: Measured) -> Answered:
    text = sampling.text(lm, one)
    return Answered(prompt, name, one.index, text, one.finish, len(one.ids), one.drift)


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
