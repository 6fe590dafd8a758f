"""Labelers that are people: each has a file in data/labels, checked against the completions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.base import Base
from stages.lib.labelers.ranks import by_prompt
from stages.lib.records import AnyLabel, Completion, Name, Prompt, Ranking, Role, Skip, Thumbs
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict, check

Share = Annotated[float, Field(ge=0, le=1)]


class People(Strict):
    """An entry of `labelers`: whoever labels, and what `make label` asks them."""

    kind: Literal["people"]
    reads: Name
    """Folder of their files, one a labeler, named after them."""
    guide: Name
    """The instructions they are given."""
    criterion: Name
    """What the page asks."""
    task: Literal["ranking", "thumbs", "demonstration"]
    """What the page has them do: rank a prompt's completions, judge each by itself, or write an
    answer."""
    samplers: list[Name]
    """Whose completions are shown; none named means all."""
    roles: Annotated[list[Role], Field(min_length=1)]
    """Of the prompts shown."""
    categories: list[Name]
    """Likewise; none named means all."""
    prompts: Annotated[int, Field(ge=1)]
    """How many are labeled in all, the first by hash."""
    team: list[Name]
    """Who labels; none named gives whoever comes every prompt."""
    overlap: Annotated[int, Field(ge=1)]
    """How many of the team each prompt is given to."""
    repeats: Share
    """Share of a labeler's rankings that is asked a second time; it makes no pairs."""
    gold: Name | None
    """Whose rankings everybody is measured against, and given to rank as well; they have no vote.
    None: nobody's."""
    tie_warning: Share
    """Share of ties among a labeler's comparisons above which the page warns."""


def rank(
    labeler: People,
    name: str,
    base: Base,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> tuple[list[AnyLabel], dict[str, float]]:
    """Return what people said, every criterion and revision, without the tasks they skipped.

    Raises:
        RecordError: a line is no label, is another labeler's, is about a prompt or completion that
            there is not, or repeats a revision; with file and line.
    """
    folder = Path(labeler.reads)
    labels = [label for file in sorted(folder.glob("*.jsonl")) for label in read(file)]
    _require_known(labels, prompts, completions)
    last: dict[tuple[object, ...], AnyLabel] = {}
    for _, label in labels:
        key = label.labeler, *subject(label)
        last[key] = max(last.get(key, label), label, key=lambda one: one.revision)
    skipped = {key for key, label in last.items() if isinstance(label, Skip)}
    said = [
        label
        for _, label in labels
        if (label.labeler, *subject(label)) not in skipped and not isinstance(label, Skip)
    ]
    instructions = files.sha256(Path(labeler.guide))
    told = [label for label in said if label.instructions_sha]
    return said, {
        "people": float(len({label.labeler for label in said})),
        "skipped": float(len(skipped)),
        "thumbs": float(sum(isinstance(label, Thumbs) for label in said)),
        "demonstrations": float(sum(label.kind == "demonstration" for label in said)),
        "other_instructions": float(sum(x.instructions_sha != instructions for x in told)),
    }


def read(file: Path) -> list[tuple[str, AnyLabel]]:
    """Return a labeler's lines, each with where it stands.

    Raises:
        RecordError: a line is no label, another labeler's, or the second of one revision.
    """
    found: list[tuple[str, AnyLabel]] = []
    seen: dict[tuple[object, ...], str] = {}
    for where, row in files.raw_lines(file):
        label: AnyLabel = check(row, AnyLabel, where, RecordError)
        if label.labeler != file.stem:
            raise RecordError(f"{where}: labeler is '{label.labeler}', in the file of {file.stem}")
        earlier = seen.setdefault((*subject(label), label.revision), where)
        if earlier != where:
            raise RecordError(
                f"{where}: revision {label.revision} of prompt {label.prompt_id} stands at "
                f"{earlier} already; raise the later one"
            )
        found.append((where, label))
    return found


def subject(label: AnyLabel) -> tuple[object, ...]:
    """Return what a line is about; of a labeler's lines on it the highest revision counts."""
    skipped = isinstance(label, Skip)
    return (
        label.task if skipped else label.kind,
        label.criterion,
        label.prompt_id,
        label.completion_id if isinstance(label, Thumbs | Skip) else None,
        isinstance(label, Ranking | Skip) and label.repeat,
    )


def _require_known(
    labels: Sequence[tuple[str, AnyLabel]],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> None:
    has = {prompt_id: [c.id for c in some] for prompt_id, some in by_prompt(completions).items()}
    known = {prompt.id for prompt in prompts}
    for where, label in labels:
        if label.prompt_id not in known:
            raise RecordError(f"{where}: is about prompt {label.prompt_id}, which there is not")
        about = []
        if isinstance(label, Ranking):
            about = label.shown
        elif isinstance(label, Thumbs):
            about = [label.completion_id]
        answers = has.get(label.prompt_id, [])
        for completion in about:
            if completion not in answers:
                some = ", ".join(answers[:4]) or "none"
                raise RecordError(
                    f"{where}: judges completion {completion}, which prompt {label.prompt_id} "
                    f"does not have ({some} …)"
                )
