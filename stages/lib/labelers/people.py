"""Labelers that are people: each has a file in data/labels, checked against the completions."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.base import Base
from stages.lib.labelers.ranks import by_prompt
from stages.lib.records import (
    AnyLabel,
    Completion,
    Name,
    Prompt,
    Role,
    Skip,
    Thumbs,
    Written,
    latest,
)
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, Strict, check

Share = Annotated[float, Field(ge=0, le=1)]


def is_name(labeler: str) -> bool:
    """Say whether a labeler's name can be that of their file, on any machine."""
    try:
        check(labeler, Name, "")
    except Refusal:
        return False
    return not re.search("[/:]", labeler) and len(labeler) <= 100


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
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
) -> tuple[list[AnyLabel], dict[str, float]]:
    """Return every line that people gave, skips among them; `pairs` decides what counts.

    Raises:
        RecordError: a line is no label, is another labeler's, is about a prompt or completion that
            there is not, or repeats a revision; with file and line.
    """
    folder = Path(labeler.reads)
    labels = [label for file in sorted(folder.glob("*.jsonl")) for label in read(file)]
    _require_known(labels, prompts, completions)
    lines = [label for _, label in labels]
    counting = latest(lines)
    instructions = files.sha256(Path(labeler.guide))
    told = [label for label in counting if label.instructions_sha]
    return lines, {
        "people": float(len({label.labeler for label in lines})),
        "skipped": float(sum(isinstance(label, Skip) for label in counting)),
        "thumbs": float(sum(isinstance(label, Thumbs) for label in counting)),
        "demonstrations": float(sum(isinstance(label, Written) for label in counting)),
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
        earlier = seen.setdefault((*label.subject, label.revision), where)
        if earlier != where:
            raise RecordError(
                f"{where}: revision {label.revision} of prompt {label.prompt_id} stands at "
                f"{earlier} already; raise the later one"
            )
        found.append((where, label))
    return found


def shown_sha(criterion: str, prompt: Prompt, completions: Sequence[Completion]) -> str:
    """Return the SHA-256 of what a labeler saw: criterion, prompt and completions in any order.

    Ids stay the same when a sampler draws other texts; this does not.
    """
    texts = sorted((one.id, one.text, one.finish) for one in completions)
    body = prompt.model_dump(include={"form", "text", "messages"})
    plain = json.dumps([criterion, body, texts], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _require_known(
    labels: Sequence[tuple[str, AnyLabel]],
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
) -> None:
    answers = by_prompt(completions)
    known = {prompt.id: prompt for prompt in prompts}
    for where, label in labels:
        if label.prompt_id not in known:
            raise RecordError(f"{where}: is about prompt {label.prompt_id}, which there is not")
        has = {completion.id: completion for completion in answers.get(label.prompt_id, [])}
        for completion in label.about:
            if completion not in has:
                some = ", ".join(list(has)[:4]) or "none"
                raise RecordError(
                    f"{where}: judges completion {completion}, which prompt {label.prompt_id} "
                    f"does not have ({some} …)"
                )
        shown = [has[completion] for completion in label.about]
        sha = shown_sha(label.criterion, known[label.prompt_id], shown)
        if label.task_sha not in (None, sha) and not isinstance(label, Skip):
            raise RecordError(
                f"{where}: prompt {label.prompt_id} or the completions judged are other texts than "
                "the labeler saw (task_sha); restore the params they were sampled with, or take "
                "the line out"
            )
