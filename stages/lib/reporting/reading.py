"""Chooses completions to read: at random, and where policy or scorers deserve a second look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from stages.lib import toxicity
from stages.lib.records import Evaluated, Message


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with a completion of the baseline and one of the policy."""

    before: Evaluated
    after: Evaluated

    @property
    def prompt(self) -> str:
        """The prompt as one text; a chat's turns on their own lines."""
        return plain(self.after.prompt)


@dataclass(frozen=True, slots=True)
class Shelf:
    """Samples of one kind, and how they were chosen."""

    title: str
    rule: str
    samples: list[Sample]


def plain(prompt: str | list[Message]) -> str:
    """Return a prompt as one text; a chat's turns on their own lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


def shelves(
    policy: Sequence[Evaluated],
    baseline: Sequence[Evaluated],
    *,
    main: str,
    independent: str,
    scorers: Sequence[str],
    count: int,
    seed: int,
) -> list[Shelf]:
    """Return the samples of one policy: `count` of each kind, of random ones `count` a set.

    Args:
        policy: its completions, of all sets.
        baseline: of the same prompts and indices.
        main: the primary set, from which all but the random samples come.
        independent: the independent scorer.
        scorers: the labelers' scorers.
        count: how many.
        seed: of the random ones.
    """
    ours = toxicity.by_prompt([row for row in policy if row.set == main])
    theirs = toxicity.by_prompt([row for row in baseline if row.set == main])
    worst_after = toxicity.scores_of(ours, independent)
    worst_before = toxicity.scores_of(theirs, independent)
    change_N = worst_after.max(1) - worst_before.max(1)

    def extremes(order: list[int]) -> list[Sample]:
        return [
            Sample(theirs[n][worst_before[n].argmax()], ours[n][worst_after[n].argmax()])
            for n in order[:count]
        ]

    worse = [int(n) for n in np.argsort(-change_N, kind="stable") if change_N[n] > 0]
    better = [int(n) for n in np.argsort(change_N, kind="stable") if change_N[n] < 0]
    most = f"by the independent score of a prompt's worst of {len(ours[0])} completions, shown here"
    drawn = _random(policy, baseline, main, count, seed)
    odd = _disagreements(ours, theirs, independent, scorers, count)
    apart = (
        "largest distance between a completion's rank by the independent scorer and its mean rank "
        "by the labelers' scorers, among this policy's completions"
    )
    return [
        Shelf("Random", "drawn by the seed, the same prompts for every policy", drawn),
        Shelf("Most improved", most, extremes(better)),
        Shelf("Most worsened", most, extremes(worse)),
        Shelf("Scorers disagree", apart, odd),
    ]


def _random(
    policy: Sequence[Evaluated],
    baseline: Sequence[Evaluated],
    main: str,
    count: int,
    seed: int,
) -> list[Sample]:
    rng = np.random.default_rng(seed)
    before = {(row.prompt_id, row.index): row for row in baseline}
    found: list[Sample] = []
    for name in sorted({row.set for row in policy}, key=lambda name: (name != main, name)):
        answers = toxicity.by_prompt([row for row in policy if row.set == name])
        for n in sorted(rng.permutation(len(answers))[:count]):
            after = answers[n][rng.integers(len(answers[n]))]
            found.append(Sample(before[after.prompt_id, after.index], after))
    return found


def _disagreements(
    ours: toxicity.Answers,
    theirs: toxicity.Answers,
    independent: str,
    scorers: Sequence[str],
    count: int,
) -> list[Sample]:
    if not scorers:
        return []
    own = rankdata(toxicity.scores_of(ours, independent))
    others = np.mean([rankdata(toxicity.scores_of(ours, scorer)) for scorer in scorers], axis=0)
    k = len(ours[0])
    order = np.argsort(-np.abs(own - others), kind="stable")[:count]
    return [Sample(theirs[i // k][i % k], ours[i // k][i % k]) for i in order]
