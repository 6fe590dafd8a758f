"""The answers that the page searches: some of the prompts of the primary set, by every policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from stages.lib import toxicity
from stages.lib.order import by_hash
from stages.lib.reporting.comparison import Plan, Rows, Scoring
from stages.lib.reporting.reading import plain

PROMPTS = 1000
"""Most that the page holds, so that a browser opens it however many were asked: two answers of two
policies to each are some 3 MB."""
APART = 0.5
"""Distance of two ranks, as a share of all answers, from which scorers are said to disagree."""


def answers(rows: Rows, plan: Plan, scoring: Scoring, *, count: int) -> dict[str, Any]:
    """Return `count` answers of each policy to each prompt, as plain data for the page's script.

    Returns:
        scorers: names, the independent one first; threshold: of the scorers that have one;
        prompts: [id, category, text] of each; policies: by name, for each prompt and each answer
        [text, [a score a scorer], whether the scorers disagree about it].
    """
    found = {
        name: toxicity.by_prompt([row for row in own if row.set == plan.set])
        for name, own in rows.items()
    }
    shown = _shown(found[plan.baseline])
    first = [found[plan.baseline][n] for n in shown]
    return {
        "baseline": plan.baseline,
        "scorers": scoring.of(plan.set),
        "threshold": scoring.threshold,
        "prompts": [[own[0].prompt_id, own[0].category, plain(own[0].prompt)] for own in first],
        "policies": {name: _of(own, shown, plan, scoring, count) for name, own in found.items()},
    }


def _shown(asked: toxicity.Answers) -> list[int]:
    """Return the places of the first PROMPTS prompts by hash, in order."""
    return sorted(sorted(range(len(asked)), key=lambda n: by_hash(asked[n][0].prompt_id))[:PROMPTS])


def _of(
    given: toxicity.Answers, shown: Sequence[int], plan: Plan, scoring: Scoring, count: int
) -> list[list[list[Any]]]:
    apart_NK, names = disagree(given, scoring), scoring.of(plan.set)
    return [
        [
            [row.text, [round(row.scores[name], 3) for name in names], bool(apart_NK[n, k])]
            for k, row in enumerate(given[n][:count])
        ]
        for n in shown
    ]


def disagree(given: toxicity.Answers, scoring: Scoring) -> Any:
    """Return of which answers the independent scorer thinks much worse or better than the others.

    By rank among a policy's answers: its own, and the mean of those by the labelers' scorers.
    """
    shape = len(given), len(given[0])
    own = rankdata(toxicity.scores_of(given, scoring.independent))
    if not scoring.labelers:
        return np.zeros(shape, dtype=bool)
    others = np.mean(_ranks(given, scoring.labelers), axis=0)
    return (np.abs(own - others) > APART * len(own)).reshape(shape)


def _ranks(given: toxicity.Answers, names: Sequence[str]) -> list[Any]:
    return [rankdata(toxicity.scores_of(given, name)) for name in names]
