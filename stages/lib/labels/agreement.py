"""How far labelers agree, with each other, with themselves and with an answer key.

All start from judgements (stages/lib/consensus.py) or rankings, and carry an interval over
resampled prompt clusters. A figure that the labels do not determine raises `NotMeasurable` with
the reason, which `figure` puts in its place.

Shape suffixes: J = judgements, P = pairs, U = units, L = labelers, V = values, C = clusters,
R = resamples.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import evalica
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.lib.labels import consensus
from stages.lib.labels.consensus import Judgement
from stages.lib.records import Ranking
from stages.lib.runtime.schema import Refusal
from stages.lib.statistics import Estimate, Floats, bootstrap_mean, cluster_resamples

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
    """Judgements as columns, one row for each (pair, labeler)."""

    labelers: list[str]
    """Sorted names; `labeler_J` indexes them."""
    cluster_P: list[str]
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
    cluster_J: NDArray[np.str_]


def table(judged: Sequence[Judgement], clusters: Mapping[str, str]) -> Table:
    """Return judgements as columns.

    Args:
        judged: at most one of a labeler on a pair.
        clusters: prompt id to the cluster that is resampled.
    """
    labelers = sorted({j.labeler for j in judged})
    number = {name: index for index, name in enumerate(labelers)}
    pairs = sorted({(j.prompt_id, j.first, j.second) for j in judged})
    pair_number = {pair: index for index, pair in enumerate(pairs)}
    records = {(j.prompt_id, j.labeler): 0 for j in judged}
    record_number = {key: index for index, key in enumerate(sorted(records))}
    return Table(
        labelers=labelers,
        cluster_P=[clusters[prompt_id] for prompt_id, _, _ in pairs],
        labeler_J=np.array([number[j.labeler] for j in judged], dtype=np.int64),
        pair_J=np.array(
            [pair_number[j.prompt_id, j.first, j.second] for j in judged], dtype=np.int64
        ),
        record_J=np.array([record_number[j.prompt_id, j.labeler] for j in judged], dtype=np.int64),
        verdict_J=np.array([j.verdict for j in judged], dtype=np.int64),
        places_J=np.array([j.places for j in judged], dtype=np.int64),
        junk_J=np.array([j.junk for j in judged], dtype=bool),
        first_seen_first_J=np.array([j.first_seen_first for j in judged], dtype=bool),
        cluster_J=np.array([clusters[j.prompt_id] for j in judged], dtype=str),
    )


def tie_rate(t: Table, labeler: str, *, resamples: int, seed: int) -> Estimate:
    """Share of a labeler's comparisons of two ranked completions that are ties."""
    rows_J = (t.labeler_J == t.labelers.index(labeler)) & ~t.junk_J
    if not rows_J.any():
        raise NotMeasurable(f"{labeler} ranks no two completions of one prompt")
    values = (t.verdict_J[rows_J] == 0).astype(np.float64)
    return bootstrap_mean(values, t.cluster_J[rows_J], resamples=resamples, seed=seed)


def junk_rate(
    rankings: Sequence[Ranking], clusters: Mapping[str, str], *, resamples: int, seed: int
) -> Estimate:
    """Share of the completions shown that were called junk ('F'), over the rankings given."""
    shown = [(r, cid) for r in rankings for cid in r.shown]
    if not shown:
        raise NotMeasurable("no completion was shown")
    values = [float(cid in r.junk) for r, cid in shown]
    names = [clusters[r.prompt_id] for r, _ in shown]
    return bootstrap_mean(values, names, resamples=resamples, seed=seed)


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


Found = tuple[int, int, str]
"""What two labelers say of one pair, and its cluster."""


