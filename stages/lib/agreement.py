"""How far labelers agree, and how often each is right: figures of label quality.

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

from stages.lib import consensus
from stages.lib.consensus import Judgement
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


def raw_agreement(
    t: Table, *, resamples: int, seed: int
) -> tuple[Estimate, dict[str, dict[str, Any]]]:
    """Return how often two labelers order a pair alike, overall and for each two labelers.

    A pair that either of them ties is left out of the share and counted as such; chance is 0.5.

    Returns:
        The share over all couples of labelers pooled, and for each couple (`a:b`) its own share
        with the counts: alike, opposite, tied_by_one, tied_by_both.
    """
    verdicts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    by_pair = _rows_by_pair(t)
    for rows in by_pair:
        for one, other in itertools.combinations(rows, 2):
            couple = f"{t.labelers[t.labeler_J[one]]}:{t.labelers[t.labeler_J[other]]}"
            found = (int(t.verdict_J[one]), int(t.verdict_J[other]), str(t.cluster_J[one]))
            verdicts[couple].append(found)
    if not verdicts:
        raise NotMeasurable("no pair is judged by two labelers")
    pooled = share_alike(list(itertools.chain(*verdicts.values())), resamples, seed)
    return pooled, {
        couple: {
            **figure(lambda found=found: share_alike(found, resamples, seed)),
            **_contingency(found),
        }
        for couple, found in sorted(verdicts.items())
    }


def _rows_by_pair(t: Table) -> list[list[int]]:
    """Rows of each pair, in the order of the labelers' names."""
    groups = defaultdict(list)
    for row in np.lexsort((t.labeler_J, t.pair_J)):
        groups[int(t.pair_J[row])].append(int(row))
    return list(groups.values())


def share_alike(found: list[tuple[int, int, str]], resamples: int, seed: int) -> Estimate:
    """Share of (verdict, other verdict, cluster) without a tie in which both verdicts agree."""
    strict = [(float(a == b), cluster) for a, b, cluster in found if a and b]
    if not strict:
        raise NotMeasurable("every pair is tied by one of the labelers")
    values, clusters = zip(*strict, strict=True)
    return bootstrap_mean(values, clusters, resamples=resamples, seed=seed)


def _contingency(found: list[tuple[int, int, str]]) -> dict[str, int]:
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

    Junk has the place below every rank.
    """
    given = {
        (r.labeler, r.prompt_id, cid): rank
        for r in rankings
        for cid, rank in consensus.places(r).items()
    }
    row = {name: index for index, name in enumerate(sorted({who for who, _, _ in given}))}
    units = sorted({(prompt_id, cid) for _, prompt_id, cid in given})
    column = {unit: index for index, unit in enumerate(units)}
    ratings_LU = np.full((len(row), len(units)), np.nan)
    for (who, prompt_id, cid), rank in given.items():
        ratings_LU[row[who], column[prompt_id, cid]] = rank
    return ratings_LU, [clusters[prompt_id] for prompt_id, _ in units]


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


def dawid_skene(
    votes_PL: NDArray[np.integer],
    weights_RP: Floats,
    *,
    prior: tuple[float, float],
    tolerance: float = 1e-6,
    limit: int = 2000,
) -> Floats:
    """One-coin Dawid-Skene by expectation-maximisation: how often each labeler is right.

        q_p = sigmoid( sum_l v_pl * log(s_l / (1 - s_l)) )          the chance that first is better
        s_l = (a + expected right verdicts) / (a + b + verdicts)

    Dawid and Skene 1979, with one parameter a labeler (right on either side alike), even odds for
    the truth of a pair, and a Beta prior that counts as a right and b wrong verdicts. The prior
    also says that labelers are right more often than wrong; without it all could be mirrored.

    It takes labelers' errors to be independent: two that copy each other look better than they are.

    Args:
        votes_PL: 1, -1, or 0 where a labeler tied the pair or did not judge it.
        weights_RP: how often each row counts, for R resamples solved side by side.
        prior: (a, b), a > b > 0.
        tolerance: largest change of any skill at which it stops.
        limit: iterations at most.

    Returns:
        skills_RL, strictly between 0 and 1; the prior's mean for a labeler without votes.

    Raises:
        NotMeasurable: it has not settled at the limit.
    """
    right, wrong = prior
    votes = votes_PL.astype(np.float64)
    cast_RL = weights_RP @ np.abs(votes)
    skills_RL = np.full(cast_RL.shape, right / (right + wrong))
    for _ in range(limit):
        odds_RP = np.log(skills_RL / (1 - skills_RL)) @ votes.T
        # 2q - 1 = tanh(odds / 2), so v * (2q - 1) is the chance to be right less that to be wrong.
        expected_RL = (cast_RL + (weights_RP * np.tanh(odds_RP / 2)) @ votes) / 2
        before, skills_RL = skills_RL, (right + expected_RL) / (right + wrong + cast_RL)
        if np.abs(skills_RL - before).max(initial=0.0) < tolerance:
            return skills_RL
    raise NotMeasurable(f"the skills have not settled after {limit} iterations")


def votes_of(t: Table) -> NDArray[np.int8]:
    """Return votes_PL: each labeler's strict verdict on each pair, 0 where there is none."""
    votes_PL = np.zeros((len(t.cluster_P), len(t.labelers)), dtype=np.int8)
    votes_PL[t.pair_J, t.labeler_J] = t.verdict_J
    return votes_PL


def skills(t: Table, *, prior: tuple[float, float]) -> dict[str, float]:
    """Return each labeler's skill, for weighing votes. With two labelers it leans on the prior."""
    patterns, weights = _patterns(t, np.ones((1, len(set(t.cluster_P)))))
    found_L = dawid_skene(patterns, weights, prior=prior)[0]
    return dict(zip(t.labelers, found_L.tolist(), strict=True))


