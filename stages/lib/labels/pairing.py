"""From what voters ranked to the rows that training reads, and where every judged pair went."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from stages.lib.labels import agreement, consensus, skill
from stages.lib.labels.agreement import NotMeasurable
from stages.lib.labels.consensus import REASONS, SPLITS, Candidate, How, Ties
from stages.lib.labels.reading import Given
from stages.lib.records import Pair, Ranking
from stages.lib.runtime.schema import Strict
from stages.lib.statistics import Estimate, bootstrap_mean


class Voting(Strict):
    """How votes become pairs; part of section `pairs` of params.yaml."""

    consensus: How
    """How several labelers' judgements of one pair become one verdict."""
    ties: Ties
    """What a tie becomes: nothing, or a pair with p_chosen 0.5."""
    min_p_chosen: Annotated[float, Field(ge=0.5, le=1)]
    """Pairs whose p_chosen is below this are left out."""
    skill_prior: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
    """Verdicts right and wrong credited to each labeler beforehand (Beta prior)."""
    junk_pairs: bool
    """Whether junk below not-junk makes a pair."""
    mixed_samplers: bool
    """Whether a pair may hold completions of two samplers."""
    max_rejected: Annotated[float, Field(ge=0, le=1)]
    """Share of pairs the gate may remove before the stage fails."""

    @model_validator(mode="after")
    def _labelers_are_right_more_often(self) -> "Voting":
        right, wrong = self.skill_prior
        if right <= wrong:
            raise ValueError(
                f"skill_prior {self.skill_prior} must credit more right than wrong verdicts, or "
                "nothing tells every labeler right from every labeler wrong"
            )
        return self

    @property
    def prior(self) -> tuple[float, float]:
        """The Beta prior of a skill."""
        return self.skill_prior[0], self.skill_prior[1]


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes on pairs under one criterion, or under several together, before the gate."""

    criterion: str
    candidates: list[Candidate]
    contradicted: set[tuple[str, str, str]]
    """(labeler, first, second) that one record orders both ways."""
    judged: Mapping[str, Collection[str]]
    """Prompt id to its completions that were judged."""
    shown: set[tuple[str, ...]]
    """Pairs that were shown, with the labeler where verdicts stay apart."""
    skills: Mapping[str, float]
    """What the votes weigh by, where they do; of the voters alone."""


def ballot(
    criterion: str, stated: Sequence[Ranking], voting: Voting, clusters: Mapping[str, str]
) -> Ballot:
    """Return the votes of one criterion.

    Args:
        criterion: what was asked.
        stated: the voters' rankings of it, every revision.
        voting: how they become verdicts.
        clusters: prompt id to its cluster.
    """
    counting = consensus.current(stated)
    judged, _ = consensus.judged_once(counting)
    skills: dict[str, float] = {}
    if voting.consensus == "weighted" and judged:
        skills = skill.skills(agreement.table(judged, clusters), prior=voting.prior)
    completions = defaultdict(set)
    for ranking in counting:
        completions[ranking.prompt_id].update(ranking.shown)
    apart = voting.consensus == "per_labeler"
    return Ballot(
        criterion,
        consensus.combine(
            [j for j in judged if voting.junk_pairs or not j.junk],
            criterion=criterion,
            how=voting.consensus,
            ties=voting.ties,
            skills=skills,
        ),
        consensus.contradictions(stated),
        completions,
        {
            (*pair, ranking.labeler if apart else "")
            for ranking in counting
            for pair in itertools.combinations(sorted(ranking.shown), 2)
        },
        skills,
    )


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of the votes."""

    rows: list[Pair]
    passed: list[Candidate]
    """Those that the gate let through."""
    removed: dict[str, list[str]]
    """Why the gate removed a pair, to the pairs' ids."""
    left_out: dict[str, int]
    """Why a pair past the gate is none to learn from, and `junk`, which never came there."""
    judged: int
    """What the gate saw."""


