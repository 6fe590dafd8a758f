"""Finds the words that a policy writes more or less often than the baseline."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from stages.lib import toxicity
from stages.lib.records import Evaluated
from stages.lib.statistics import Floats, bootstrap_mean

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

Shift = dict[str, str | float]
"""word; before and after, the share of completions with it; value, low and high, of the rise."""


def words(text: str) -> set[str]:
    """Return the words of a text in lower case, without digits and marks: "Can't!" is {can't}."""
    return {found.lower() for found in WORD.findall(text)}


def shifts(
    policy: Sequence[Evaluated],
    baseline: Sequence[Evaluated],
    *,
    count: int,
    resamples: int,
    seed: int,
) -> tuple[list[Shift], list[Shift]]:
    """Return the words whose share of completions rose most, and those whose share fell most.

    Only words whose share at least doubled, or halved, are looked at: without that, every change
    of length would be told as a change of "the". The difference is paired by prompt, its interval
    a bootstrap of clusters.

    Args:
        policy: completions of one set.
        baseline: of the same prompts.
        count: how many words of each kind.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    after, before = toxicity.by_prompt(policy), toxicity.by_prompt(baseline)
    texts = len(after) * len(after[0])
    counts = [
        Counter(word for text in _texts(some) for word in words(text)) for some in (after, before)
    ]
    vocabulary = sorted(set().union(*counts))
    after_V, before_V = (np.array([own[word] for word in vocabulary]) / texts for own in counts)
    rise_V = after_V - before_V
    clusters_N = toxicity.clusters_of(after)

    # Ties in alphabetical order: the vocabulary is sorted and the sort is stable.
    rising = [int(v) for v in np.argsort(-rise_V, kind="stable") if _rose(before_V[v], after_V[v])]
    falling = [int(v) for v in np.argsort(rise_V, kind="stable") if _rose(after_V[v], before_V[v])]
    looked_at = [vocabulary[v] for v in (*rising[:count], *falling[:count])]
    # Of these few alone the share by prompt: of a whole vocabulary it would fill the memory.
    after_WN, before_WN = (_shares(some, looked_at) for some in (after, before))

    def shift(v: int) -> Shift:
        change_N = after_WN[vocabulary[v]] - before_WN[vocabulary[v]]
        found = bootstrap_mean(change_N, clusters_N, resamples=resamples, seed=seed).plain()
        found.pop("n")
        return {"word": vocabulary[v], "before": before_V[v], "after": after_V[v], **found}

    return [shift(v) for v in rising[:count]], [shift(v) for v in falling[:count]]


def _texts(answers: toxicity.Answers) -> Iterator[str]:
    return (row.text for own in answers for row in own)


def _rose(before: float, after: float) -> bool:
    return bool(after > 0 and after >= 2 * before)


def _shares(answers: toxicity.Answers, wanted: Sequence[str]) -> dict[str, Floats]:
    """Share of each prompt's completions with each of some words: word to share_N."""
    shares = {word: np.zeros(len(answers)) for word in wanted}
    for n, own in enumerate(answers):
        for row in own:
            for word in words(row.text) & shares.keys():
                shares[word][n] += 1 / len(own)
    return shares