def skill_estimates(
    t: Table, *, prior: tuple[float, float], resamples: int, seed: int
) -> dict[str, Estimate | NotMeasurable]:
    """Return each labeler's skill with its interval, or why it cannot be told.

    Agreement fixes three skills where three labelers judge pairs in common; between two it is one
    number for two skills. n counts the labeler's strict verdicts.
    """
    votes_PL = votes_of(t)
    names = sorted(set(t.cluster_P))
    drawn_RC = cluster_resamples(names, resamples=resamples, seed=seed)
    patterns, weights_RP = _patterns(t, np.vstack([np.ones((1, len(names))), drawn_RC]))
    found_RL = dawid_skene(patterns, weights_RP, prior=prior)
    low_L, high_L = np.quantile(found_RL[1:], [0.025, 0.975], axis=0)
    cast_L = (votes_PL != 0).sum(0)
    told_L = _in_a_triangle(votes_PL)
    return {
        name: Estimate(*map(float, (found_RL[0, k], low_L[k], high_L[k])), n=int(cast_L[k]))
        if told_L[k]
        else NotMeasurable(f"{name} judges no pairs in common with two others who share pairs")
        for k, name in enumerate(t.labelers)
    }


def _in_a_triangle(votes_PL: NDArray[np.int8]) -> Bools:
    """Whether each labeler shares pairs with two others who share pairs with each other."""
    cast = (votes_PL != 0).astype(np.float64)
    shared_LL = (cast.T @ cast > 0).astype(np.float64)
    np.fill_diagonal(shared_LL, 0)
    return np.diagonal(shared_LL @ shared_LL @ shared_LL) > 0


def _patterns(t: Table, drawn_RC: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return the distinct rows of votes, and how often each occurs in every resample of clusters.

    A row and its mirror image say the same of skills. Three labelers make at most 13 patterns
    whatever the number of pairs, which is what makes resampling cheap.
    """
    votes_PL = votes_of(t)
    voted_P = (votes_PL != 0).any(1)
    votes_PL = votes_PL[voted_P]
    _, cluster_P = np.unique(np.asarray(t.cluster_P, dtype=str), return_inverse=True)
    leading_P = np.take_along_axis(votes_PL, (votes_PL != 0).argmax(1)[:, None], axis=1)
    patterns, which_P = np.unique(votes_PL * leading_P, axis=0, return_inverse=True)
    counts_CP = np.zeros((drawn_RC.shape[1], len(patterns)))
    np.add.at(counts_CP, (cluster_P[voted_P], which_P.reshape(-1)), 1)
    return patterns, drawn_RC @ counts_CP


def report(
    rankings: Sequence[Ranking],
    clusters: Mapping[str, str],
    *,
    prior: tuple[float, float],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return every figure of this file for rankings that count, as nested plain numbers.

    Returns:
        `labelers`: name to junk_rate, tie_rate, position_follow_rate, kendall, skill; `agreement`:
        raw, between (each two labelers), alpha_nominal on pair verdicts, alpha_ordinal on ranks.
    """
    often = {"resamples": resamples, "seed": seed}
    t = table([j for r in rankings for j in consensus.judgements(r)], clusters)
    by_labeler = defaultdict(list)
    for ranking in rankings:
        by_labeler[ranking.labeler].append(ranking)
    skill = _skill_figures(t, prior, often)
    labelers = {
        name: {
            "junk_rate": figure(lambda own=own: junk_rate(own, clusters, **often)),
            "tie_rate": _of_labeler(tie_rate, t, name, often),
            "position_follow_rate": _of_labeler(position_follow_rate, t, name, often),
            "kendall": _of_labeler(kendall, t, name, often),
            "skill": skill.get(name, {"refused": _COMPARES_NOTHING.format(name)}),
        }
        for name, own in sorted(by_labeler.items())
    }
    return {"labelers": labelers, "agreement": _agreement_figures(t, rankings, clusters, often)}


_COMPARES_NOTHING = "{} compares no completions"


def _of_labeler(
    measure: Callable[..., Estimate], t: Table, name: str, often: Mapping[str, int]
) -> dict[str, Any]:
    if name not in t.labelers:
        return {"refused": _COMPARES_NOTHING.format(name)}
    return figure(lambda: measure(t, name, **often))


def _skill_figures(
    t: Table, prior: tuple[float, float], often: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    if not t.labelers:
        return {}
    try:
        found = skill_estimates(t, prior=prior, **often)
    except NotMeasurable as reason:
        return {name: {"refused": str(reason)} for name in t.labelers}
    return {
        name: e.plain() if isinstance(e, Estimate) else {"refused": str(e)}
        for name, e in found.items()
    }


def _agreement_figures(
    t: Table, rankings: Sequence[Ranking], clusters: Mapping[str, str], often: Mapping[str, int]
) -> dict[str, Any]:
    try:
        overall, between = raw_agreement(t, **often)
        raw = {"raw": overall.plain(), "between": between}
    except NotMeasurable as reason:
        raw = {"raw": {"refused": str(reason)}}
    verdicts, verdict_clusters = verdict_ratings(t)
    ranks, rank_clusters = rank_ratings(rankings, clusters)
    return {
        **raw,
        "alpha_nominal": figure(
            lambda: alpha(verdicts, verdict_clusters, distance="nominal", **often)
        ),
        "alpha_ordinal": figure(lambda: alpha(ranks, rank_clusters, distance="ordinal", **often)),
    }
