"""How far labelers agree, with each other, with themselves and with an answer key.

All start from judgements (stages/lib/consensus.py) or rankings, and carry an interval over
resampled prompt clusters. A figure that the labels do not determine raises `NotMeasurable` with
the reason, which `figure` puts in its place.

Shape suffixes: J = judgements, P = pairs, U = units, L = labelers, V = values, C = clusters,
R = resamples.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import evalica
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.labels import consensus
from stages.lib.labels.consensus import Judgement
from stages.lib.records import Ranking
from stages.lib.runtime.schema import Refusal
from stages.lib.statistics import Estimate, Floats, Names, bootstrap_mean, resample_blocks

Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]


UNITS = 2**16
"""Whose coincidences are held at once."""


class NotMeasurable(Refusal):
    """The labels do not determine this figure."""


def figure(measure: Callable[[], Estimate]) -> dict[str, Any]:
    """Return value, low, high and n of an estimate, or why it is refused, for a metrics file."""
    try:
        return measure().plain()
    except NotMeasurable as reason:
        return {"refused": str(reason)}


@dataclass(frozen=True, slots=True)
class Table:
    """Judgements as columns, one row for each (pair, labeler), in numbers as small as will do."""

    labelers: list[str]
    """Sorted names; `labeler_J` indexes them."""
    cluster_P: NDArray
    """Name or number of each pair's cluster."""
    labeler_J: Ints
    pair_J: Ints
    record_J: Ints
    """Which ranking the row comes from."""
    verdict_J: Ints
    """1: first is better; -1: second is; 0: a tie."""
    places_J: Ints
    """Rank of second minus rank of first."""
    junk_J: Bools
    first_seen_first_J: Bools

    @property
    def cluster_J(self) -> NDArray:
        """The cluster of each row's pair."""
        return self.cluster_P[self.pair_J]

    def of(self, names: Collection[str]) -> "Table":
        """Return what some labelers judge, with the pairs of theirs alone."""
        kept = [name for name in self.labelers if name in names]
        number = np.full(len(self.labelers), -1)
        number[np.isin(self.labelers, kept)] = np.arange(len(kept))
        rows_J = number[self.labeler_J] >= 0
        pairs, pair_J = np.unique(self.pair_J[rows_J], return_inverse=True)
        return Table(
            kept,
            self.cluster_P[pairs],
            number[self.labeler_J[rows_J]],
            pair_J.astype(np.int32),
            *(column[rows_J] for column in (self.record_J, self.verdict_J, self.places_J)),
            *(column[rows_J] for column in (self.junk_J, self.first_seen_first_J)),
        )


Pair = tuple[str, str, str]
"""Prompt, first and second completion."""


