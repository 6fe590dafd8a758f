"""Preferences from elsewhere beside the graph's own: public sets, and what policies revised.

A public set brings prompts of its own. They get roles as the graph's do, by a hash of their text,
so that no model is judged on what it learned from; one that is nearly a prompt of the graph is left
out, since the two might be given different roles. Revisions are of the graph's own prompts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.lib import neighbours, split
from stages.lib.labels.reading import Source
from stages.lib.preferences import sets
from stages.lib.preferences.form import Gathered, Item
from stages.lib.records import Completion, Prompt, Ranking, SourcePrompt
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal
from stages.lib.split import Split

PUBLISHED = "published"
"""The kind of a labeler whose verdicts somebody published."""
REVISER = "reviser"
"""The kind of a labeler that prefers its revisions to its answers."""


def published(
    entries: Sequence[sets.Source], folder: Path, own: Iterable[Prompt], how: Split
) -> tuple[Source, dict[str, dict[str, Any]]]:
    """Return what public sets give, and how much of each went no further.

    Args:
        entries: `pairs.sources`.
        folder: data/preferences.
        own: the graph's prompts.
        how: section `prompts.split`.

    Returns:
        The sets as one place of labels; and by set the prompts, completions and labels that go on,
        with `left_out`: rows by reason, and prompts by `near_own_prompt` or `near_duplicate`.

    Raises:
        RecordError: as `sets.read` does.
        Refusal: two entries have one name, which their prompts' ids begin with.
    """
    if not entries:  # nothing that the graph's own prompts would be compared with
        return Source([], [], [], {}, {}), {}
    twice = [name for name, n in Counter(entry.name for entry in entries).items() if n > 1]
    if twice:
        raise Refusal(f"params.yaml: pairs.sources: two entries are named {twice[0]}; rename one")
    read = {entry.name: sets.read(entry, folder) for entry in entries}
    prompts, reasons = placed([item for one in read.values() for item in one.items], own, how)
    kept = {
        name: [item for item in one.items if item.prompt.id in prompts]
        for name, one in read.items()
    }
    who = {
        name: {label.labeler for item in some for label in item.labels}
        for name, some in kept.items()
    }
    lines = [(f"pairs.sources, {name}", item) for name, some in kept.items() for item in some]
    source = Source(
        [(where, prompts[item.prompt.id]) for where, item in lines],
        [(where, completion) for where, item in lines for completion in item.completions],
        [(where, label) for where, item in lines for label in item.labels],
        {labeler: PUBLISHED for some in who.values() for labeler in some},
        who,
    )
    return source, {name: _counts(one, prompts, reasons) for name, one in read.items()}


def placed(
    items: Sequence[Item], own: Iterable[Prompt], how: Split
) -> tuple[dict[str, Prompt], dict[str, str]]:
    """Give the prompts of sets their roles and clusters.

    Returns:
        Prompt id to the prompt; and id to the reason why another is left out.
    """
    first: dict[str, SourcePrompt] = {}
    texts = {item.prompt.id: neighbours.normalise(item.prompt.plain()) for item in items}
    for item in items:
        first.setdefault(texts[item.prompt.id], item.prompt)
    near = _near(first, list(own), how)
    kept, _ = split.placed({text: p for text, p in first.items() if text not in near}, how)
    twins = {neighbours.normalise(prompt.plain()): prompt for prompt in kept}
    found: dict[str, Prompt] = {}
    reasons: dict[str, str] = {}
    for item in items:
        text = texts[item.prompt.id]
        if text in twins:  # of equal texts the first decides, and all are one cluster
            same = {"role": twins[text].role, "cluster": twins[text].cluster}
            found[item.prompt.id] = Prompt.model_validate(item.prompt.model_dump() | same)
        else:
            reasons[item.prompt.id] = "near_own_prompt" if text in near else "near_duplicate"
    return found, reasons


def _near(prompts: Mapping[str, SourcePrompt], own: Sequence[Prompt], how: Split) -> set[str]:
    """Return the texts that are in one cluster with a prompt of the graph."""
    theirs = [neighbours.normalise(prompt.plain()) for prompt in own]
    ids = [str(number) for number in range(len(own) + len(prompts))]
    found = neighbours.clusters(ids, [*theirs, *prompts], threshold=how.near_duplicate)
    taken = set(found[: len(own)])
    return {text for text, c in zip(prompts, found[len(own) :], strict=True) if c in taken}


def _counts(
    one: Gathered, prompts: Mapping[str, Prompt], reasons: Mapping[str, str]
) -> dict[str, Any]:
    kept = [item for item in one.items if item.prompt.id in prompts]
    near = Counter(reasons[item.prompt.id] for item in one.items if item.prompt.id in reasons)
    return {
        "prompts": len(kept),
        "completions": sum(len(item.completions) for item in kept),
        "labels": sum(len(item.labels) for item in kept),
        "left_out": dict(one.left_out + near),
    }


def revised(names: Sequence[str], folder: Path) -> Source:
    """Return what entries of `revisers` say: that a last revision is better than the answer.

    Args:
        names: `pairs.revisions`.
        folder: data/revisions.

    Raises:
        RecordError: an entry has not run, or a line is not what it writes.
    """
    completions: list[tuple[str, Completion]] = []
    rankings: list[tuple[str, Ranking]] = []
    for name in names:
        if not (folder / name).is_dir():
            raise RecordError(
                f"{folder / name}: no such folder, and pairs.revisions names {name}; "
                f"`dvc repro revise@{name}` makes it, from an entry of `revisers`"
            )
        for file, kind, lines in (
            ("completions", Completion, completions),
            ("rankings", Ranking, rankings),
        ):
            lines += files.records(folder / name / f"{file}.jsonl", kind)
    return Source([], completions, rankings, dict.fromkeys(names, REVISER), {})
