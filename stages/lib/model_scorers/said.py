"""What a model said of the answers it was asked about."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stages.lib import scores
from stages.lib.scores import ByPolicy, Score


class Said(NamedTuple):
    """Scores, and of the model's card what only the kind of scorer knows."""

    scores: list[Score]
    asks: str
    """What a score is the probability of."""
    reads: str
    """What it reads of a text, and what it cuts."""
    texts: int
    """Different texts, or pairs of texts, that it was asked about."""
    cut: int
    sets: list[str]
    prompts: int | None
    measures: dict[str, float]


def of_texts(
    answers: ByPolicy,
    sets: Sequence[str],
    probabilities: Callable[[Sequence[str]], Sequence[float]],
) -> tuple[list[Score], int]:
    """Return the score of every answer of some sets by its text alone, and the number of texts.

    Equal texts are asked about once, and so have equal scores, whoever wrote them.
    """
    given = scores.asked(answers, sets, None)
    texts = list(dict.fromkeys(row.text for _, row in given))
    value = dict(zip(texts, probabilities(texts), strict=True))
    return [scores.score(policy, row, value[row.text]) for policy, row in given], len(texts)
