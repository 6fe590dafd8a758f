"""A labeler that is a language model, asked by principle, each comparison in both orders.

The protocol of Bai et al. 2022 (arXiv:2212.08073, section 4.1): two options (A) and (B), a
principle of the constitution, and the probability of the answer as a soft label. A model prefers a
place as well as an answer, so both orders are asked and averaged; how often they disagree is
counted, principle by principle.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from stages.lib import constitution, selection
from stages.lib.base import Base
from stages.lib.constitution import Principle
from stages.lib.labelers import questions
from stages.lib.labelers.ranks import by_prompt, ranking
from stages.lib.order import by_hash
from stages.lib.records import Completion, Name, Preference, Prompt, Ranking, Role
from stages.lib.runtime.schema import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=1)]


class Judge(Strict):
    """An entry of `labelers`: a language model brought by `fetch`."""

    kind: Literal["judge"]
    reads: Name
    """Folder of the model that judges."""
    guide: Name
    """The constitution: file of principles."""
    criterion: Name
    """What is asked; the principles of this criterion are used."""
    prompts: Annotated[int, Field(ge=1)]
    """How many prompts are judged, first by hash."""
    roles: Annotated[list[Role], Field(min_length=1)]
    """Whose prompts are judged."""
    tie: Annotated[float, Field(gt=0)]
    """Win rates are rounded to multiples of this."""
    form: questions.Form
    """Asked through the model's chat template, or as a text to go on with."""
    principles: Literal["sampled", "all"]
    """One for each comparison, drawn by hash, or the mean over every one."""
    on_flip: Literal["average", "tie"]
    """What a comparison counts whose orders disagree: their mean, or one half."""
    thinking_tokens: Annotated[int, Field(ge=0)]
    """How far the judge reasons before it answers; 0: not at all."""
    clamp: Annotated[list[Share], Field(min_length=2, max_length=2)] | None
    """Least and largest probability that a label may have."""
    batch_tokens: Tokens
    """Tokens in memory at once."""

    @model_validator(mode="after")
    def _clamps_both_sides_alike(self) -> "Judge":
        if self.clamp and not (self.clamp[0] < 0.5 and math.isclose(sum(self.clamp), 1)):
            raise ValueError(
                f"clamp {self.clamp} must be as far below one half as above it, [0.4, 0.6]: which "
                "completion comes first may not matter"
            )
        return self


class Comparison(NamedTuple):
    """Two completions of a prompt, and what they are compared by."""

    prompt: Prompt
    first: Completion
    second: Completion
    principle: Principle

    def questions(self) -> tuple[str, str]:
        """The question with the first completion as (A), and with the second as (A)."""
        first, second = self.first.text, self.second.text
        return (
            questions.question(self.prompt, self.principle, first, second),
            questions.question(self.prompt, self.principle, second, first),
        )


def rank(
    labeler: Judge,
    name: str,
    base: Base,
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
) -> tuple[list[Ranking], dict[str, float]]:
    """Rank by the mean probability of winning against the prompt's other completions.

    Raises:
        ConstitutionError: the guide is no constitution, or has no principle of the criterion.
        ModelError: the model cannot be asked in this form.
    """
    principles = constitution.read(Path(labeler.guide), labeler.criterion)
    grouped = by_prompt(completions)
    asked = {
        prompt.id: comparisons(labeler, prompt, grouped[prompt.id], principles)
        for prompt in _first_by_hash(labeler, prompts, grouped)
    }
    p_first = questions.probabilities(
        Path(labeler.reads),
        base,
        [[text for one in some for text in one.questions()] for some in asked.values()],
        form=labeler.form,
        thinking_tokens=labeler.thinking_tokens,
        batch_tokens=labeler.batch_tokens,
    )
    every = [one for some in asked.values() for one in some]
    orders = list(zip(p_first[0::2], p_first[1::2], strict=True))
    beliefs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one, (forward, backward) in zip(every, orders, strict=True):
        belief = label(forward, backward, on_flip=labeler.on_flip, clamp=labeler.clamp)
        beliefs[one.first.id, one.second.id].append(belief)
    rankings = [_ranking(labeler, name, i, grouped[i], beliefs) for i in asked]
    return rankings, measures([one.principle.id for one in every], orders)


