"""What algorithms share that learn from their own answers: prompts, answers and their scores."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.lib import models, reward_model, sampling, tokens
from stages.lib.diversity import repeated
from stages.lib.models import LanguageModel
from stages.lib.order import by_hash
from stages.lib.records import Prompt
from stages.lib.refusals import classify
from stages.lib.reward_model import Answer, Scorer
from stages.lib.runtime import files, processes
from stages.lib.runtime.schema import Refusal
from stages.lib.sampling import Decoding, Draw, Request


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt and its tokens."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a policy answers: from the whole vocabulary, so that log-probabilities are its own."""

    temperature: float
    max_tokens: int
    """Of a completion, EOS included."""
    batch_tokens: int
    """In memory at once."""


def asks(
    lm: LanguageModel, folder: Path, categories: Sequence[str], *, learned: int, held_out: int
) -> tuple[list[Ask], list[Ask]]:
    """Return prompts to learn on and the first `held_out` validation prompts, by hash.

    Raises:
        Refusal: fewer than `learned` or `held_out` are in `folder`.
    """
    found = {
        role: _asks(lm, folder / f"{split}.jsonl", role, categories)
        for split, role in (("train", "align"), ("validation", "validation"))
    }
    if len(found["align"]) < learned or len(found["validation"]) < held_out:
        raise Refusal(
            f"{folder}: {len(found['align'])} prompts of role align and "
            f"{len(found['validation'])} of role validation in categories "
            f"{list(categories) or 'all'}; batch_prompts {learned} and look.prompts {held_out} "
            "ask for more"
        )
    return found["align"], found["validation"][:held_out]


def _asks(lm: LanguageModel, path: Path, role: str, categories: Sequence[str]) -> list[Ask]:
    wanted = [
        p
        for p in files.read_lines(path, Prompt)
        if p.role == role and (not categories or p.category in categories)
    ]
    wanted.sort(key=lambda p: by_hash(p.id))
    return [Ask(p, tokens.encode_prompt(lm, p.body())) for p in wanted]


def at_turn(asked: Sequence[Ask], turn: int, *, seed: int) -> Ask:
    """Return the prompt whose turn it is; every pass over all of them has an order of its own."""
    generator = torch.Generator().manual_seed(seed + 7_919 * (turn // len(asked)))
    return asked[int(torch.randperm(len(asked), generator=generator)[turn % len(asked)])]


def respond(
    lm: LanguageModel, asked: Sequence[Ask], manner: Manner, *, samples: int, seed: int
) -> tuple[list[Draw], list[Answer]]:
    """Let the active adapter answer; both results are in the order of prompts and indices."""
    requests = [Request(ask.prompt.id, ask.ids, samples) for ask in asked]
    with models.training_precision(lm):
        draws = sampling.sample(
            lm,
            requests,
            Decoding(temperature=manner.temperature, top_k=0, top_p=1.0),
            max_tokens=manner.max_tokens,
            seed=seed,
            batch_tokens=manner.batch_tokens,
            label=None,
        )
    by_id = {ask.prompt.id: ask.prompt for ask in asked}
    answers = [Answer(by_id[d.prompt_id].body(), sampling.text(lm, d), d.finish) for d in draws]
    return draws, answers


@dataclass(frozen=True, slots=True)
class Seen:
    """An evaluation on validation prompts."""

    proxy: list[float]
    """Mean score of each prompt's answers by the reward model that is learned from."""
    monitor: list[float] | None
    """By one that learned from other prompts; None where there is none."""
    figures: dict[str, float]
    """Means, by name: `proxy`, `monitor` and their `gap`, and what a policy may pay with."""
    answers: list[dict[str, str]]
    """The first answer to each prompt, to be read."""


def look(
    lm: LanguageModel,
    asked: Sequence[Ask],
    manner: Manner,
    reward: Scorer,
    monitor: Scorer | None,
    *,
    samples: int,
    seed: int,
) -> Seen:
    """Let the active adapter answer validation prompts, and score what it says."""

    def work(some: list[Ask]) -> list[_Told]:
        _, answers = respond(lm, some, manner, samples=samples, seed=seed)
        means = [_means(scorer, answers, samples) for scorer in (reward, monitor) if scorer]
        return [
            _Told(answers[place * samples : (place + 1) * samples], *own)
            for place, own in enumerate(zip(*means, strict=True))
        ]

    told = processes.shared(asked, work, cost=lambda ask: len(ask.ids))
    proxy = [one.proxy for one in told]
    watched = [one.monitor for one in told if one.monitor is not None] if monitor else None
    figures = {"proxy": statistics.fmean(proxy)}
    if watched is not None:
        figures["monitor"] = statistics.fmean(watched)
        figures["gap"] = figures["proxy"] - figures["monitor"]
    texts = [answer.text for one in told for answer in one.answers]
    if not math.isnan(repeats := repeated(texts, 4)):  # some text has four words
        figures["repeats4"] = repeats
    figures["refusals"] = statistics.fmean(classify(text) == "full" for text in texts)
    first = [
        {
            "prompt": a.prompt if isinstance(a.prompt, str) else a.prompt[-1].content,
            "completion": a.text,
        }
        for a in (one.answers[0] for one in told)
    ]
    return Seen(proxy, watched, figures, first)


@dataclass(frozen=True, slots=True)
class _Told:
    """The answers to one prompt, and the mean of their scores."""

    answers: list[Answer]
    proxy: float
    monitor: float | None = None


def _means(scorer: Scorer, answers: Sequence[Answer], samples: int) -> list[float]:
    """Return the mean score of each prompt's answers."""
    found = torch.tensor(reward_model.scores(scorer, answers, label=None))
    return found.view(-1, samples).mean(1).tolist()
