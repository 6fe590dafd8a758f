"""How far the toxicity of a policy's answers depends on the group of people that is named.

Shape suffixes: B = beginnings, G = groups, R = resamples or permutations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from stages.lib.identities import CONTROL
from stages.lib.identity_answers import IdentityAnswer
from stages.lib.reporting.comparison import Nested, Plan, Scoring
from stages.lib.runtime.files import RecordError
from stages.lib.statistics import Floats, cluster_resamples

Named = Mapping[str, Sequence[IdentityAnswer]]
"""Policy to its answers."""


@dataclass(frozen=True, slots=True)
class Table:
    """Answers by beginning and group."""

    beginnings: list[str]
    dimensions: dict[str, str]
    """Of each group."""
    cells: list[list[list[IdentityAnswer]]]
    """Of beginning and group, in the order of their indices."""

    def scores(self, scorer: str) -> Floats:
        """Return scores_BG: the mean over the answers to one beginning with one group.

        Raises:
            RecordError: an answer has no score of it. A missing score is not a score of zero.
        """
        for a in (a for row in self.cells for own in row for a in own if scorer not in a.scores):
            raise RecordError(
                f"answer {a.index} to beginning {a.beginning} with {a.group} has no score of "
                f"{scorer}; evaluate again"
            )
        return self._means(lambda answer: answer.scores[scorer])

    def names_again(self) -> Floats:
        """Return shares_BG of answers that name the group too."""
        return self._means(lambda answer: answer.names_again)

    def of(self, dimension: str) -> list[int]:
        """Return the places of its groups."""
        return [g for g, own in enumerate(self.dimensions.values()) if own == dimension]

    def _means(self, value) -> Floats:
        return np.array([[np.mean([value(a) for a in own]) for own in row] for row in self.cells])


def table(answers: Sequence[IdentityAnswer], policy: str) -> Table:
    """Arrange one policy's answers, in an order that is the same for every policy.

    Raises:
        RecordError: an answer stands twice, or a beginning and group have not as many as others.
    """
    cells: dict[tuple[str, str], dict[int, IdentityAnswer]] = {}
    for a in answers:
        own = cells.setdefault((a.beginning, a.group), {})
        if a.index in own:
            raise RecordError(
                f"{policy}: answer {a.index} to beginning {a.beginning} with {a.group} stands twice"
            )
        own[a.index] = a
    beginnings = sorted({a.beginning for a in answers})
    dimensions = {g: d for _, d, g in sorted({(a.dimension == CONTROL, a.dimension, a.group)
                                              for a in answers})}  # fmt: skip
    usual = len(next(iter(cells.values())))
    for b, g in ((b, g) for b in beginnings for g in dimensions):
        found = len(cells.get((b, g), {}))
        if found != usual:
            raise RecordError(
                f"{policy}: beginning {b} with {g} has {found} answers where others have {usual}"
            )
    ordered = [[[own[i] for i in sorted(own)] for own in (cells[b, g] for g in dimensions)]
               for b in beginnings]  # fmt: skip
    return Table(beginnings, dimensions, ordered)


def require_same_beginnings(named: Named, baseline: str) -> None:
    """Refuse policies that were not asked exactly what the baseline was asked.

    Raises:
        RecordError: the first policy whose beginnings, groups or numbers of answers differ.
    """
    asked = {
        name: sorted((a.beginning, a.group, a.index, a.dimension, a.prompt) for a in own)
        for name, own in named.items()
    }
    for name, own in asked.items():
        if own != asked[baseline]:
            raise RecordError(
                f"identities.jsonl of {name} answers other beginnings than that of {baseline}; "
                "policies are compared on the same ones; evaluate both again"
            )


def gap(scores_BG: Floats, weights_RB: Floats) -> Floats:
    """Return how far the groups' true mean scores lie apart: their standard deviation, estimated.

        d_bg = y_bg - mean over g of y_bg
        s²   = sum over b != c of w_b w_c K_bc / sum over b != c of w_b w_c,
               where K_bc = sum over g of d_bg d_cg / (G - 1)
        gap  = sign(s²) sqrt |s²|

    The standard deviation of the observed means is larger than zero by noise alone, the largest
    less the smallest even more so. s² is not: it asks whether two different beginnings find the
    same groups worse, whose noise is independent. So its mean is the variance of the true means,
    whatever the noise. It is the component of variance between groups in the two-way layout
    (mean square of groups less that of the remainder, over B), and a U-statistic, which is why
    a resample leaves out a beginning's product with itself, also where it is drawn twice.

    [[.1, .3], [.2, .6]]: d = [[-.1, .1], [-.2, .2]], s² = .02 + .02, gap = .2.

    Args:
        scores_BG: y, in units of the score.
        weights_RB: w, how often each beginning is drawn; 1 for the estimate itself.

    Returns:
        gap_R in units of the score. Negative: beginnings agree less than by chance, and no gap is
        seen. NaN where one beginning alone was drawn.
    """
    centred_BG = scores_BG - scores_BG.mean(1, keepdims=True)
    products_BB = centred_BG @ centred_BG.T / (scores_BG.shape[1] - 1)
    own_B = np.diag(products_BB)
    sums_R = ((weights_RB @ products_BB) * weights_RB).sum(1) - weights_RB**2 @ own_B
    pairs_R = weights_RB.sum(1) ** 2 - (weights_RB**2).sum(1)
    return _root(np.where(pairs_R > 0, sums_R, np.nan) / np.where(pairs_R > 0, pairs_R, 1))


def permuted_gap(scores_BG: Floats, *, permutations: int, seed: int) -> Floats:
    """Return gap_R as it comes out where it does not matter who is named.

    Then the scores of one beginning could as well belong to its groups in any other order. Whole
    cells change places, so what a beginning and a group have in common counts as noise, as it does
    for somebody who writes other beginnings.
    """
    centred_BG = scores_BG - scores_BG.mean(1, keepdims=True)
    many, groups = scores_BG.shape
    rng = np.random.default_rng(seed)
    order_RBG = rng.random((permutations, many, groups)).argsort(-1)
    shuffled_RBG = centred_BG[np.arange(many)[None, :, None], order_RBG]
    # Sums over b != c of d_b d_c: the square of the sum, less what no order changes.
    squares_R = (shuffled_RBG.sum(1) ** 2).sum(1) - (centred_BG**2).sum()
    return _root(squares_R / ((groups - 1) * many * (many - 1)))


def ends(drawn_R: Floats, beginnings: int) -> dict[str, float]:
    """Return the 95 % interval of resamples of few units: Hesterberg's expanded percentiles.

    Ten units vary less within a resample than they would anew, and a normal quantile takes their
    spread for known: percentiles 2.5 and 97.5 cover 90 % of the times. So it is percentile
    Phi(-sqrt(n / (n - 1)) t), with t the 97.5 % quantile of Student's t with n - 1 degrees of
    freedom: .9 and 99.1 for ten (Hesterberg 2015, arXiv:1411.5279).
    """
    wide = t.ppf(0.975, beginnings - 1) * np.sqrt(beginnings / (beginnings - 1))
    low, high = np.nanquantile(drawn_R, [norm.cdf(-wide), norm.cdf(wide)])
    return {"low": float(low), "high": float(high)}


def estimates(named: Named, scoring: Scoring, plan: Plan, *, seed: int) -> dict[str, Nested]:
    """Return each policy's figures by scorer, the independent one under that word.

    Returns:
        By policy: `names_again`, the share of answers that name the group too; and of each scorer

            gap            with `p` and `chance`, the 95 % quantile where it does not matter who is
                           named; over all groups but the control
            over_control   mean score of those groups, less that of the control
            by_dimension   {dimension: {gap without p, groups: {group: mean score}}}; a dimension
                           of one group has no gap
    """
    found = {}
    for name, answers in named.items():
        if answers:
            own = table(answers, name)
            found[name] = _policy(own, None, scoring, plan, seed)
    return found


def effects(named: Named, scoring: Scoring, plan: Plan, *, seed: int) -> dict[str, Nested]:
    """Return the change of every figure against the baseline, paired by beginning and group.

    Resamples of beginnings are the same for both. No p: nobody declared a test of them.

    Raises:
        RecordError: two policies were not asked the same.
    """
    require_same_beginnings(named, plan.baseline)
    if not named[plan.baseline]:
        return {}
    before = table(named[plan.baseline], plan.baseline)
    return {
        name: _policy(table(answers, name), before, scoring, plan, seed)
        for name, answers in named.items()
        if name != plan.baseline
    }


def _policy(own: Table, before: Table | None, scoring: Scoring, plan: Plan, seed: int) -> Nested:
    """The figures of a policy, or their change."""
    draws = {"resamples": plan.resamples, "seed": seed}
    weights_RB = cluster_resamples(own.beginnings, **draws)
    found: Nested = {}
    for scorer in scoring.names:
        scores_BG = own.scores(scorer)
        earlier_BG = None if before is None else before.scores(scorer)
        key = "independent" if scorer == scoring.independent else scorer
        found[key] = _scorer(own, scores_BG, earlier_BG, weights_RB, draws)
    again_BG = own.names_again() - (0 if before is None else before.names_again())
    return {**found, "names_again": _mean(again_BG.mean(1), weights_RB)}


def _scorer(
    own: Table, scores_BG: Floats, earlier_BG: Floats | None, weights_RB: Floats, draws: Nested
) -> Nested:
    change_BG = scores_BG if earlier_BG is None else scores_BG - earlier_BG
    control = own.of(CONTROL)
    others = [g for g in range(len(own.dimensions)) if g not in control]
    over_B = change_BG[:, others].mean(1) - change_BG[:, control].mean(1)

    def gap_of(places: list[int]) -> Nested:
        earlier = None if earlier_BG is None else earlier_BG[:, places]
        return _gap(scores_BG[:, places], earlier, weights_RB, draws)

    by_dimension: Nested = {}
    for dimension in dict.fromkeys(own.dimensions.values()):
        places = own.of(dimension)
        means = {list(own.dimensions)[g]: _mean(change_BG[:, g], weights_RB) for g in places}
        spread = gap_of(places) if len(places) > 1 else {}
        spread.pop("p", None)  # seven tests that nobody declared
        by_dimension[dimension] = {**({"gap": spread} if spread else {}), "groups": means}
    return {
        "gap": gap_of(others),
        "over_control": _mean(over_B, weights_RB),
        "by_dimension": by_dimension,
    }


def _gap(scores_BG: Floats, earlier_BG: Floats | None, weights_RB: Floats, draws: Nested) -> Nested:
    many = len(scores_BG)
    once_1B = np.ones((1, many))
    drawn_R, value = gap(scores_BG, weights_RB), float(gap(scores_BG, once_1B)[0])
    if earlier_BG is not None:
        drawn_R = drawn_R - gap(earlier_BG, weights_RB)
        value -= float(gap(earlier_BG, once_1B)[0])
        return {"value": value, **ends(drawn_R, many), "n": many}
    null_R = permuted_gap(scores_BG, permutations=draws["resamples"], seed=draws["seed"])
    # A hair's breadth of tolerance: equal sums in another order differ in the last bit.
    reached = int((null_R >= value - 1e-8).sum())
    return {
        "value": value,
        **ends(drawn_R, many),
        "n": many,
        "p": (reached + 1) / (len(null_R) + 1),
        "chance": float(np.quantile(null_R, 0.95)),
    }


def _mean(values_B: Floats, weights_RB: Floats) -> Nested:
    drawn_R = weights_RB @ values_B / weights_RB.sum(1)
    many = len(values_B)
    return {"value": float(values_B.mean()), **ends(drawn_R, many), "n": many}


def _root(squared_R: Floats) -> Floats:
    return np.sign(squared_R) * np.sqrt(np.abs(squared_R))
