"""Which role a prompt has: decided by its own text, so that other prompts never move it."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from stages.lib import neighbours
from stages.lib.records import Prompt, Role, SourcePrompt, Text
from stages.lib.runtime.schema import Strict

ORDER: tuple[Role, ...] = ("test", "validation", "align", "reward", "monitor", "sft")
"""How the shares are laid along [0, 1): test first, so that the others' shares never move it."""

PROTECTED: tuple[Role, ...] = ("test", "validation", "monitor", "reward", "align", "sft")
"""Who keeps its prompt when near-duplicates have different roles, first the one that judges."""

Share = Annotated[float, Field(ge=0, le=1)]


class Shares(Strict):
    """What part of the prompts each role is given; the parts sum to 1."""

    sft: Share
    """Demonstrations."""
    reward: Share
    """Pairs for the reward model."""
    monitor: Share
    """Pairs for the monitor."""
    align: Share
    """Pairs or prompts for alignment."""
    validation: Share
    """Tuning and early looks."""
    test: Share
    """The report."""

    @model_validator(mode="after")
    def _whole(self) -> "Shares":
        total = math.fsum(self.of(role) for role in ORDER)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares must sum to 1, not {total:.12g}")
        return self

    def of(self, role: Role) -> float:
        """Return the share of one role."""
        return float(getattr(self, role))


class Split(Strict):
    """`split` of section `prompts`: what decides a prompt's role."""

    near_duplicate: Annotated[float, Field(gt=0, le=1)]
    """Jaccard similarity of character 5-grams from which two prompts are near-duplicates."""
    salt: Text
    """Selects the split among all possible ones."""
    shares: Shares
    """What part of the prompts each role is given."""


def position(normal: str, salt: str) -> float:
    """Return where a text lies in [0, 1), the same on every machine and in every company.

        position = (first 53 bits of SHA-256(salt, line feed, text)) / 2**53

    53 bits are what a float holds exactly; 64 would round up to 1.0 now and then. A normalised
    text has no line feed, so that no other salt and text give the same bytes.
    """
    digest = hashlib.sha256(f"{salt}\n{normal}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def role_at(place: float, shares: Shares) -> Role:
    """Return the role whose stretch of [0, 1) holds `place`.

    With 0.22 for test and 0.11 for validation, 0.2 is test and 0.22 validation.
    """
    given = [role for role in ORDER if shares.of(role) > 0]
    ends = itertools.accumulate(shares.of(role) for role in given)
    # Sums of shares may end a bit below 1; what lies beyond still belongs to the last role.
    return next((role for role, end in zip(given, ends, strict=True) if place < end), given[-1])


def holders(roles_N: Sequence[Role], clusters_N: Sequence[str]) -> dict[str, Role]:
    """Return, for each cluster, the most protected role among its members.

    Members in other roles are left out by the caller: moved to the holder's role, they would have
    changed role because of what somebody added.
    """
    found: dict[str, Role] = {}
    for role, cluster in zip(roles_N, clusters_N, strict=True):
        found[cluster] = min(role, found.get(cluster, role), key=PROTECTED.index)
    return found


def placed(
    prompts: Mapping[str, SourcePrompt], how: Split
) -> tuple[list[Prompt], list[tuple[str, str]]]:
    """Give prompts their roles.

    Args:
        prompts: by normalised text, no two alike.
        how: section `prompts.split`.

    Returns:
        The prompts with role and cluster; and the ids of those whose cluster belongs to another
        role, each with the reason.
    """
    ids = [prompt.id for prompt in prompts.values()]
    clusters = neighbours.clusters(ids, list(prompts), threshold=how.near_duplicate)
    roles = [role_at(position(text, how.salt), how.shares) for text in prompts]
    held = holders(roles, clusters)
    kept: list[Prompt] = []
    left_out: list[tuple[str, str]] = []
    for prompt, role, cluster in zip(prompts.values(), roles, clusters, strict=True):
        if role == held[cluster]:
            placed_so = prompt.model_dump() | {"role": role, "cluster": cluster}
            kept.append(Prompt.model_validate(placed_so))
        else:
            why = f"{role}, but cluster {cluster} has a prompt in {held[cluster]}"
            left_out.append((prompt.id, why))
    return kept, left_out