def comparisons(
    labeler: Judge,
    prompt: Prompt,
    completions: Sequence[Completion],
    principles: Sequence[Principle],
) -> list[Comparison]:
    """Return what is asked of a prompt's completions: every pair, by one principle or by all.

    The two ids draw the principle, so that neither the order of the two nor any other prompt has a
    say in it.
    """
    found = []
    for first, second in combinations(sorted(completions, key=lambda c: c.id), 2):
        drawn = int(by_hash(f"{first.id}|{second.id}"), 16) % len(principles)
        by = principles if labeler.principles == "all" else [principles[drawn]]
        found += [Comparison(prompt, first, second, principle) for principle in by]
    return found


def label(forward: float, backward: float, *, on_flip: str, clamp: Sequence[float] | None) -> float:
    """Return p(first better) from the answers to both orders.

    Exchanging the two gives 1 minus it.

    Args:
        forward: probability of (A) with the first completion as (A).
        backward: probability of (A) with the second completion as (A).
        on_flip: `tie` makes a comparison one half where the orders disagree.
        clamp: least and largest value; None: any.
    """
    if on_flip == "tie" and flipped(forward, backward):
        return 0.5
    p = (forward + 1 - backward) / 2
    return p if clamp is None else min(max(p, clamp[0]), clamp[1])


def flipped(forward: float, backward: float) -> bool:
    """Whether both orders favour the same letter, so that the place won and not the text."""
    return (forward - 0.5) * (backward - 0.5) > 0


def measures(principles: Sequence[str], orders: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return how far the judge answers by place, overall and by principle; empty of no comparison.

        order_flip_rate      share of comparisons whose two orders disagree
        position_preference  mean probability of (A); 0.5 of a judge that has no preferred place
        flips/<principle>    as order_flip_rate, of `asked/<principle>` comparisons

    Args:
        principles: id of each comparison's principle.
        orders: p(A) in both orders of each.
    """
    if not orders:
        return {}
    flips: dict[str, list[bool]] = defaultdict(list)
    for principle, (forward, backward) in zip(principles, orders, strict=True):
        flips[principle].append(flipped(forward, backward))
    return {
        "order_flip_rate": sum(map(sum, flips.values())) / len(orders),
        "position_preference": math.fsum(map(math.fsum, orders)) / (2 * len(orders)),
        **{f"flips/{name}": sum(some) / len(some) for name, some in sorted(flips.items())},
        **{f"asked/{name}": float(len(some)) for name, some in sorted(flips.items())},
    }


def _first_by_hash(
    labeler: Judge, prompts: Iterable[Prompt], grouped: Mapping[str, Sequence[Completion]]
) -> list[Prompt]:
    fitting = [p for p in prompts if p.role in labeler.roles and len(grouped.get(p.id, ())) > 1]
    return sorted(selection.first(fitting, labeler.prompts), key=lambda p: p.id)


def _ranking(
    labeler: Judge,
    name: str,
    prompt_id: str,
    completions: Sequence[Completion],
    beliefs: Mapping[tuple[str, str], Sequence[float]],
) -> Ranking:
    """Return a prompt's ranking, with the mean belief in each pair over its principles."""
    ids = sorted(c.id for c in completions)
    pairs = {pair: _mean(beliefs[pair]) for pair in combinations(ids, 2)}
    wins: dict[str, list[float]] = {i: [] for i in ids}
    for (first, second), p in pairs.items():
        wins[first].append(p)
        wins[second].append(1 - p)
    preferences = [
        Preference(first=first, second=second, p_first=round(p, 6))
        for (first, second), p in pairs.items()
    ]
    rates = {i: _mean(won) for i, won in wins.items()}
    return ranking(
        prompt_id, name, labeler.criterion, rates, tie=labeler.tie, preferences=preferences
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
