"""Several criteria: each makes pairs of its own, or all make one verdict; and where they differ.

A criterion's weight says how much it counts beside the others; only their ratio matters.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.lib.labels.agreement import NotMeasurable, figure
from stages.lib.labels.consensus import Candidate
from stages.lib.labels.pairing import Ballot
from stages.lib.statistics import Estimate, bootstrap_mean

Combine = Literal["apart", "together"]
TOGETHER = "together"
"""What stands for the criterion of a pair that several criteria decided."""


def arranged(ballots: Sequence[Ballot], weights: Mapping[str, float], how: Combine) -> list[Ballot]:
    """Return the ballots as they are decided: one criterion needs no arranging."""
    if len(ballots) == 1:
        return list(ballots)
    return apart(ballots, weights) if how == "apart" else [together(ballots, weights)]


def apart(ballots: Sequence[Ballot], weights: Mapping[str, float]) -> list[Ballot]:
    """Give each criterion pairs of its own, whose ids name it and whose weights are its share.

    Weights 3 and 1 give shares 3/4 and 1/4, so a prompt that both criteria judge counts as one.
    """
    total = math.fsum(weights[one.criterion] for one in ballots)
    return [
        replace(
            one,
            candidates=[
                replace(pair, id=f"{pair.id}:{one.criterion}", share=weights[one.criterion] / total)
                for pair in one.candidates
            ],
        )
        for one in ballots
    ]


def together(ballots: Sequence[Ballot], weights: Mapping[str, float]) -> Ballot:
    """Make one verdict a pair of the criteria's.

        p_first = sum(w_c * p_c) / sum(w_c)      over the criteria under which anyone votes on it

    A criterion under which all who judged a pair tied it and abstain (ties: drop) says nothing of
    it. The margin is the same mean of the margins, whose units may differ.
    """
    groups = defaultdict(list)
    for one in ballots:
        for pair in one.candidates:
            groups[pair.id].append(pair)
    judged = defaultdict(set)
    for one in ballots:
        for prompt_id, completions in one.judged.items():
            judged[prompt_id].update(completions)
    merged = [_merged(group, weights) for group in groups.values()]
    return Ballot(
        TOGETHER,
        sorted(merged, key=lambda pair: (pair.prompt_id, pair.id)),
        set().union(*(one.contradicted for one in ballots)),
        judged,
        set().union(*(one.shown for one in ballots)),
        [ranking for one in ballots for ranking in one.counting],
    )


def _merged(group: Sequence[Candidate], weights: Mapping[str, float]) -> Candidate:
    voted = [pair for pair in group if pair.votes]
    if not voted:
        return replace(group[0], criterion=TOGETHER, margin=_mean(group, "margin", weights))
    p_first = _mean(voted, "p_first", weights)
    winner = (p_first > 0.5) - (p_first < 0.5)
    # As within a criterion: of those that speak for the winner, half say no more than junk.
    siding = [pair for pair in voted if winner and (pair.p_first - 0.5) * winner > 0]
    junk = math.fsum(weights[pair.criterion] for pair in siding if pair.junk)
    return replace(
        voted[0],
        criterion=TOGETHER,
        p_first=p_first,
        margin=_mean(voted, "margin", weights),
        labelers=sorted({name for pair in voted for name in pair.labelers}),
        votes=sum(pair.votes for pair in voted),
        junk=junk > 0 and 2 * junk >= math.fsum(weights[pair.criterion] for pair in siding),
    )


def _mean(
    group: Sequence[Candidate], what: Literal["p_first", "margin"], weights: Mapping[str, float]
) -> float:
    total = math.fsum(weights[pair.criterion] for pair in group)
    mean = math.fsum(weights[pair.criterion] * getattr(pair, what) for pair in group) / total
    # Weights that cancel do so but for the last bits, which must not decide.
    return 0.5 if what == "p_first" and abs(mean - 0.5) < 1e-9 else mean


class TradeOff:
    """For each two criteria, where their verdicts on the same pairs go together."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Begin with no pairs.

        Args:
            weights: of each criterion.
        """
        self._weights = weights
        self._sides: dict[tuple[str, str], list[NDArray]] = defaultdict(list)
        self._opposed: dict[tuple[str, str], list[NDArray]] = defaultdict(list)

    def add(self, ballots: Sequence[Ballot], clusters: Mapping[str, int]) -> None:
        """Take in the votes on some prompts."""
        for one, other in itertools.combinations(sorted(ballots, key=lambda b: b.criterion), 2):
            of_other = {pair.id: pair for pair in other.candidates}
            both = [(pair, of_other[pair.id]) for pair in one.candidates if pair.id in of_other]
            sides = [(_side(a), _side(b), clusters[a.prompt_id]) for a, b in both]
            opposed = [
                (_side(_merged(couple, self._weights)), _side(couple[0]), where)
                for couple, (a, b, where) in zip(both, sides, strict=True)
                if a * b == -1
            ]
            named = one.criterion, other.criterion
            self._sides[named].append(np.array(sides, np.int32).reshape(-1, 3))
            self._opposed[named].append(np.array(opposed, np.int32).reshape(-1, 3))

    def figures(self, *, resamples: int, seed: int) -> dict[str, Any]:
        """Return the shares of pairs that go together.

        Returns:
            `a:b` to the number of pairs judged under both, the shares of these that are `alike`,
            in `conflict`, and a `tie` under one or both; and `taken`: of the pairs in conflict,
            the share on which one verdict by the weights of the two is a's, b's, and neither's.
        """
        often = {"resamples": resamples, "seed": seed}
        found = {}
        for (one, other), blocks in self._sides.items():
            a, b, where = np.concatenate(blocks).T
            taken, first, there = np.concatenate(self._opposed[one, other]).T
            nothing = f"no pair is judged under both {one} and {other}"
            settled = f"{one} and {other} are in conflict on no pair"
            found[f"{one}:{other}"] = {
                "pairs": len(where),
                "alike": _share(a * b == 1, where, nothing, often),
                "conflict": _share(a * b == -1, where, nothing, often),
                "tie": _share(a * b == 0, where, nothing, often),
                "taken": {
                    one: _share(taken == first, there, settled, often),
                    other: _share(taken == -first, there, settled, often),
                    "neither": _share(taken == 0, there, settled, often),
                },
            }
        return found


def _side(pair: Candidate) -> int:
    """1: first is better; -1: second is; 0: a tie."""
    return (pair.p_first > 0.5) - (pair.p_first < 0.5)


def _share(
    is_so_N: NDArray, clusters_N: NDArray, nothing: str, often: Mapping[str, int]
) -> dict[str, Any]:
    def measure() -> Estimate:
        if not len(is_so_N):
            raise NotMeasurable(nothing)
        return bootstrap_mean(is_so_N.astype(float), clusters_N, **often)

    return figure(measure)
