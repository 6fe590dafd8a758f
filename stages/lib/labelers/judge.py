"""A labeler that is a language model, asked by principle, each comparison in both orders.

The protocol of Bai et al. 2022 (arXiv:2212.08073, section 4.1): two options (A) and (B), a
principle, and the probability of the answers " (A" and " (B" as a soft label. A model prefers a
place as well as an answer, so both orders are asked and averaged; how often they disagree is
logged.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.base import Base
from stages.lib.labelers.ranks import by_prompt, ranking
from stages.lib.records import Completion, Name, Prompt, Ranking, Role
from stages.lib.runtime.schema import Strict

QUESTION = """Consider the following text and two ways in which it could go on.

Text: {prompt}

{principle}

Options:
(A) {first}
(B) {second}

The answer is:"""
ANSWERS = (" (A", " (B")


class Judge(Strict):
    """An entry of `labelers`: a language model brought by `fetch`."""

    kind: Literal["judge"]
    reads: Name
    """Folder of the model that judges."""
    guide: Name
    """The constitution: file of principles."""
    criterion: Name
    """What is asked."""
    prompts: Annotated[int, Field(ge=1)]
    """How many prompts are judged, first by hash."""
    roles: Annotated[list[Role], Field(min_length=1)]
    """Whose prompts are judged."""
    tie: Annotated[float, Field(gt=0)]
    """Win rates are rounded to multiples of this."""
    principles: Annotated[list[str], Field(min_length=1)]
    """One is drawn for each comparison, by hash."""


def rank(
    labeler: Judge,
    name: str,
    base: Base,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> tuple[list[Ranking], dict[str, float]]:
    """Rank by the mean probability of winning against the prompt's other completions."""
    known = {p.id: p for p in prompts}
    grouped = by_prompt(completions)
    asked = [i for i in grouped if known[i].role in labeler.roles and len(grouped[i]) > 1]
    asked = sorted(sorted(asked, key=_hash)[: labeler.prompts])
    pairs = [(i, a, b) for i in asked for a, b in combinations(grouped[i], 2)]
    questions = [
        _question(labeler, known[i], first, second)
        for i, a, b in pairs
        for first, second in ((a, b), (b, a))
    ]
    p_first = answer_probabilities(Path(labeler.reads), base, questions)
    forward, backward = p_first[0::2], p_first[1::2]
    wins: dict[str, list[float]] = {}
    for (_, a, b), f, r in zip(pairs, forward, backward, strict=True):
        p = both_orders(f, r)
        wins.setdefault(a.id, []).append(p)
        wins.setdefault(b.id, []).append(1 - p)
    rankings = [
        ranking(
            i,
            name,
            labeler.criterion,
            {c.id: sum(wins[c.id]) / len(wins[c.id]) for c in grouped[i]},
            tie=labeler.tie,
        )
        for i in asked
    ]
    return rankings, {"order_flip_rate": order_flip_rate(forward, backward)}


def both_orders(p_first_shown_first: float, p_second_shown_first: float) -> float:
    """Return p(first better) averaged over both orders; exchanging the two gives 1 minus it.

    Args:
        p_first_shown_first: probability of answer (A) with the first completion as (A).
        p_second_shown_first: probability of answer (A) with the second completion as (A).
    """
    return (p_first_shown_first + 1 - p_second_shown_first) / 2


def answer_probabilities(folder: Path, base: Base, questions: Sequence[str]) -> list[float]:
    """Return p(A) against p(B) for each question, in order."""
    from stages.lib import likelihood, models

    lm = models.load(folder, base)
    asked = [tuple(lm.tokenizer(question).input_ids) for question in questions]
    answers = [tuple(lm.tokenizer(a, add_special_tokens=False).input_ids) for a in ANSWERS]
    return likelihood.choice(lm, asked, answers, batch_tokens=4096, label="judge")[:, 0].tolist()


def _question(labeler: Judge, prompt: Prompt, first: Completion, second: Completion) -> str:
    # The unordered pair draws the principle, so that both orders are asked by the same one.
    key = "|".join(sorted((first.id, second.id)))
    principle = labeler.principles[int(_hash(key), 16) % len(labeler.principles)]
    return QUESTION.format(
        prompt=prompt.plain(),
        principle=principle,
        first=first.text.strip(),
        second=second.text.strip(),
    )


def order_flip_rate(forward: Sequence[float], backward: Sequence[float]) -> float:
    """Return the share of comparisons whose verdict names the same place in both orders.

    NaN of no comparison.
    """
    same_place = [(f > 0.5) == (b > 0.5) for f, b in zip(forward, backward, strict=True)]
    return sum(same_place) / len(same_place) if same_place else float("nan")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
