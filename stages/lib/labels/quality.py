"""Every figure of what labelers said under one criterion, as reports/labels.json holds them.

The figures are of all labelers, also of those whose labels make no pairs, so that people can be
read beside models whoever trains. The one exception is the answer key: who ranks for it is
measured by itself alone and takes no part in what is said of the others.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.lib.labels import agreement, consensus, elo, skill
from stages.lib.labels.agreement import Found, NotMeasurable, Table, figure
from stages.lib.labels.consensus import Judgement
from stages.lib.labels.reading import PEOPLE, Given
from stages.lib.records import Ranking
from stages.lib.statistics import Estimate, Floats

Figures = dict[str, Any]
T = TypeVar("T", Ranking, Judgement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How intervals are made, by resampling prompt clusters."""

    agreement: int
    """Resamples of every figure but Elo."""
    elo: int
    seed: int

    @property
    def often(self) -> dict[str, int]:
        """What the figures of agreement take."""
        return {"resamples": self.agreement, "seed": self.seed}


@dataclass(slots=True)
class Facts:
    """Of one labeler, what needs no estimate, and the completions of each ranking."""

    prompts: int = 0
    comparable: int = 0
    """Of those prompts, the ones with two completions or more."""
    reversed_by: int = 0
    gave_way: int = 0
    shown: list[NDArray] = field(default_factory=list)
    """A row a ranking: completions shown, of those junk, and the prompt's cluster."""
    again: list[Found] = field(default_factory=list)
    """What they say a second time of pairs."""
    gold: list[Found] = field(default_factory=list)
    """What answer keys say of the pairs they judge."""


class Tally:
    """What the figures of one criterion are made from, taken in a few prompts at a time.

    Of a judgement it keeps some twenty bytes, whatever the prompt and its completions are.
    """

    def __init__(self, criterion: str, answer_keys: Collection[str]) -> None:
        """Begin with nothing.

        Args:
            criterion: whose rankings are looked at.
            answer_keys: labelers whose rankings the others are measured against.
        """
        self.criterion = criterion
        self.keys = answer_keys
        self.facts: dict[str, Facts] = defaultdict(Facts)
        self.comparable = 0
        self.judged = agreement.Growing()
        self.samplers: dict[str, int] = {}
        self.sampled: list[NDArray] = []
        self.places = Places()

    def add(self, given: Given) -> None:
        """Take in the rankings of some prompts, all that there are of each."""
        stated = [
            x for x in given.labels if isinstance(x, Ranking) and x.criterion == self.criterion
        ]
        clusters = given.clusters()
        counting = consensus.current(stated)
        judged, gave_way = consensus.judged_once(counting)
        again, _ = consensus.judged_once(consensus.current(stated, repeat=True))
        self._add_facts(given, stated, counting, gave_way, clusters)
        self._add_matches(judged, again, clusters)
        pairs = self.judged.add(judged, clusters)
        number, answers = self.samplers, given.completions
        samplers = [[answers[cid].sampler for cid in pair[1:]] for pair in pairs]
        numbers = [[number.setdefault(name, len(number)) for name in two] for two in samplers]
        self.sampled.append(np.array(numbers, dtype=np.int16).reshape(-1, 2))
        self.places.add([r for r in counting if r.labeler not in self.keys], clusters)

    def _add_facts(
        self,
        given: Given,
        stated: Sequence[Ranking],
        counting: Sequence[Ranking],
        gave_way: Counter[str],
        clusters: Mapping[str, int],
    ) -> None:
        answered = Counter(answer.prompt_id for answer in given.completions.values())
        self.comparable += sum(count > 1 for count in answered.values())
        reversed_by = consensus.reversals(stated)
        for name, own in _by_labeler(counting).items():
            facts, prompts = self.facts[name], {ranking.prompt_id for ranking in own}
            facts.prompts += len(prompts)
            facts.comparable += sum(answered[prompt_id] > 1 for prompt_id in prompts)
            facts.reversed_by += reversed_by[name]
            facts.gave_way += gave_way[name]
            rows = [(len(r.shown), len(r.junk), clusters[r.prompt_id]) for r in own]
            facts.shown.append(np.array(rows, dtype=np.int32))

    def _add_matches(
        self, judged: Sequence[Judgement], again: Sequence[Judgement], clusters: Mapping[str, int]
    ) -> None:
        key = [j for j in judged if j.labeler in self.keys]
        if not key and not again:
            return
        second = _by_labeler(again)
        for name, own in _by_labeler(judged).items():
            self.facts[name].again.append(agreement.matched(own, second[name], clusters))
            if name not in self.keys:
                self.facts[name].gold.append(agreement.matched(own, key, clusters))

    def compared(self, t: Table) -> elo.Columns:
        """Return the judgements that compare two samplers; `t` is the whole table, or part."""
        names = sorted(self.samplers)
        place = np.array([names.index(name) for name in self.samplers], dtype=np.int64)
        sampled_P2 = place[np.concatenate(self.sampled)]
        left, right = sampled_P2[t.pair_J].T
        return elo.Columns(names, left, right, t.verdict_J, t.cluster_J)


