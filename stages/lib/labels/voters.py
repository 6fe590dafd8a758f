"""Whose labels count: by criterion, by name, and not those of an answer key."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.labels.consensus import LabelError
from stages.lib.labels.reading import PEOPLE, Everything, Given
from stages.lib.records import AnyLabel, Ranking, Thumbs, Written, latest

# Why a label is left out; one with several reasons is counted under the first.
REASONS = ("other_criterion", "answer_key", "not_named", "low_quality")


@dataclass(frozen=True, slots=True)
class Voters:
    """Who votes, and what they said."""

    labels: list[AnyLabel]
    """Every revision, of the criteria that are asked for."""
    left_out: dict[str, dict[str, int]]
    """Reason to labeler to how many labels that leaves out."""

    def rankings(self, criterion: str) -> list[Ranking]:
        """Return what voters ranked by a criterion, every revision."""
        return [x for x in self.labels if isinstance(x, Ranking) and x.criterion == criterion]

    def thumbs(self) -> list[Thumbs]:
        """Return the thumbs that count, one a labeler, completion and criterion."""
        return [label for label in latest(self.labels) if isinstance(label, Thumbs)]

    def written(self) -> list[Written]:
        """Return the answers that count, one a labeler, prompt and criterion."""
        return [label for label in latest(self.labels) if isinstance(label, Written)]


def answer_keys(labelers: Mapping[str, Any]) -> set[str]:
    """Return whom the entries of kind people name as `gold`."""
    found = {entry.get("gold") for entry in labelers.values() if entry.get("kind") == PEOPLE}
    return found - {None}


def named(names: Sequence[str], given: Everything, keys: Collection[str]) -> set[str]:
    """Return the labelers that `pairs.labelers` stands for; no names are all of them.

    Args:
        names: of labelers, or of what holds several, such as an entry of people.
        given: who there is.
        keys: answer keys, who have no vote.

    Raises:
        LabelError: a name is nobody's, or an answer key's.
    """
    for name in names:
        if name not in given.kinds and name not in given.groups:
            there = ", ".join(sorted({*given.kinds, *given.groups}))
            raise LabelError(f"pairs.labelers names {name}, which is nobody; there are {there}")
        if name in keys:
            raise LabelError(
                f"pairs.labelers names {name}, who ranks for the answer key and has no vote; "
                "leave the name out here, or set the entry's gold to null"
            )
    found = {name for name in names if name in given.kinds}
    found |= {who for name in names for who in given.groups.get(name, ())}
    return found if names else set(given.kinds)


def require_stated(criteria: Collection[str], stated: Collection[str]) -> None:
    """Refuse criteria that no label states.

    Raises:
        LabelError: there is one.
    """
    for criterion in sorted(set(criteria) - set(stated)):
        has = ", ".join(sorted(stated)) or "none at all"
        raise LabelError(f"no label states the criterion {criterion}; they state {has}")


def heard(
    given: Given,
    *,
    criteria: Collection[str],
    named: Collection[str],
    keys: Collection[str],
    distrusted: Mapping[str, Collection[str]],
) -> Voters:
    """Return what counts of some prompts' labels.

    An answer key's thumbs and rankings are no votes; what they wrote is an answer like another's,
    and so is that of a labeler whose rankings are not trusted.

    Args:
        given: everybody's labels.
        criteria: what is asked for.
        named: labelers whose labels count.
        keys: labelers who rank for the answer key.
        distrusted: criterion to labelers whose quality is too low to count.
    """

    def reason(label: AnyLabel) -> str | None:
        votes = not isinstance(label, Written)
        faults = {
            "other_criterion": label.criterion not in criteria,
            "answer_key": votes and label.labeler in keys,
            "not_named": label.labeler not in named,
            "low_quality": votes and label.labeler in distrusted.get(label.criterion, ()),
        }
        return next((name for name in REASONS if faults[name]), None)

    left_out: dict[str, Counter[str]] = defaultdict(Counter)
    for label in latest(given.labels):
        why = reason(label)
        if why:
            left_out[why][label.labeler] += 1
    return Voters(
        [label for label in given.labels if reason(label) is None],
        {why: dict(sorted(left_out[why].items())) for why in REASONS},
    )