def couples(t: Table) -> dict[tuple[str, str], list[Found]]:
    """Return what each two labelers say of the pairs that both judge, by their names in order."""
    groups = defaultdict(list)
    for row in np.lexsort((t.labeler_J, t.pair_J)):
        groups[int(t.pair_J[row])].append(int(row))
    found: dict[tuple[str, str], list[Found]] = defaultdict(list)
    for rows in groups.values():
        for one, other in itertools.combinations(rows, 2):
            couple = t.labelers[t.labeler_J[one]], t.labelers[t.labeler_J[other]]
            said = int(t.verdict_J[one]), int(t.verdict_J[other]), str(t.cluster_J[one])
            found[couple].append(said)
    return found


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
    pooled = share_alike(list(itertools.chain(*by_couple.values())), resamples, seed)
    named = {f"{one}:{other}": found for (one, other), found in sorted(by_couple.items())}
    return pooled, {
        couple: compared(found, resamples=resamples, seed=seed) for couple, found in named.items()
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
    for (one, other), found in sorted(couples(t).items()):
        name = group(one, other)
        if name is not None:
            pooled[name] += found
    return {
        name: compared(found, resamples=resamples, seed=seed)
        for name, found in sorted(pooled.items())
    }


def matched(
    own: Sequence[Judgement], other: Sequence[Judgement], clusters: Mapping[str, str]
) -> list[Found]:
    """Return what `own` and `other` say of the pairs that both judge, such as an answer key's."""
    said = defaultdict(list)
    for judgement in other:
        said[judgement.first, judgement.second].append(judgement.verdict)
    return [
        (judgement.verdict, verdict, clusters[judgement.prompt_id])
        for judgement in own
        for verdict in said[judgement.first, judgement.second]
    ]


def compared(found: Sequence[Found], *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the share ordered alike, or why there is none, with the counts that it leaves out.

    `clusters` is how many prompt clusters the share rests on.
    """
    return {
        **figure(lambda: share_alike(found, resamples, seed)),
        **_contingency(found),
        "clusters": len({cluster for a, b, cluster in found if a and b}),
    }


def share_alike(found: Sequence[Found], resamples: int, seed: int) -> Estimate:
    """Share of (verdict, other verdict, cluster) without a tie in which both verdicts agree."""
    strict = [(float(a == b), cluster) for a, b, cluster in found if a and b]
    if not strict:
        raise NotMeasurable("every pair is tied by one of the labelers")
    values, clusters = zip(*strict, strict=True)
    return bootstrap_mean(values, clusters, resamples=resamples, seed=seed)


def _contingency(found: Sequence[Found]) -> dict[str, int]:
    counts = Counter((abs(a) + abs(b), a * b) for a, b, _ in found)
    return {
        "alike": counts[2, 1],
        "opposite": counts[2, -1],
        "tied_by_one": counts[1, 0],
        "tied_by_both": counts[0, 0],
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
    record, index = np.unique(t.record_J[mine_J], return_inverse=True)
    mine = t.verdict_J[mine_J].astype(np.float64)
    others = np.sign(sums_P[t.pair_J[mine_J]] - t.places_J[mine_J])
    shape = len(record)
    spread = np.bincount(index, mine**2, shape) * np.bincount(index, others**2, shape)
    if not (spread > 0).any():
        raise NotMeasurable(f"no prompt is ordered both by {labeler} and by another labeler")
    tau = np.bincount(index, mine * others, shape)[spread > 0] / np.sqrt(spread[spread > 0])
    cluster_of = dict(zip(t.record_J[mine_J].tolist(), t.cluster_J[mine_J].tolist(), strict=True))
    clusters = [cluster_of[key] for key in record[spread > 0].tolist()]
    return bootstrap_mean(tau, clusters, resamples=resamples, seed=seed)


def verdict_ratings(t: Table) -> tuple[Floats, list[str]]:
    """Return ratings_LU with a unit for each pair, its value the verdict, and each unit's cluster.

    Alpha depends on the orientation of the pairs (by id) through the shares of the two verdicts.
    """
    ratings_LU = np.full((len(t.labelers), len(t.cluster_P)), np.nan)
    ratings_LU[t.labeler_J, t.pair_J] = t.verdict_J
    return ratings_LU, t.cluster_P


def rank_ratings(
    rankings: Sequence[Ranking], clusters: Mapping[str, str]
) -> tuple[Floats, list[str]]:
    """Return ratings_LU with a unit for each completion, its value the rank, and its cluster.

    Junk has the place below every rank. A rank means something among what was shown with it, so
    the completion of another set (of a later round) is another unit.
    """
    given = {
        (r.labeler, (r.prompt_id, *sorted(r.shown)), cid): rank
        for r in rankings
        for cid, rank in consensus.places(r).items()
    }
    row = {name: index for index, name in enumerate(sorted({who for who, _, _ in given}))}
    units = sorted({(shown, cid) for _, shown, cid in given})
    column = {unit: index for index, unit in enumerate(units)}
    ratings_LU = np.full((len(row), len(units)), np.nan)
    for (who, shown, cid), rank in given.items():
        ratings_LU[row[who], column[shown, cid]] = rank
    return ratings_LU, [clusters[shown[0]] for shown, _ in units]


def alpha(
    ratings_LU: Floats,
    clusters_U: Sequence[str],
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
    counts_UV = np.stack([(ratings_LU == value).sum(0) for value in values_V], axis=1)
    coincidence_CVV = np.zeros((len(names_C), len(values_V), len(values_V)))
    np.add.at(coincidence_CVV, cluster_U, coincidences(counts_UV))
    drawn_RC = cluster_resamples(names_C.tolist(), resamples=resamples, seed=seed)
    drawn_R = alpha_of(np.tensordot(drawn_RC, coincidence_CVV, axes=1), distance=distance)
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
