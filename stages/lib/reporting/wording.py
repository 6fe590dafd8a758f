"""Finds the words that a policy writes more or less often than the baseline."""

import re
from collections.abc import Sequence

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
    after_VN, before_VN, vocabulary = _shares(after, before)
    after_V, before_V = after_VN.mean(1), before_VN.mean(1)
    rise_V = after_V - before_V
    clusters_N = toxicity.clusters_of(after)

    def shift(v: int) -> Shift:
        found = bootstrap_mean(
            after_VN[v] - before_VN[v], clusters_N, resamples=resamples, seed=seed
        ).plain()
        found.pop("n")
        return {"word": vocabulary[v], "before": before_V[v], "after": after_V[v], **found}

    # Ties in alphabetical order: the vocabulary is sorted and the sort is stable.
    rising = [int(v) for v in np.argsort(-rise_V, kind="stable") if _rose(before_V[v], after_V[v])]
    falling = [int(v) for v in np.argsort(rise_V, kind="stable") if _rose(after_V[v], before_V[v])]
    return [shift(v) for v in rising[:count]], [shift(v) for v in falling[:count]]


def _rose(before: float, after: float) -> bool:
    return bool(after > 0 and after >= 2 * before)


def _shares(after: toxicity.Answers, before: toxicity.Answers) -> tuple[Floats, Floats, list[str]]:
    """Share of each prompt's completions with each word: after_VN, before_VN, and the words."""
    seen = [[[words(row.text) for row in own] for own in answers] for answers in (after, before)]
    vocabulary = sorted(set().union(*(text for answers in seen for own in answers for text in own)))
    place = {word: v for v, word in enumerate(vocabulary)}
    shares = []
    for answers in seen:
        share_VN = np.zeros((len(vocabulary), len(answers)))
        for n, own in enumerate(answers):
            for text in own:
                share_VN[[place[word] for word in text], n] += 1 / len(own)
        shares.append(share_VN)
    return shares[0], shares[1], vocabulary