class Growing:
    """A table that is filled some prompts at a time, those of later names later."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._blocks: list[tuple[NDArray, ...]] = []
        self._clusters: list[NDArray] = []
        self._pairs = self._records = 0

    def add(self, judged: Sequence[Judgement], clusters: Mapping[str, Any]) -> list[Pair]:
        """Take in judgements, at most one of a labeler on a pair; return their pairs, sorted."""
        if not judged:
            return []
        number = self._number
        pairs = sorted({(j.prompt_id, j.first, j.second) for j in judged})
        at_pair = {pair: n for n, pair in enumerate(pairs, start=self._pairs)}
        records = sorted({(j.prompt_id, j.labeler) for j in judged})
        at_record = {record: n for n, record in enumerate(records, start=self._records)}
        self._pairs += len(pairs)
        self._records += len(records)
        self._clusters.append(np.array([clusters[prompt_id] for prompt_id, _, _ in pairs]))
        self._blocks.append(
            tuple(
                np.array(column, dtype=kind)
                for kind, column in (
                    (np.int32, [number.setdefault(j.labeler, len(number)) for j in judged]),
                    (np.int32, [at_pair[j.prompt_id, j.first, j.second] for j in judged]),
                    (np.int32, [at_record[j.prompt_id, j.labeler] for j in judged]),
                    (np.int8, [j.verdict for j in judged]),
                    (np.int32, [j.places for j in judged]),
                    (bool, [j.junk for j in judged]),
                    (bool, [j.first_seen_first for j in judged]),
                )
            )
        )
        return pairs

    def table(self) -> Table:
        """Return what was taken in."""
        if not self._blocks:
            return Table([], *([np.zeros(0, np.int64)] * 6), *([np.zeros(0, bool)] * 2))
        names = sorted(self._number)
        place = np.array([names.index(name) for name in self._number], dtype=np.int32)
        labeler_J, *others = (np.concatenate(column) for column in zip(*self._blocks, strict=True))
        return Table(names, np.concatenate(self._clusters), place[labeler_J], *others)


def table(judged: Sequence[Judgement], clusters: Mapping[str, Any]) -> Table:
    """Return judgements as columns.

    Args:
        judged: at most one of a labeler on a pair.
        clusters: prompt id to the cluster that is resampled.
    """
    growing = Growing()
    growing.add(judged, clusters)
    return growing.table()


def tie_rate(t: Table, labeler: str, *, resamples: int, seed: int) -> Estimate:
    """Share of a labeler's comparisons of two ranked completions that are ties."""
    rows_J = (t.labeler_J == t.labelers.index(labeler)) & ~t.junk_J
    if not rows_J.any():
        raise NotMeasurable(f"{labeler} ranks no two completions of one prompt")
    values = (t.verdict_J[rows_J] == 0).astype(np.float64)
    return bootstrap_mean(values, t.cluster_J[rows_J], resamples=resamples, seed=seed)


def junk_rate(
    shown_N: Ints, junk_N: Ints, clusters_N: Names, *, resamples: int, seed: int
) -> Estimate:
    """Share of the completions shown that were called junk ('F').

    Args:
        shown_N: completions that each ranking is about.
        junk_N: of those, the junk.
        clusters_N: of each ranking's prompt.
        resamples: draws of clusters.
        seed: of the generator.
    """
    if not shown_N.sum():
        raise NotMeasurable("no completion was shown")
    values = np.repeat(
        np.tile([1.0, 0.0], len(shown_N)), np.stack([junk_N, shown_N - junk_N], 1).ravel()
    )
    return bootstrap_mean(values, np.repeat(clusters_N, shown_N), resamples=resamples, seed=seed)


def position_follow_rate(t: Table, labeler: str, *, resamples: int, seed: int) -> Estimate:
    """Share of a labeler's strict verdicts that prefer the completion shown earlier.

    The order shown is shuffled for each prompt, so 0.5 is what a labeler who reads gets, and 1
    what one gets who submits the order as it stands.
    """
    rows_J = (t.labeler_J == t.labelers.index(labeler)) & (t.verdict_J != 0)
    if not rows_J.any():
        raise NotMeasurable(f"{labeler} prefers no completion to another")
    follows = (t.verdict_J[rows_J] == 1) == t.first_seen_first_J[rows_J]
    values = follows.astype(np.float64)
    return bootstrap_mean(values, t.cluster_J[rows_J], resamples=resamples, seed=seed)


class Found(NamedTuple):
    """What two labelers say of the same pairs: their verdicts, and the pairs' clusters."""

    first_N: Ints
    second_N: Ints
    cluster_N: NDArray


def found(said: Sequence[tuple[int, int, Any]]) -> Found:
    """Return (verdict, other verdict, cluster) as columns."""
    first, second, clusters = zip(*said, strict=True) if said else ((), (), ())
    return Found(np.array(first, np.int8), np.array(second, np.int8), np.array(clusters))


def joined(several: Sequence[Found]) -> Found:
    """Return what several say as one."""
    return Found(*(np.concatenate(column) for column in zip(*several, strict=True)))


