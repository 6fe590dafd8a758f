"""From what voters ranked to the rows that training reads, and where every judged pair went."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.lib.labels import consensus, skill
from stages.lib.labels.agreement import NotMeasurable, Table
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
    counting: Sequence[Ranking]
    """The rankings that it was made from."""


def ballot(
    criterion: str, stated: Sequence[Ranking], voting: Voting, skills: Mapping[str, float]
) -> Ballot:
    """Return the votes of one criterion.

    Args:
        criterion: what was asked.
        stated: the voters' rankings of it, every revision.
        voting: how they become verdicts.
        skills: what the votes weigh by, where they do.
    """
    counting = consensus.current(stated)
    judged, _ = consensus.judged_once(counting)
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
        counting,
    )


def weights(t: Table, voters: Collection[str], voting: Voting) -> dict[str, float]:
    """Return the skill that each voter's vote weighs by; none where votes weigh alike.

    Args:
        t: what everybody judges under one criterion.
        voters: whose votes count, and whose agreement alone tells their skills.
        voting: how they become verdicts.
    """
    own = t.of(voters)
    if voting.consensus != "weighted" or not own.labelers:
        return {}
    return skill.skills(own, prior=voting.prior)


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of the votes on some prompts."""

    rows: list[Pair]
    passed: list[Candidate]
    """Those that the gate let through."""
    removed: list[dict[str, list[str]]]
    """Of each ballot, why the gate removed a pair, to the pairs' ids."""
    left_out: dict[str, int]
    """Why a pair past the gate is none to learn from, and `junk`, which never came there."""
    judged: int
    """What the gate saw."""


def decide(ballots: Sequence[Ballot], given: Given, voting: Voting) -> Decided:
    """Pass candidates through the gate and make those that are left into rows."""
    passed: list[Candidate] = []
    removed = []
    for one in ballots:
        through, held = consensus.gate(
            one.candidates,
            prompts=given.prompts,
            completions=given.completions,
            contradicted=one.contradicted,
            leaking=given.leaking,
            mixed_samplers=voting.mixed_samplers,
        )
        passed += through
        removed.append(held)
    passed.sort(key=lambda pair: (pair.prompt_id, pair.id))
    judged = sum(len(one.candidates) for one in ballots)
    kept, left_out = consensus.select(passed, ties=voting.ties, min_p_chosen=voting.min_p_chosen)
    left_out["junk"] = sum(len(one.shown) for one in ballots) - judged
    return Decided(_rows(kept, ballots, given), passed, removed, left_out, judged)


class Ledger:
    """Where every judged pair and every prompt went, summed over all prompts."""

    def __init__(self) -> None:
        self.judged = 0
        self.removed: list[dict[str, list[str]]] = []
        self.left_out: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.roles: Counter[str] = Counter()
        self.criteria: Counter[str] = Counter()
        self.prompts: Counter[str] = Counter()
        self.rankings = 0
        self._ties: list[NDArray] = []
        self._clusters: list[NDArray] = []

    def add(self, decided: Decided, counting: Sequence[Ranking], given: Given) -> None:
        """Take in what became of some prompts."""
        self.judged += decided.judged
        self.removed = self.removed or [{reason: [] for reason in REASONS} for _ in decided.removed]
        for whole, held in zip(self.removed, decided.removed, strict=True):
            for reason, ids in held.items():
                whole[reason] += ids
        self.left_out.update(decided.left_out)
        self.splits.update(consensus.split_of(row.role) for row in decided.rows)
        self.roles.update(row.role for row in decided.rows)
        self.criteria.update(row.criterion for row in decided.rows)
        self.rankings += len(counting)
        self._add_prompts(decided.rows, counting, given)
        clusters = given.clusters()
        self._ties.append(np.array([pair.p_first == 0.5 for pair in decided.passed], bool))
        numbers = [clusters[pair.prompt_id] for pair in decided.passed]
        self._clusters.append(np.array(numbers, np.int32))

    def _add_prompts(self, rows: Sequence[Pair], counting: Sequence[Ranking], given: Given) -> None:
        answered = {answer.prompt_id for answer in given.completions.values()}
        ranked = {ranking.prompt_id for ranking in counting}
        useful = {ranking.prompt_id for ranking in counting if ranking.ranks}
        paired = {row.prompt_id for row in rows}
        self.prompts["with_pairs"] += len(paired)
        self.prompts["without_pairs"] += len(useful - paired)
        self.prompts["all_junk"] += len(ranked - useful)
        self.prompts["unranked"] += len(answered - ranked)

    def by_reason(self) -> dict[str, list[str]]:
        """Return why the gate removed a pair, to the pairs' ids."""
        return {
            reason: [pair for held in self.removed for pair in held[reason]] for reason in REASONS
        }

    def pair_counts(self) -> dict[str, Any]:
        """Return where every judged pair went.

        `judged` is what the gate saw, and `removed_share` is of that; `left_out.junk` never came
        to the gate (junk against junk, or below not-junk where such pairs are off).
        """
        removed = self.by_reason()
        return {
            "judged": self.judged,
            "written": {split: self.splits[split] for split in SPLITS},
            "roles": dict(sorted(self.roles.items())),
            "criteria": dict(sorted(self.criteria.items())),
            "removed": {reason: len(ids) for reason, ids in removed.items()},
            "removed_ids": {reason: ids for reason, ids in removed.items() if ids},
            "removed_share": sum(map(len, removed.values())) / max(self.judged, 1),
            "left_out": dict(self.left_out),
        }

    def prompt_counts(self) -> dict[str, int]:
        """Count prompts by what became of them; the four kinds are disjoint.

        Unranked are those with completions that no counting ranking is about.
        """
        return {
            kind: self.prompts[kind]
            for kind in ("with_pairs", "without_pairs", "all_junk", "unranked")
        }

    def tie_rate(self, *, resamples: int, seed: int) -> Estimate:
        """Share of the pairs past the gate on which the consensus is a tie."""
        ties, clusters = map(np.concatenate, (self._ties, self._clusters))
        if not len(ties):
            raise NotMeasurable("the gate lets no pair through")
        return bootstrap_mean(ties.astype(float), clusters, resamples=resamples, seed=seed)

    def reasons(self) -> str:
        """Say why no pair is left, in numbers."""
        lost = {**{name: len(ids) for name, ids in self.by_reason().items()}, **self.left_out}
        shown = self.judged + self.left_out["junk"]
        return (
            ", ".join(f"{name} {n}" for name, n in lost.items() if n) + f" of {shown} pairs shown"
        )


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