def decide(ballots: Sequence[Ballot], given: Given, voting: Voting) -> Decided:
    """Pass candidates through the gate and make those that are left into rows.

    Raises:
        LabelError: the gate removes more than `max_rejected`.
    """
    passed: list[Candidate] = []
    removed: dict[str, list[str]] = {reason: [] for reason in REASONS}
    for one in ballots:
        through, held = consensus.gate(
            one.candidates,
            prompts=given.prompts,
            completions=given.completions,
            contradicted=one.contradicted,
            mixed_samplers=voting.mixed_samplers,
        )
        passed += through
        removed = {reason: removed[reason] + held[reason] for reason in REASONS}
    passed.sort(key=lambda pair: (pair.prompt_id, pair.id))
    judged = sum(len(one.candidates) for one in ballots)
    consensus.refuse_above(removed, judged, voting.max_rejected)
    kept, left_out = consensus.select(passed, ties=voting.ties, min_p_chosen=voting.min_p_chosen)
    left_out["junk"] = sum(len(one.shown) for one in ballots) - judged
    return Decided(_rows(kept, ballots, given), passed, removed, left_out, judged)


def _rows(kept: Iterable[Candidate], ballots: Sequence[Ballot], given: Given) -> list[Pair]:
    judged = {one.criterion: one.judged for one in ballots}
    return [
        consensus.record(
            pair,
            prompt=given.prompts[pair.prompt_id],
            completions=given.completions,
            judged=len(judged[pair.criterion][pair.prompt_id]),
        )
        for pair in kept
    ]


def pair_counts(decided: Decided) -> dict[str, Any]:
    """Return where every judged pair went.

    `judged` is what the gate saw, and `removed_share` is of that; `left_out.junk` never came to
    the gate (junk against junk, or below not-junk where such pairs are off).
    """
    splits = Counter(consensus.split_of(row.role) for row in decided.rows)
    count = sum(map(len, decided.removed.values()))
    return {
        "judged": decided.judged,
        "written": {split: splits[split] for split in SPLITS},
        "roles": dict(sorted(Counter(row.role for row in decided.rows).items())),
        "criteria": dict(sorted(Counter(row.criterion for row in decided.rows).items())),
        "removed": {reason: len(ids) for reason, ids in decided.removed.items()},
        "removed_ids": {reason: list(ids) for reason, ids in decided.removed.items() if ids},
        "removed_share": count / max(decided.judged, 1),
        "left_out": dict(decided.left_out),
    }


def tie_rate(
    decided: Decided, clusters: Mapping[str, str], *, resamples: int, seed: int
) -> Estimate:
    """Share of the pairs past the gate on which the consensus is a tie."""
    if not decided.passed:
        raise NotMeasurable("the gate lets no pair through")
    return bootstrap_mean(
        [float(pair.p_first == 0.5) for pair in decided.passed],
        [clusters[pair.prompt_id] for pair in decided.passed],
        resamples=resamples,
        seed=seed,
    )


def prompt_counts(
    rows: Sequence[Pair], rankings: Sequence[Ranking], given: Given
) -> dict[str, int]:
    """Count prompts by what became of them; the four kinds are disjoint.

    Unranked are those with completions that no counting ranking is about.
    """
    answered = {answer.prompt_id for answer in given.completions.values()}
    ranked = {ranking.prompt_id for ranking in rankings}
    useful = {ranking.prompt_id for ranking in rankings if ranking.ranks}
    paired = {row.prompt_id for row in rows}
    return {
        "with_pairs": len(paired),
        "without_pairs": len(useful - paired),
        "all_junk": len(ranked - useful),
        "unranked": len(answered - ranked),
    }


def reasons(decided: Decided) -> str:
    """Say why no pair is left, in numbers."""
    lost = {**{name: len(ids) for name, ids in decided.removed.items()}, **decided.left_out}
    shown = decided.judged + decided.left_out["junk"]
    return ", ".join(f"{name} {n}" for name, n in lost.items() if n) + f" of {shown} pairs shown"
