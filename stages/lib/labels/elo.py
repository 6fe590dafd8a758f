"""How often one sampler's completions are preferred to another's, as ratings on the Elo scale.

    P(x over y) = p_x / (p_x + p_y + 2 v sqrt(p_x p_y))       rating = 1000 + 400 log10 p

Bradley and Terry 1952 with ties (Davidson 1970; Newman 2023, Journal of Machine Learning Research
24). The geometric mean of p is 1, so the ratings average 1000; a lead of 400 is odds of ten to one
among the comparisons that do not tie.

The maximum is found by Newton's method, since the logarithm of this likelihood is concave in log p
and log v. `evalica.newman` is not used: where no odd cycle of comparisons exists, as between any
two samplers, it swings for ever or stops at a wrong value (0.4.2: 100 wins to 10 give 1 to 1).

Shape suffixes: N = comparisons, D = duels (two samplers), 3 = duels' outcomes (left wins, right
wins, tie), S = samplers, C = clusters, R = resamples, E = edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.lib.labels.agreement import NotMeasurable
from stages.lib.statistics import Estimate, Floats, resample_blocks

Indices = NDArray[np.integer]


class Comparison(NamedTuple):
    """One judgement of two samplers' completions."""

    left: str
    right: str
    outcome: int
    """1: left is better; -1: right is; 0: a tie."""
    cluster: str
    """Of the prompt; comparisons of one cluster are resampled together."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Comparisons of different samplers, in any order and orientation."""

    names: list[str]
    """Of samplers, sorted."""
    left_N: Indices
    right_N: Indices
    outcome_N: Indices
    cluster_N: NDArray

    def of(self, which_N: NDArray[np.bool_]) -> "Columns":
        """Return some of them."""
        columns = self.left_N, self.right_N, self.outcome_N, self.cluster_N
        return Columns(self.names, *(column[which_N] for column in columns))


def columns(compared: Sequence[Comparison]) -> Columns:
    """Return comparisons as columns."""
    names = sorted({name for c in compared for name in (c.left, c.right)})
    # Column by column: to zip 100,000 rows costs ten times as much as to read them.
    return Columns(
        names,
        _numbered([c.left for c in compared], names),
        _numbered([c.right for c in compared], names),
        np.array([c.outcome for c in compared], dtype=np.int64),
        np.array([c.cluster for c in compared]),
    )


