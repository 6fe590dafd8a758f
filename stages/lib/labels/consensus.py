"""Rankings to preference pairs: what each labeler judges, what they agree on, and the gate.

A pair is two completions of one prompt. Until its winner is known it is held in one orientation,
`first` before `second` by id, so that the judgements of all labelers add up: +1 says that first is
better, -1 that second is, 0 that they tie.

    rankings -> judgements (one a labeler) -> candidates (one a pair) -> gate -> records.Pair

All of it is about one criterion; stages/lib/criteria.py brings several together.
"""

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stages.lib.records import Completion, Pair, Prompt, Ranking, Role
from stages.lib.runtime.schema import Refusal

How = Literal["per_labeler", "majority", "weighted", "soft"]
Ties = Literal["drop", "half"]
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# Why the gate removes a pair; one with several faults is counted under the first.
REASONS = ("identical", "contradiction", "leak", "mixed_samplers")


class LabelError(Refusal):
    """The labels cannot be made into pairs."""


class Judgement(NamedTuple):
    """What one labeler says of one pair."""

    prompt_id: str
    first: str
    second: str
    labeler: str
    verdict: int
    """1: first is better; -1: second is; 0: a tie."""
    places: int
    """Rank of second minus rank of first; junk stands one place below every rank."""
    score: float | None
    """Score of first minus score of second, where the labeler gives scores."""
    junk: bool
    """One of the two is junk, and the verdict says no more than that."""
    first_seen_first: bool
    """The labeler saw first before second."""
    p_first: float | None = None
    """How sure the labeler is that first is better, where they compared the two and say so."""

    def stance(self, how: How) -> float:
        """Return the vote, -1 to 1: under `soft` what the labeler believes, else the verdict."""
        soft = how == "soft" and self.p_first is not None
        return 2 * self.p_first - 1 if soft else float(self.verdict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A judged pair and the consensus on it, before gate and selection."""

    id: str
    criterion: str
    prompt_id: str
    first: str
    second: str
    p_first: float
    """Probability that first is better; 0.5 is a tie."""
    margin: float
    """Mean score difference, first minus second, or mean rank difference; larger favours first."""
    labelers: list[str]
    """Those who voted: all who judged, or under ties `drop` all who did not tie."""
    votes: int
    """One a labeler and criterion."""
    junk: bool
    """At least half of the votes for the winner only say that the loser is junk."""
    share: float
    """Of its prompt's weight, what its criterion has: 1 where there is no other beside it."""


def split_of(role: Role) -> Split:
    """Return the file that a prompt of this role belongs to; sft, reward, monitor, align train."""
    return role if role in ("validation", "test") else "train"


def current(rankings: Iterable[Ranking], *, repeat: bool = False) -> list[Ranking]:
    """Return the ranking that counts of each (prompt, labeler, criterion, completions), sorted so.

    That is the line of the highest revision. Label files are append-only, so of two lines of that
    revision (two machines, merged) the later one counts; `contradictions` finds where they differ.

    Args:
        rankings: every revision.
        repeat: take those that were asked a second time; they count for self-consistency alone.
    """
    return [lines[-1] for _, lines in sorted(_histories(rankings, repeat).items())]


def contradictions(rankings: Iterable[Ranking]) -> set[tuple[str, str, str]]:
    """Return (labeler, first, second) ordered both ways by one record.

    A record is what counts of a (prompt, labeler, criterion, completions). Ranks alone cannot
    contradict themselves; two lines of the same, highest revision can.
    """
    found = set()
    for lines in _histories(rankings, repeat=False).values():
        last = [line for line in lines if line.revision == lines[-1].revision]
        if len(last) == 1:
            continue
        orders = {(j.labeler, j.first, j.second, j.verdict) for r in last for j in judgements(r)}
        found |= {(who, a, b) for who, a, b, v in orders if v == 1 and (who, a, b, -1) in orders}
    return found


def reversals(rankings: Iterable[Ranking]) -> Counter[str]:
    """Count, for each labeler, the pairs whose order a later revision turned round.

    The later revision counts, so these are no fault; they say how settled the labeler is.
    """
    turned: Counter[str] = Counter()
    for lines in _histories(rankings, repeat=False).values():
        by_revision = {line.revision: line for line in lines}.values()
        for before, after in itertools.pairwise(by_revision):
            old = {(j.first, j.second): j.verdict for j in judgements(before)}
            new = {(j.first, j.second): j.verdict for j in judgements(after)}
            turned[after.labeler] += sum(v * old.get(pair, 0) == -1 for pair, v in new.items())
    return turned


def _histories(rankings: Iterable[Ranking], repeat: bool) -> dict[tuple[str, ...], list[Ranking]]:
    histories = defaultdict(list)
    for ranking in rankings:
        if ranking.repeat == repeat:
            # What was shown is part of it: a later round shows other completions of a prompt.
            one = ranking.prompt_id, ranking.labeler, ranking.criterion, *sorted(ranking.shown)
            histories[one].append(ranking)
    for lines in histories.values():
        lines.sort(key=lambda line: line.revision)  # stable: file order within a revision
    return histories


def judged_once(rankings: Iterable[Ranking]) -> tuple[list[Judgement], Counter[str]]:
    """Return what rankings that count say of pairs, one judgement a labeler and pair.

    A later round may show a pair again among other completions. The ranking submitted last then
    speaks for the pair (of equal times the one that shows more), so that nobody votes twice.

    Returns:
        The judgements, in the order of the rankings, and for each labeler how many gave way.
    """
    latest: dict[tuple[str, str, str], tuple[tuple[object, ...], Judgement]] = {}
    gave_way: Counter[str] = Counter()
    for ranking in rankings:
        when = ranking.submitted or "", len(ranking.shown), tuple(ranking.shown)
        for judgement in judgements(ranking):
            key = judgement.labeler, judgement.first, judgement.second
            earlier = latest.get(key)
            gave_way[judgement.labeler] += earlier is not None
            if earlier is None or earlier[0] < when:
                latest[key] = when, judgement
    return [judgement for _, judgement in latest.values()], gave_way


def places(ranking: Ranking) -> dict[str, int]:
    """Return each completion's rank; junk shares one place below the last that could be given."""
    return {**ranking.ranks, **dict.fromkeys(ranking.junk, len(ranking.ranks) + 1)}


def judgements(ranking: Ranking) -> list[Judgement]:
    """Return what a ranking says of all N-choose-2 pairs of the completions it judges.

    Ranks 2, 1, 3 of c1, c2, c3 say c2 over c1, c1 over c3, c2 over c3. Junk is below all that is
    not junk, and two junk completions are not compared.
    """
    place = places(ranking)
    seen = {cid: position for position, cid in enumerate(ranking.shown)}
    scores = ranking.scores or {}
    sure = {(p.first, p.second): p.p_first for p in ranking.preferences or []}
    sure |= {(second, first): 1 - p for (first, second), p in sure.items()}
    found = []
    for first, second in itertools.combinations(sorted(place), 2):
        if first in ranking.junk and second in ranking.junk:
            continue
        gap = place[second] - place[first]
        scored = first in scores and second in scores
        found.append(
            Judgement(
                prompt_id=ranking.prompt_id,
                first=first,
                second=second,
                labeler=ranking.labeler,
                verdict=(gap > 0) - (gap < 0),
                places=gap,
                score=scores[first] - scores[second] if scored else None,
                junk=first in ranking.junk or second in ranking.junk,
                first_seen_first=seen[first] < seen[second],
                p_first=sure.get((first, second)),
            )
        )
    return found


def combine(
    judged: Iterable[Judgement],
    *,
    criterion: str,
    how: How,
    ties: Ties,
    skills: Mapping[str, float],
) -> list[Candidate]:
    """Return the consensus on every judged pair, sorted by prompt and pair id.

    Args:
        judged: judgements of all labelers who vote, at most one a labeler and pair.
        criterion: what was asked.
        how: `per_labeler`: each labeler's verdict is a candidate of its own; otherwise a pair is
            one, with p_first by `majority` 0, 0.5 or 1; `soft` the share of votes; `weighted`
            sigmoid of the votes' summed log-odds, log(skill / (1 - skill)) each.
        ties: a labeler who ties the pair abstains (`drop`) or gives half a vote to each (`half`).
        skills: probability that a labeler's verdict is right; read by `weighted` alone.
    """
    groups = defaultdict(list)
    for judgement in judged:
        whose = judgement.labeler if how == "per_labeler" else ""
        groups[judgement.prompt_id, judgement.first, judgement.second, whose].append(judgement)
    candidates = [
        _candidate(key, group, criterion, how, ties, skills) for key, group in groups.items()
    ]
    return sorted(candidates, key=lambda c: (c.prompt_id, c.id))


def _candidate(
    key: tuple[str, str, str, str],
    group: list[Judgement],
    criterion: str,
    how: How,
    ties: Ties,
    skills: Mapping[str, float],
) -> Candidate:
    prompt_id, first, second, whose = key
    votes = [j for j in group if j.stance(how) or ties == "half"]
    p_first = probability([(j.labeler, j.stance(how)) for j in votes], how=how, skills=skills)
    winner = (p_first > 0.5) - (p_first < 0.5)
    for_winner = [j for j in votes if j.stance(how) * winner > 0]
    scores = [j.score for j in group if j.score is not None]
    margins = scores or [j.places for j in group]
    return Candidate(
        id=":".join(filter(None, (first, second, whose))),
        criterion=criterion,
        prompt_id=prompt_id,
        first=first,
        second=second,
        p_first=p_first,
        margin=math.fsum(margins) / len(margins),
        labelers=sorted(j.labeler for j in votes),
        votes=len(votes),
        junk=bool(for_winner) and 2 * sum(j.junk for j in for_winner) >= len(for_winner),
        share=1.0,
    )


def probability(
    votes: Sequence[tuple[str, float]], *, how: How, skills: Mapping[str, float]
) -> float:
    """Return the probability that first is better, from (labeler, vote) with votes of -1 to 1.

    A vote is a verdict; under `soft` it may be a belief, 2p - 1. No votes, and votes that balance,
    give exactly 0.5. Swapping first and second gives one minus it. Two labelers of skill 0.8
    against one: majority 1, soft 0.667, weighted sigmoid(log 4) = 0.8.
    """
    net = math.fsum(vote for _, vote in votes)
    if how == "soft":
        return (1 + net / len(votes)) / 2 if votes else 0.5
    if how == "weighted":
        odds = math.fsum(v * math.log(skills[who] / (1 - skills[who])) for who, v in votes if v)
        # Equal skills on either side cancel but for the last bits, and must not decide.
        return 0.5 if abs(odds) < 1e-9 else 0.5 * (1 + math.tanh(odds / 2))
    return (1 + (net > 0) - (net < 0)) / 2


def gate(
    candidates: Iterable[Candidate],
    *,
    prompts: Mapping[str, Prompt],
    completions: Mapping[str, Completion],
    contradicted: Collection[tuple[str, str, str]],
    leaking: Collection[str],
    mixed_samplers: bool,
) -> tuple[list[Candidate], dict[str, list[str]]]:
    """Return the candidates that pass, and the ids of those removed by reason.

        identical       both completions are the same text with the same finish
        contradiction   the record of a labeler who votes on it orders the pair both ways
        leak            the prompt has a near-duplicate in another split
        mixed_samplers  the completions are of two samplers, and mixing is not declared

    Texts that differ here may still be the same tokens once cut to a model's length; only
    training knows its tokenizer, and checks that itself.
    """
    at_odds = defaultdict(set)
    for labeler, first, second in contradicted:
        at_odds[first, second].add(labeler)
    passed: list[Candidate] = []
    removed: dict[str, list[str]] = {reason: [] for reason in REASONS}
    for pair in candidates:
        one, other = completions[pair.first], completions[pair.second]
        faults = {
            "identical": (one.text, one.finish) == (other.text, other.finish),
            "contradiction": not at_odds[pair.first, pair.second].isdisjoint(pair.labelers),
            "leak": prompts[pair.prompt_id].cluster in leaking,
            "mixed_samplers": one.sampler != other.sampler and not mixed_samplers,
        }
        reason = next((reason for reason in REASONS if faults[reason]), None)
        if reason is None:
            passed.append(pair)
        else:
            removed[reason].append(pair.id)
    return passed, removed


def leaking_clusters(prompts: Iterable[Prompt]) -> set[str]:
    """Return the clusters of near-duplicate prompts that lie in more than one split."""
    first: dict[str, Split] = {}
    return {
        prompt.cluster
        for prompt in prompts
        if first.setdefault(prompt.cluster, split_of(prompt.role)) != split_of(prompt.role)
    }


def refuse_above(removed: Mapping[str, Sequence[str]], total: int, max_rejected: float) -> None:
    """Refuse where the gate removes more than its share.

    Raises:
        LabelError: the message has the share, each reason with its count and first pair, and where
            undeclared mixing is among them, the parameter that declares it.
    """
    count = sum(map(len, removed.values()))
    if count <= max_rejected * total:
        return
    reasons = [f"{name} {len(ids)}, first {ids[0]}" for name, ids in removed.items() if ids]
    cure = "; pairs.mixed_samplers: true declares mixing" if removed["mixed_samplers"] else ""
    raise LabelError(
        f"the gate removes {count} of {total} pairs ({'; '.join(reasons)}), more than the share "
        f"{max_rejected:g} that pairs.max_rejected allows{cure}"
    )


def select(
    candidates: Iterable[Candidate], *, ties: Ties, min_p_chosen: float
) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates that become pairs, and how many are left out as tie or unclear.

    Args:
        candidates: those that passed the gate.
        ties: `drop` leaves out what is exactly 0.5, however it came about; `half` keeps it.
        min_p_chosen: 0.5 to 1; below it a pair is unclear and left out.
    """
    kept = []
    left_out = {"tie": 0, "unclear": 0}
    for pair in candidates:
        if pair.p_first == 0.5 and ties == "drop":
            left_out["tie"] += 1
        elif max(pair.p_first, 1 - pair.p_first) < min_p_chosen:
            left_out["unclear"] += 1
        else:
            kept.append(pair)
    return kept, left_out


def record(
    pair: Candidate,
    *,
    prompt: Prompt,
    completions: Mapping[str, Completion],
    judged: int,
) -> Pair:
    """Return a candidate as the record that training reads, preferred completion first.

    Args:
        pair: passed by the gate.
        prompt: the pair's.
        completions: by id.
        judged: K, completions of the prompt that anyone judged under the pair's criterion; the
            weight is the criterion's share / (K choose 2).
    """
    swap = pair.p_first < 0.5 or (pair.p_first == 0.5 and _coin(pair.id))
    ids = (pair.second, pair.first) if swap else (pair.first, pair.second)
    chosen, rejected = (completions[cid] for cid in ids)
    return Pair(
        id=pair.id,
        prompt_id=prompt.id,
        cluster=prompt.cluster,
        role=prompt.role,
        category=prompt.category,
        criterion=pair.criterion,
        prompt=prompt.body(),
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_finish=chosen.finish,
        rejected_finish=rejected.finish,
        p_chosen=max(pair.p_first, 1 - pair.p_first),
        weight=pair.share / math.comb(judged, 2),
        margin=0.0 - pair.margin if swap else pair.margin,  # 0.0 - 0.0 is no -0.0
        votes=pair.votes,
        labelers=pair.labelers,
        junk=pair.junk,
    )


def _coin(text: str) -> bool:
    """A tie has no winner; a hash puts either one first, so that no place or sampler gains."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 1
