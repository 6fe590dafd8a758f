"""Every figure of what labelers said under one criterion, as reports/labels.json holds them.

The figures are of all labelers, also of those whose labels make no pairs, so that people can be
read beside models whoever trains. The one exception is the answer key: who ranks for it is
measured by itself alone and takes no part in what is said of the others.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stages.lib.labels import agreement, consensus, elo, skill
from stages.lib.labels.agreement import NotMeasurable, Table, figure
from stages.lib.labels.consensus import Judgement
from stages.lib.labels.reading import PEOPLE, Given
from stages.lib.records import Ranking
from stages.lib.statistics import Estimate

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


def report(
    given: Given,
    criterion: str,
    *,
    answer_keys: Collection[str],
    prior: tuple[float, float],
    draws: Draws,
) -> Figures:
    """Return the figures of one criterion.

    Args:
        given: every labeler's labels.
        criterion: whose rankings are looked at.
        answer_keys: labelers whose rankings the others are measured against.
        prior: Beta prior of the skills.
        draws: of the intervals.

    Returns:
        `labelers`: name to prompts, coverage, reversed_by_revision, judged_again and the rates,
        with tau and skill; `agreement`: raw, between (each two labelers), kinds (each two kinds),
        people (all people together with each model), the two alphas; `elo`.
    """
    stated = [x for x in given.labels if isinstance(x, Ranking) and x.criterion == criterion]
    counting = consensus.current(stated)
    clusters = given.clusters()
    judged, gave_way = consensus.judged_once(counting)
    again, _ = consensus.judged_once(consensus.current(stated, repeat=True))
    key = [j for j in judged if j.labeler in answer_keys]
    others = [j for j in judged if j.labeler not in answer_keys]
    t, between = agreement.table(judged, clusters), agreement.table(others, clusters)
    said, said_again = _by_labeler(judged), _by_labeler(again)
    ranked = _by_labeler(counting)
    facts = _facts(given, stated, ranked, gave_way)
    skills = _skill_figures(between, prior, draws)
    labelers = {
        name: {
            **facts[name],
            **_rates(t, name, ranked[name], given, draws),
            **_relations(between, name, name in answer_keys, skills, draws),
            "self_consistency": _against(
                said[name],
                said_again[name],
                clusters,
                draws,
                nothing=f"{name} ranks nothing a second time",
            ),
            "gold": _against(
                said[name],
                [] if name in answer_keys else key,
                clusters,
                draws,
                nothing=_without_key(name, answer_keys),
            ),
        }
        for name in sorted(ranked)
    }
    those = [ranking for ranking in counting if ranking.labeler not in answer_keys]
    kinds = {name: given.kinds[name] for name in sorted(ranked) if name not in answer_keys}
    return {
        "labelers": labelers,
        "agreement": _agreement_figures(between, those, clusters, kinds, draws),
        "elo": elo.report(
            others,
            samplers={answer.id: answer.sampler for answer in given.completions.values()},
            clusters=clusters,
            kinds=kinds,
            resamples=draws.elo,
            seed=draws.seed,
        ),
    }


def _by_labeler(lines: Iterable[T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for line in lines:
        found[line.labeler].append(line)
    return found


def _facts(
    given: Given,
    stated: Sequence[Ranking],
    ranked: Mapping[str, Sequence[Ranking]],
    gave_way: Counter[str],
) -> dict[str, Figures]:
    """Return what needs no estimate.

    `coverage` is the share, of prompts with two completions or more, that the labeler ranked;
    `judged_again` counts pairs that a later ranking of other completions showed once more.
    """
    answered = Counter(answer.prompt_id for answer in given.completions.values())
    comparable = {prompt_id for prompt_id, count in answered.items() if count > 1}
    reversed_by = consensus.reversals(stated)
    prompts = {name: {ranking.prompt_id for ranking in own} for name, own in ranked.items()}
    return {
        name: {
            "prompts": len(own),
            "coverage": len(own & comparable) / max(len(comparable), 1),
            "reversed_by_revision": reversed_by[name],
            "judged_again": gave_way[name],
        }
        for name, own in prompts.items()
    }


_COMPARES_NOTHING = "{} compares no completions"
_IS_KEY = "{} ranks for the answer key, which the others are measured by"


def _rates(
    t: Table, name: str, own: Sequence[Ranking], given: Given, draws: Draws
) -> dict[str, Figures]:
    """Return what a labeler's rankings say by themselves."""
    follows = _of_labeler(agreement.position_follow_rate, t, name, draws)
    if given.kinds[name] != PEOPLE:
        # What a model ranks stands in order of id, which says nothing of a place.
        follows = {"refused": f"{name} is no person: nothing was shown to it in a shuffled order"}
    clusters = given.clusters()
    return {
        "junk_rate": figure(lambda: agreement.junk_rate(own, clusters, **draws.often)),
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


def _against(
    own: Sequence[Judgement],
    other: Sequence[Judgement],
    clusters: Mapping[str, str],
    draws: Draws,
    *,
    nothing: str,
) -> Figures:
    """Return how often one orders pairs as the other does; `nothing` says why there are none."""
    found = agreement.matched(own, other, clusters)
    return agreement.compared(found, **draws.often) if found else {"refused": nothing}


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


def _agreement_figures(
    t: Table,
    rankings: Sequence[Ranking],
    clusters: Mapping[str, str],
    kinds: Mapping[str, str],
    draws: Draws,
) -> Figures:
    often = draws.often
    try:
        overall, between = agreement.raw_agreement(t, **often)
        raw: Figures = {"raw": overall.plain(), "between": between}
    except NotMeasurable as reason:
        raw = {"raw": {"refused": str(reason)}}
    verdicts, verdict_clusters = agreement.verdict_ratings(t)
    ranks, rank_clusters = agreement.rank_ratings(rankings, clusters)
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