class Places:
    """The place that each labeler gives each completion, taken in a few prompts at a time."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._blocks: list[NDArray] = []
        self._clusters: list[NDArray] = []
        self._units = 0

    def add(self, rankings: Sequence[Ranking], clusters: Mapping[str, int]) -> None:
        """Take in the rankings of some prompts, all that there are of each."""
        ratings, number = agreement.rank_ratings(rankings), self._number
        units = sorted({unit for _, unit, _ in ratings})
        at = {unit: n for n, unit in enumerate(units, start=self._units)}
        self._units += len(units)
        rows = [
            (number.setdefault(who, len(number)), at[unit], rank) for who, unit, rank in ratings
        ]
        self._blocks.append(np.array(rows, dtype=np.int32).reshape(-1, 3))
        self._clusters.append(np.array([clusters[shown[0]] for shown, _ in units], dtype=np.int32))

    def ratings(self) -> tuple[Floats, NDArray]:
        """Return ratings_LU, a unit for each completion, its value the rank; and its cluster."""
        names = sorted(self._number)
        place = np.array([names.index(name) for name in self._number], dtype=np.int64)
        ratings_LU = np.full((len(names), self._units), np.nan)
        for block in self._blocks:
            ratings_LU[place[block[:, 0]], block[:, 1]] = block[:, 2]
        return ratings_LU, np.concatenate([np.zeros(0, np.int32), *self._clusters])


def report(
    tally: Tally,
    kinds: Mapping[str, str],
    *,
    prior: tuple[float, float],
    draws: Draws,
) -> Figures:
    """Return the figures of one criterion.

    Args:
        tally: of every labeler's rankings.
        kinds: labeler to its kind.
        prior: Beta prior of the skills.
        draws: of the intervals.

    Returns:
        `labelers`: name to prompts, coverage, reversed_by_revision, judged_again and the rates,
        with tau and skill; `agreement`: raw, between (each two labelers), kinds (each two kinds),
        people (all people together with each model), the two alphas; `elo`.
    """
    t, keys = tally.judged.table(), tally.keys
    others = t.of(set(t.labelers) - set(keys))
    skills = _skill_figures(others, prior, draws)
    labelers = {
        name: {
            **_facts(own, tally.comparable),
            **_rates(t, name, own, kinds, draws),
            **_relations(others, name, name in keys, skills, draws),
            "self_consistency": _against(
                own.again, draws, nothing=f"{name} ranks nothing a second time"
            ),
            "gold": _against(own.gold, draws, nothing=_without_key(name, keys)),
        }
        for name, own in sorted(tally.facts.items())
    }
    among = {name: kinds[name] for name in sorted(tally.facts) if name not in keys}
    return {
        "labelers": labelers,
        "agreement": _agreement_figures(others, tally.places, among, draws),
        "elo": _elo(tally, t, among, draws),
    }


def _elo(tally: Tally, t: Table, kinds: Mapping[str, str], draws: Draws) -> Figures:
    compared = tally.compared(t)
    kind_L = np.array([kinds.get(name, "") for name in t.labelers])
    of_J = kind_L[t.labeler_J] if len(kind_L) else np.zeros(0, str)
    which_J = (compared.left_N != compared.right_N) & (of_J != "")
    return elo.report(
        compared.of(which_J), of_J[which_J], kinds=kinds, resamples=draws.elo, seed=draws.seed
    )


def _by_labeler(lines: Iterable[T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for line in lines:
        found[line.labeler].append(line)
    return found


def _facts(own: Facts, comparable: int) -> Figures:
    """Return what needs no estimate.

    `coverage` is the share, of prompts with two completions or more, that the labeler ranked;
    `judged_again` counts pairs that a later ranking of other completions showed once more.
    """
    return {
        "prompts": own.prompts,
        "coverage": own.comparable / max(comparable, 1),
        "reversed_by_revision": own.reversed_by,
        "judged_again": own.gave_way,
    }


_COMPARES_NOTHING = "{} compares no completions"
_IS_KEY = "{} ranks for the answer key, which the others are measured by"


def _rates(
    t: Table, name: str, own: Facts, kinds: Mapping[str, str], draws: Draws
) -> dict[str, Figures]:
    """Return what a labeler's rankings say by themselves."""
    follows = _of_labeler(agreement.position_follow_rate, t, name, draws)
    if kinds[name] != PEOPLE:
        # What a model ranks stands in order of id, which says nothing of a place.
        follows = {"refused": f"{name} is no person: nothing was shown to it in a shuffled order"}
    shown = np.concatenate(own.shown).T
    return {
        "junk_rate": figure(lambda: agreement.junk_rate(*shown, **draws.often)),
        "tie_rate": _of_labeler(agreement.tie_rate, t, name, draws),
        "position_follow_rate": follows,
    }