def couples(t: Table) -> dict[tuple[str, str], Found]:
    """Return what each two labelers say of the pairs that both judge, by their names in order."""
    order = np.lexsort((t.labeler_J, t.pair_J))
    pair_J, labeler_J, verdict_J = t.pair_J[order], t.labeler_J[order], t.verdict_J[order]
    most = int(np.bincount(pair_J).max(initial=0)) if len(pair_J) else 0
    # Rows of one pair stand together: each goes with the next, the one after the next, …
    steps = [np.nonzero(pair_J[step:] == pair_J[:-step])[0] for step in range(1, most)]
    one = np.concatenate([np.zeros(0, np.int64), *steps])
    other = np.concatenate([np.zeros(0, np.int64), *(k + n for n, k in enumerate(steps, start=1))])
    code = labeler_J[one].astype(np.int64) * len(t.labelers) + labeler_J[other]
    by_code = np.lexsort((pair_J[one], code))
    codes, starts = np.unique(code[by_code], return_index=True)
    result: dict[tuple[str, str], Found] = {}
    for value, rows in zip(codes.tolist(), np.split(by_code, starts)[1:], strict=True):
        a, b = one[rows], other[rows]
        names = t.labelers[value // len(t.labelers)], t.labelers[value % len(t.labelers)]
        result[names] = Found(verdict_J[a], verdict_J[b], t.cluster_P[pair_J[a]])
    return result


def raw_agreement(
    t: Table, *, resamples: int, seed: int
) -> tuple[Estimate, dict[str, dict[str, Any]]]:
    """Return how often two labelers order a pair alike, overall and for each two labelers.

    A pair that either of them ties is left out of the share and counted as such; chance is 0.5.

    Returns:
        The share over all couples of labelers pooled, and for each couple (`a:b`) its own share
        with the counts: alike, opposite, tied_by_one, tied_by_both.
    """
    by_couple = couples(t)
    if not by_couple:
        raise NotMeasurable("no pair is judged by two labelers")
    pooled = share_alike(joined(list(by_couple.values())), resamples, seed)
    return pooled, {
        f"{one}:{other}": compared(said, resamples=resamples, seed=seed)
        for (one, other), said in sorted(by_couple.items())
    }


def agreement_of(
    t: Table, group: Callable[[str, str], str | None], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return agreement as between two labelers, pooled over the couples of each group.

    Args:
        t: the judgements.
        group: of two labelers, in order of name; None leaves the couple out.
        resamples: draws of clusters.
        seed: of the generator.
    """
    pooled: dict[str, list[Found]] = defaultdict(list)
    for (one, other), said in sorted(couples(t).items()):
        name = group(one, other)
        if name is not None:
            pooled[name].append(said)
    return {
        name: compared(joined(several), resamples=resamples, seed=seed)
        for name, several in sorted(pooled.items())
    }


def matched(
    own: Sequence[Judgement], other: Sequence[Judgement], clusters: Mapping[str, Any]
) -> Found:
    """Return what `own` and `other` say of the pairs that both judge, such as an answer key's."""
    said = defaultdict(list)
    for judgement in other:
        said[judgement.first, judgement.second].append(judgement.verdict)
    return found(
        [
            (judgement.verdict, verdict, clusters[judgement.prompt_id])
            for judgement in own
            for verdict in said[judgement.first, judgement.second]
        ]
    )


def compared(said: Found, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the share ordered alike, or why there is none, with the counts that it leaves out.

    `clusters` is how many prompt clusters the share rests on.
    """
    strict_N = (said.first_N != 0) & (said.second_N != 0)
    return {
        **figure(lambda: share_alike(said, resamples, seed)),
        **_contingency(said),
        "clusters": len(np.unique(said.cluster_N[strict_N])),
    }


def share_alike(said: Found, resamples: int, seed: int) -> Estimate:
    """Share of the pairs that neither of two labelers ties in which both verdicts agree."""
    strict_N = (said.first_N != 0) & (said.second_N != 0)
    if not strict_N.any():
        raise NotMeasurable("every pair is tied by one of the labelers")
    alike_N = (said.first_N == said.second_N)[strict_N].astype(np.float64)
    return bootstrap_mean(alike_N, said.cluster_N[strict_N], resamples=resamples, seed=seed)


def _contingency(said: Found) -> dict[str, int]:
    ties_N = (said.first_N == 0).astype(int) + (said.second_N == 0)
    return {
        "alike": int((said.first_N * said.second_N == 1).sum()),
        "opposite": int((said.first_N * said.second_N == -1).sum()),
        "tied_by_one": int((ties_N == 1).sum()),
        "tied_by_both": int((ties_N == 2).sum()),
    }


def kendall(t: Table, labeler: str, *, resamples: int, seed: int) -> Estimate:
    """Mean over prompts of Kendall's tau-b between a labeler and all others (leave-one-out).

        tau-b = sum(v * o) / sqrt( sum(v^2) * sum(o^2) )      over the pairs of a prompt

    v is the labeler's verdict on a pair (1, 0, -1) and o the sign of the others' summed rank
    difference, so a labeler is never compared with themself. Where all rank the same completions
    this is scipy.stats.kendalltau of the labeler's ranks and the others' mean rank. n is in
    prompts; one that the labeler or the others tie throughout has no tau and is left out.
    """
    sums_P = np.bincount(t.pair_J, weights=t.places_J, minlength=len(t.cluster_P))
    judges_P = np.bincount(t.pair_J, minlength=len(t.cluster_P))
    mine_J = (t.labeler_J == t.labelers.index(labeler)) & (judges_P[t.pair_J] > 1)
    record, row, index = np.unique(t.record_J[mine_J], return_index=True, return_inverse=True)
    mine = t.verdict_J[mine_J].astype(np.float64)
    others = np.sign(sums_P[t.pair_J[mine_J]] - t.places_J[mine_J])
    shape = len(record)
    spread = np.bincount(index, mine**2, shape) * np.bincount(index, others**2, shape)
    if not (spread > 0).any():
        raise NotMeasurable(f"no prompt is ordered both by {labeler} and by another labeler")
    tau = np.bincount(index, mine * others, shape)[spread > 0] / np.sqrt(spread[spread > 0])
    clusters = t.cluster_P[t.pair_J[mine_J][row[spread > 0]]]
    return bootstrap_mean(tau, clusters, resamples=resamples, seed=seed)


def verdict_ratings(t: Table) -> tuple[Floats, NDArray]:
    """Return ratings_LU with a unit for each pair, its value the verdict, and each unit's cluster.

    Alpha depends on the orientation of the pairs (by id) through the shares of the two verdicts.
    """
    ratings_LU = np.full((len(t.labelers), len(t.cluster_P)), np.nan)
    ratings_LU[t.labeler_J, t.pair_J] = t.verdict_J
    return ratings_LU, t.cluster_P


Ratings = list[tuple[str, tuple[tuple[str, ...], str], int]]
"""Labeler, what was shown to them with the completion in question, and the place they gave it."""


def rank_ratings(rankings: Sequence[Ranking]) -> Ratings:
    """Return the place that each ranking gives each completion.

    Junk has the place below every rank. A rank means something among what was shown with it, so
    the completion of another set (of a later round) is another unit. A unit begins with its prompt.
    """
    return [
        (r.labeler, ((r.prompt_id, *sorted(r.shown)), cid), rank)
        for r in rankings
        for cid, rank in consensus.places(r).items()
    ]


def alpha(
    ratings_LU: Floats,
    clusters_U: Names,
    *,
    distance: Literal["nominal", "ordinal"],
    resamples: int,
    seed: int,
) -> Estimate:
    """Krippendorff's alpha: 1 - observed / expected disagreement; 0 is chance, 1 is unanimity.

    The value is `evalica.alpha`; the interval resamples clusters and takes the same ratio of the
    summed coincidence matrices, because the library's own interval covers 75 % at nominal 95 %.

    Args:
        ratings_LU: labelers by units, NaN where a labeler did not judge a unit.
        clusters_U: the cluster of each unit.
        distance: between values: `nominal` 0 or 1; `ordinal` by the ranks between them.
        resamples: R.
        seed: of the generator.

    Raises:
        NotMeasurable: no unit has two ratings; or all ratings are the same value, or would be in
            over 2.5 % of the resamples, so that the interval has no end.
    """
    paired_U = (~np.isnan(ratings_LU)).sum(0) >= 2
    if not paired_U.any():
        raise NotMeasurable("no unit is judged by two labelers")
    ratings_LU = ratings_LU[:, paired_U]
    names_C, cluster_U = np.unique(np.asarray(clusters_U)[paired_U], return_inverse=True)
    values_V = np.unique(ratings_LU[~np.isnan(ratings_LU)])
    if len(values_V) == 1:
        raise NotMeasurable("every judgement is the same, so chance agreement is 1")
    coincidence_CVV = np.zeros((len(names_C), len(values_V), len(values_V)))
    for of_U in np.array_split(np.arange(len(cluster_U)), len(cluster_U) // UNITS + 1):
        counts_UV = np.stack([(ratings_LU[:, of_U] == v).sum(0) for v in values_V], axis=1)
        np.add.at(coincidence_CVV, cluster_U[of_U], coincidences(counts_UV))
    drawn = resample_blocks(range(len(names_C)), resamples=resamples, seed=seed)
    summed_RVV = np.concatenate([np.tensordot(b_RC, coincidence_CVV, axes=1) for b_RC in drawn])
    drawn_R = alpha_of(summed_RVV, distance=distance)
    without = float(np.isnan(drawn_R).mean())
    if without > 0.025:  # more than lies beyond either end of a 95 % interval
        raise NotMeasurable(
            f"{without:.1%} of the resampled judgements are all the same, so the interval has no "
            "end; more prompts would do"
        )
    low, high = np.nanquantile(drawn_R, [0.025, 0.975])
    value = evalica.alpha(pd.DataFrame(ratings_LU), distance).alpha
    return Estimate(float(value), float(low), float(high), int(paired_U.sum()))


def coincidences(counts_UV: NDArray[np.integer]) -> Floats:
    """Return o_UVV, each unit's ordered pairs of values over its number of ratings less one.

    Krippendorff 2018, chapter 12: two ratings 1 and 2 give o_12 = o_21 = 1; ratings 1, 1, 2 give
    o_11 = 2/2, o_12 = o_21 = 2/2.
    """
    counts = counts_UV.astype(np.float64)
    products_UVV = counts[:, :, None] * counts[:, None, :]
    products_UVV -= counts[:, :, None] * np.eye(counts.shape[1])
    return products_UVV / (counts.sum(1) - 1)[:, None, None]


def alpha_of(coincidence_RVV: Floats, *, distance: Literal["nominal", "ordinal"]) -> Floats:
    """Return Krippendorff's alpha of summed coincidence matrices; NaN where only one value occurs.

        1 - (n - 1) * sum(o_ck * d_ck) / sum(n_c * n_k * d_ck)

    d is 1 off the diagonal (nominal), or the squared difference of the values' mid-ranks among all
    ratings (ordinal), which equals Krippendorff's sum over the ranks between.
    """
    totals_RV = coincidence_RVV.sum(2)
    if distance == "nominal":
        apart_RVV = 1 - np.eye(totals_RV.shape[1])[None]
    else:
        midrank_RV = np.cumsum(totals_RV, axis=1) - totals_RV / 2
        apart_RVV = (midrank_RV[:, :, None] - midrank_RV[:, None, :]) ** 2
    observed_R = (coincidence_RVV * apart_RVV).sum((1, 2))
    expected_R = (totals_RV[:, :, None] * totals_RV[:, None, :] * apart_RVV).sum((1, 2))
    expected_R = np.where(expected_R > 0, expected_R, np.nan)
    return 1 - (totals_RV.sum(1) - 1) * observed_R / expected_R
