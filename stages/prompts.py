"""Gather prompts, leave out duplicates, and give each a role that never changes.

    python -m stages.prompts data/sources/prompts data/provocations data/prompts \
        reports/prompts.json

Reads   data/sources/prompts    prompts in files, and whatever hub datasets params name
        data/provocations       one file an entry of `provokers`
Writes  train.jsonl, validation.jsonl, test.jsonl    prompts with role and cluster; train holds the
                                roles sft, reward, monitor and align
        prompts.json            counts, and what was left out for which reason
Params  prompts, provokers
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import importers, neighbours, split
from stages.lib.importers import Gathered, LeftOut, Provoked, Source
from stages.lib.records import Prompt, Role, SourcePrompt
from stages.lib.runtime import entry, files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict

FILES: dict[str, tuple[Role, ...]] = {
    "train.jsonl": ("sft", "reward", "monitor", "align"),
    "validation.jsonl": ("validation",),
    "test.jsonl": ("test",),
}

EXAMPLES = 20
"""How many prompts of each reason the metrics name; the count is of all."""


class Prompts(Strict):
    """Section `prompts` of params.yaml."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where prompts come from; of equal ones the first stays."""
    split: split.Split
    """What decides a prompt's role."""


def run(
    p: Prompts,
    provokers: dict[str, Any],
    *,
    sources: Path,
    provocations: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write the three files under `out` and the counts; return the main counts, in prompts."""
    files.entry_files(provocations, provokers, section="provokers")  # none of an entry that is gone
    gathered = [
        importers.read(one, provocations if isinstance(one, Provoked) else sources)
        for one in p.sources
    ]
    _refuse_equal_ids(gathered)
    first, copies = _without_copies(gathered)
    kept, others = split.placed(first, p.split)
    neighbour = [LeftOut("near_duplicate", name, why) for name, why in others]
    left_out = [row for one in gathered for row in one.left_out] + copies + neighbour
    with files.whole_folder(out) as folder:
        for name, held in FILES.items():
            files.write_lines(folder / name, (prompt for prompt in kept if prompt.role in held))
    counts = _counts(gathered, kept, left_out)
    files.write_json(metrics, counts | {"unread": importers.unread(p.sources, sources)})
    return {f"kept/{role}": count for role, count in counts["kept"]["role"].items()} | {
        "kept": len(kept),
        "left_out": len(left_out),
        "clusters": counts["clusters"]["all"],
    }


def _refuse_equal_ids(gathered: Sequence[Gathered]) -> None:
    seen: dict[str, str] = {}
    for where, prompt in (row for one in gathered for row in one.prompts):
        if prompt.id in seen:
            raise RecordError(
                f"{where}: id {prompt.id} stands at {seen[prompt.id]} already; "
                "an id names one prompt throughout the graph, so change one of them"
            )
        seen[prompt.id] = where


def _without_copies(
    gathered: Sequence[Gathered],
) -> tuple[dict[str, SourcePrompt], list[LeftOut]]:
    """Return normalised text to its first prompt, in source order, and the later ones."""
    first: dict[str, SourcePrompt] = {}
    copies: list[LeftOut] = []
    for prompt in (prompt for one in gathered for _, prompt in one.prompts):
        stays = first.setdefault(neighbours.normalise(prompt.plain()), prompt)
        if stays is not prompt:
            copies.append(LeftOut("duplicate", prompt.id, f"the same text as {stays.id}"))
    return first, copies


def _counts(
    gathered: Sequence[Gathered], kept: Sequence[Prompt], left_out: Sequence[LeftOut]
) -> dict[str, Any]:
    """Return numbers of prompts: read by file, kept in several ways, and left out by reason."""
    read: Counter[str] = Counter()
    for one in gathered:
        read[one.origin] += len(one.prompts) + len(one.left_out)
    origin = {prompt.id: one.origin for one in gathered for _, prompt in one.prompts}
    by_role = {role: [prompt for prompt in kept if prompt.role == role] for role in split.ORDER}
    members = Counter(prompt.cluster for prompt in kept)
    return {
        "read": {"all": read.total(), "file": read},
        "kept": {
            "all": len(kept),
            "file": Counter(origin[prompt.id] for prompt in kept),
            "role": {role: len(prompts) for role, prompts in by_role.items()},
            "category": Counter(prompt.category for prompt in kept),
            "form": Counter(prompt.form for prompt in kept),
        },
        "categories_of_role": {
            role: Counter(prompt.category for prompt in prompts)
            for role, prompts in by_role.items()
        },
        "clusters": {
            "all": len(members),
            "of_several": sum(count > 1 for count in members.values()),
            "largest": max(members.values()),
        },
        "left_out": {"all": len(left_out)} | _by_reason(left_out),
    }


def _by_reason(left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Return count and first examples of each reason; the two of the stage itself even at 0."""
    by_reason: dict[str, list[str]] = {"duplicate": [], "near_duplicate": []}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(f"{one.id}: {one.because}")
    return {
        reason: {"count": len(lines), "examples": lines[:EXAMPLES]}
        for reason, lines in by_reason.items()
    }


if __name__ == "__main__":
    entry.main(run, "prompts", "provokers")