def _relations(
    t: Table, name: str, answers: bool, skills: Mapping[str, Figures], draws: Draws
) -> dict[str, Figures]:
    """Return what the other labelers' rankings say of a labeler's."""
    if answers:
        reason = {"refused": _IS_KEY.format(name)}
        return {"kendall": reason, "skill": reason}
    return {
        "kendall": _of_labeler(agreement.kendall, t, name, draws),
        "skill": skills.get(name, {"refused": _COMPARES_NOTHING.format(name)}),
    }


def _of_labeler(measure: Callable[..., Estimate], t: Table, name: str, draws: Draws) -> Figures:
    if name not in t.labelers:
        return {"refused": _COMPARES_NOTHING.format(name)}
    return figure(lambda: measure(t, name, **draws.often))


def _against(several: Sequence[Found], draws: Draws, *, nothing: str) -> Figures:
    """Return how often one orders pairs as the other does; `nothing` says why there are none."""
    if not sum(len(one.first_N) for one in several):
        return {"refused": nothing}
    return agreement.compared(agreement.joined(several), **draws.often)


def _without_key(name: str, answer_keys: Collection[str]) -> str:
    if not answer_keys:
        return "no entry of labelers names an answer key (`gold`)"
    if name in answer_keys:
        return _IS_KEY.format(name)
    return f"{name} judges no pair that {', '.join(sorted(answer_keys))} judges"


def _skill_figures(t: Table, prior: tuple[float, float], draws: Draws) -> dict[str, Figures]:
    if not t.labelers:
        return {}
    try:
        found = skill.skill_estimates(t, prior=prior, **draws.often)
    except NotMeasurable as reason:
        return {name: {"refused": str(reason)} for name in t.labelers}
    return {
        name: e.plain() if isinstance(e, Estimate) else {"refused": str(e)}
        for name, e in found.items()
    }


def _agreement_figures(t: Table, places: Places, kinds: Mapping[str, str], draws: Draws) -> Figures:
    often = draws.often
    try:
        overall, between = agreement.raw_agreement(t, **often)
        raw: Figures = {"raw": overall.plain(), "between": between}
    except NotMeasurable as reason:
        raw = {"raw": {"refused": str(reason)}}
    verdicts, verdict_clusters = agreement.verdict_ratings(t)
    ranks, rank_clusters = places.ratings()
    return {
        **raw,
        "kinds": agreement.agreement_of(t, lambda a, b: _kinds_of(kinds[a], kinds[b]), **often),
        "people": agreement.agreement_of(t, lambda a, b: _beside_people(a, b, kinds), **often),
        "alpha_nominal": figure(
            lambda: agreement.alpha(verdicts, verdict_clusters, distance="nominal", **often)
        ),
        "alpha_ordinal": figure(
            lambda: agreement.alpha(ranks, rank_clusters, distance="ordinal", **often)
        ),
    }


def _kinds_of(one: str, other: str) -> str:
    return ":".join(sorted((one, other)))


def _beside_people(one: str, other: str, kinds: Mapping[str, str]) -> str | None:
    """Return the model of a couple of a person and a model."""
    models = [name for name in (one, other) if kinds[name] != PEOPLE]
    return models[0] if len(models) == 1 else None
