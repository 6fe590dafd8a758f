"""Completions found good or bad one by one, as KTO learns from them: from thumbs or from pairs.

A completion counts once a prompt, whichever ids it has, and as one of the two: what was said for
it is weighed against what was said against it. Where both weigh the same it is left out.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stages.lib.models import LanguageModel
from stages.lib.records import Message, Pair, Signal
from stages.lib.tokens import TokenSequence, encode

EVEN = 1e-9
"""A sum nearer to 0 is rounding: (2 * .8 - 1) - (2 * .6 - 1) - (2 * .7 - 1) is 2e-16."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One prompt's completions that were found good or bad."""

    prompt_id: str
    sequences: tuple[TokenSequence, ...]
    up: tuple[bool, ...]
    """Whether each is good."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one pair or one signal says of one completion."""

    prompt_id: str
    prompt: str | list[Message]
    completion_id: str
    text: str
    finish: str
    weight: float
    """Above 0 speaks for the completion, below 0 against it."""


def by_thumbs(signals: Iterable[Signal]) -> list[Said]:
    """Return what thumbs say: votes up less votes down.

    Three up of four weigh 4 * (2 * .75 - 1) = 2.
    """
    return [
        Said(
            one.prompt_id, one.prompt, one.completion_id, one.text, one.finish,
            (1 if one.up else -1) * one.votes * (2 * one.share - 1),
        )
        for one in signals
    ]  # fmt: skip


def by_pairs(pairs: Iterable[Pair]) -> list[Said]:
    """Return what pairs say: chosen is good and rejected bad, by the pair's weight and sureness.

    A completion's sum is above 0 where the weighted share of its wins is above .5, a win of a pair
    with p_chosen .8 being .8 of one: weight * (2 * p_chosen - 1) is twice that share's excess.
    """
    return [
        Said(pair.prompt_id, pair.prompt, name, text, finish, sign * pair.weight * sureness)
        for pair in pairs
        for sureness in (2 * pair.p_chosen - 1,)
        for name, text, finish, sign in (
            (pair.chosen_id, pair.chosen, pair.chosen_finish, 1),
            (pair.rejected_id, pair.rejected, pair.rejected_finish, -1),
        )
    ]


def judge(lm: LanguageModel, said: Iterable[Said], *, max_tokens: int) -> tuple[list[Judged], int]:
    """Encode completions and decide of each whether it is good or bad.

    Completions of the same tokens are one. Prompts and completions stand in the order of first
    appearance.

    Args:
        lm: its tokenizer encodes.
        said: of any number of prompts.
        max_tokens: of prompt and completion together.

    Returns:
        Prompts with the completions that are decided, and how many are not.

    Raises:
        TooLong: a sequence has more than `max_tokens`.
    """
    sums: dict[str, dict[TokenSequence, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in said:
        where = f"completion {one.completion_id}"
        sequence = encode(
            lm, one.prompt, one.text, one.finish, max_tokens=max_tokens, where=where
        )  # fmt: skip
        sums[one.prompt_id][sequence].append(one.weight)
    judged, even = [], 0
    for prompt_id, weights in sums.items():
        totals = {sequence: math.fsum(some) for sequence, some in weights.items()}
        decided = {s: total > 0 for s, total in totals.items() if abs(total) > EVEN}
        even += len(totals) - len(decided)
        if decided:
            judged.append(Judged(prompt_id, tuple(decided), tuple(decided.values())))
    return judged, even


def count(judged: Sequence[Judged]) -> tuple[int, int]:
    """Return how many completions are good, and how many bad."""
    verdicts = [up for one in judged for up in one.up]
    return sum(verdicts), len(verdicts) - sum(verdicts)