def ratings(compared: Columns, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Return each sampler's rating with its interval; n is in comparisons of that sampler.

    Args:
        compared: the comparisons.
        resamples: R, draws of clusters.
        seed: of the generator.

    Raises:
        NotMeasurable: the comparisons do not fix one finite rating for each: there are fewer than
            two samplers, parts that were never compared, a part that wins everything, or so few
            clusters that over 2.5 % of the resamples are like that and the interval has no end.
    """
    there = np.unique(np.concatenate([compared.left_N, compared.right_N]))
    names = [compared.names[n] for n in there]
    if len(names) < 2:
        raise NotMeasurable("a rating compares samplers, and fewer than two are compared here")
    duels = count(compared)
    left_D, right_D, total_D3 = duels.left_D, duels.right_D, duels.total_D3
    reason = unrated(left_D, right_D, total_D3, names)
    if reason:
        raise NotMeasurable(reason)
    found_S, start = fit(left_D, right_D, total_D3, np.zeros(len(names) + 1))
    counts_CD3 = duels.by_cluster(compared.cluster_N)
    drawn = resample_blocks(range(len(counts_CD3)), resamples=resamples, seed=seed)
    drawn_RD3 = np.concatenate([np.tensordot(b_RC, counts_CD3, axes=1) for b_RC in drawn])
    drawn_RS = np.full((resamples, len(names)), np.nan)
    for draw, drawn_D3 in enumerate(drawn_RD3):
        if not unrated(left_D, right_D, drawn_D3, names):
            drawn_RS[draw], _ = fit(left_D, right_D, drawn_D3, start)
    without = float(np.isnan(drawn_RS).any(1).mean())
    if without > 0.025:  # more than lies beyond either end of a 95 % interval
        raise NotMeasurable(
            f"{without:.1%} of the resampled comparisons fix no finite rating, so its interval has "
            "no end; more prompts would do"
        )
    low_S, high_S = np.nanquantile(drawn_RS, [0.025, 0.975], axis=0)
    count_S = np.bincount(np.concatenate([left_D, right_D]), np.tile(total_D3.sum(1), 2))
    return {
        name: Estimate(float(found_S[s]), float(low_S[s]), float(high_S[s]), int(count_S[s]))
        for s, name in enumerate(names)
    }


@dataclass(frozen=True, slots=True)
class Duels:
    """Outcomes of comparisons, counted by who meets whom."""

    left_D: Indices
    """Index of the sampler whose name comes first."""
    right_D: Indices
    total_D3: Floats
    """How often left won, right won, and neither."""
    cell_N: Indices
    """Which cell of total_D3 each comparison is counted in."""

    def by_cluster(self, clusters_N: NDArray) -> Floats:
        """Return counts_CD3, the outcomes of each cluster."""
        clusters_C, cluster_N = np.unique(clusters_N, return_inverse=True)
        cells = self.total_D3.size
        place_N = cluster_N.reshape(-1) * cells + self.cell_N
        counts = np.bincount(place_N, minlength=len(clusters_C) * cells).astype(np.float64)
        return counts.reshape(len(clusters_C), *self.total_D3.shape)


def count(compared: Columns) -> Duels:
    """Count outcomes for each two samplers that are compared.

    Args:
        compared: at least one comparison.
    """
    there = np.unique(np.concatenate([compared.left_N, compared.right_N]))
    one_N, other_N = np.searchsorted(there, (compared.left_N, compared.right_N))
    outcome_N = compared.outcome_N * np.where(one_N < other_N, 1, -1)
    low_N, high_N = np.minimum(one_N, other_N), np.maximum(one_N, other_N)
    duels_D, duel_N = np.unique(low_N * len(there) + high_N, return_inverse=True)
    cell_N = 3 * duel_N.reshape(-1) + np.select([outcome_N > 0, outcome_N < 0], [0, 1], default=2)
    total_D3 = np.bincount(cell_N, minlength=3 * len(duels_D)).astype(np.float64).reshape(-1, 3)
    return Duels(duels_D // len(there), duels_D % len(there), total_D3, cell_N)


def _numbered(values: Sequence[str], names: Sequence[str]) -> Indices:
    number = {name: index for index, name in enumerate(names)}
    return np.fromiter((number[value] for value in values), np.int64, len(values))


def unrated(
    left_D: Indices, right_D: Indices, counts_D3: Floats, names: Sequence[str]
) -> str | None:
    """Return why the comparisons fix no finite rating for each of `names`, or None.

    Each sampler must be reachable from each other along comparisons that were not lost (Ford
    1957), a tie counting both ways. Where there are ties, some cycle must also hold more wins than
    ties, or ever more distant ratings and ever more likely ties fit ever better.
    """
    won, lost, tied = (counts_D3 > 0).T
    from_E = np.concatenate([left_D[won], right_D[lost], left_D[tied], right_D[tied]])
    to_E = np.concatenate([right_D[won], left_D[lost], right_D[tied], left_D[tied]])
    size = (len(names), len(names))
    held = coo_array((np.ones(len(from_E)), (from_E, to_E)), shape=size)
    parts, part_S = connected_components(held, connection="weak")
    if parts > 1:
        listed = "; ".join(_listed(names, part_S == part) for part in range(parts))
        return f"no comparison joins {parts} parts of the samplers: {listed}"
    parts, part_S = connected_components(held, connection="strong")
    if parts > 1:
        # A part that nothing outside holds against: it won all there was between it and the rest.
        crossing = part_S[from_E] != part_S[to_E]
        top = min(set(range(parts)) - set(part_S[to_E][crossing].tolist()))
        winners, losers = _listed(names, part_S == top), _listed(names, part_S != top)
        return f"{winners} won every comparison with {losers}, so no rating is finite"
    cost_E = np.where(np.arange(len(from_E)) < won.sum() + lost.sum(), -1.0, 1.0)
    if tied.any() and not _has_negative_cycle(from_E, to_E, cost_E, len(names)):
        return "no cycle of comparisons holds more wins than ties, so no rating is finite"
    return None


def _has_negative_cycle(from_E: Indices, to_E: Indices, cost_E: Floats, nodes: int) -> bool:
    """Bellman-Ford: distances still shrink after as many rounds as there are nodes."""
    distance = np.zeros(nodes)
    for _ in range(nodes):
        before = distance.copy()
        np.minimum.at(distance, to_E, before[from_E] + cost_E)
        if np.array_equal(before, distance):
            return False
    return True


def _listed(names: Sequence[str], which_S: NDArray[np.bool_]) -> str:
    return ", ".join(name for name, wanted in zip(names, which_S, strict=True) if wanted)


def fit(
    left_D: Indices, right_D: Indices, counts_D3: Floats, start: Floats
) -> tuple[Floats, Floats]:
    """Return rating_S at the maximum of the likelihood, and where that is, as a later start.

    Args:
        left_D: index of each duel's left sampler.
        right_D: of its right sampler.
        counts_D3: how often left won, right won, and neither.
        start: log p of each sampler, then log 2v; zeros will do.

    Raises:
        NotMeasurable: it has not settled after 100 steps; `unrated` tells when none exists.
    """
    point = start.copy()
    for _ in range(100):
        value, step = _newton(left_D, right_D, counts_D3, point)
        # Concave, so the step leads uphill, though a full one may lead beyond and down again.
        while _log_likelihood(left_D, right_D, counts_D3, point + step)[0] < value - 1e-9:
            step = step / 2
        point = point + step
        if np.abs(step).max() < 1e-8:
            log_S = (point[:-1] - point[:-1].mean()) / np.log(10)
            return 1000 + 400 * log_S, point
    raise NotMeasurable("the ratings have not settled after 100 steps")


def _log_likelihood(
    left_D: Indices, right_D: Indices, counts_D3: Floats, point: Floats
) -> tuple[float, Floats]:
    """Return the log-likelihood, and p_D3, the outcomes' probabilities."""
    left, right = point[left_D], point[right_D]
    tie = point[-1] if counts_D3[:, 2].any() else -np.inf  # without ties v is 0
    utility_D3 = np.stack([left, right, tie + (left + right) / 2], axis=1)
    log_D3 = utility_D3 - np.logaddexp.reduce(utility_D3, axis=1, keepdims=True)
    seen = counts_D3 > 0
    return float(counts_D3[seen] @ log_D3[seen]), np.exp(log_D3)


def _newton(
    left_D: Indices, right_D: Indices, counts_D3: Floats, point: Floats
) -> tuple[float, Floats]:
    """Return the log-likelihood and Newton's step.

    An outcome's log-odds are linear in a duel's three unknowns (log p left, log p right, log 2v),
    with the rows of `linear`; so the gradient is observed less expected rows, and the curvature
    their covariance.
    """
    linear = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 1]])
    value, p_D3 = _log_likelihood(left_D, right_D, counts_D3, point)
    games_D = counts_D3.sum(1)
    mean_D3 = p_D3 @ linear
    slope_D3 = counts_D3 @ linear - games_D[:, None] * mean_D3
    second_D33 = np.einsum("do,oa,ob->dab", p_D3, linear, linear)
    bend_D33 = games_D[:, None, None] * (second_D33 - mean_D3[:, :, None] * mean_D3[:, None, :])
    size = len(point)
    where_D3 = np.stack([left_D, right_D, np.full_like(left_D, size - 1)], axis=1)
    slope = np.bincount(where_D3.ravel(), slope_D3.ravel(), size)
    cells_D33 = where_D3[:, :, None] * size + where_D3[:, None, :]
    bend = np.bincount(cells_D33.ravel(), bend_D33.ravel(), size * size).reshape(size, size)
    # Adding one number to all log p changes nothing: this holds their sum, and a v that no tie
    # informs, where they are.
    bend[:-1, :-1] += 1.0
    if not counts_D3[:, 2].any():
        bend[-1, -1] = 1.0
    return value, np.linalg.solve(bend, slope)


def report(
    compared: Columns,
    by_N: Sequence[str] | NDArray,
    *,
    kinds: Mapping[str, str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the ratings by all labelers together and, where there are several, by each kind.

    Args:
        compared: by any labelers.
        by_N: the kind of labeler each comparison is of.
        kinds: labeler to its kind (people, lexicon, …).
        resamples: draws of clusters.
        seed: of the generator.

    Returns:
        Set of labelers (`all`, or a kind) to its number of comparisons and either `ratings`, by
        sampler, or why they are `refused`.
    """
    sets = {"all": np.ones(len(compared.outcome_N), dtype=bool)}
    if len(set(kinds.values())) > 1:
        sets |= {kind: np.asarray(by_N) == kind for kind in sorted(set(kinds.values()))}
    found: dict[str, Any] = {}
    for name, which_N in sets.items():
        found[name] = {"comparisons": int(which_N.sum())}
        try:
            rated = ratings(compared.of(which_N), resamples=resamples, seed=seed)
            found[name]["ratings"] = {sampler: e.plain() for sampler, e in rated.items()}
        except NotMeasurable as reason:
            found[name]["refused"] = str(reason)
    return found
