"""A labeler that is a person: their file of rankings, checked against the completions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stages.lib.base import Base
from stages.lib.labelers.ranks import by_prompt
from stages.lib.records import Completion, Name, Prompt, Ranking
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict, check


class People(Strict):
    """An entry of `labelers`: somebody's file in data/labels."""

    kind: Literal["people"]
    reads: Name
    """The file."""
    criterion: Name
    """What they were asked; rankings of other criteria in the file are another entry's."""


def rank(
    labeler: People,
    name: str,
    base: Base,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> tuple[list[Ranking], dict[str, float]]:
    """Return the labeler's rankings of this criterion, highest revision of each prompt.

    Raises:
        RecordError: a line is no ranking, is another labeler's, or ranks a completion that the
            prompt does not have; with file and line.
    """
    has = {prompt_id: [c.id for c in some] for prompt_id, some in by_prompt(completions).items()}
    latest: dict[str, Ranking] = {}
    for where, row in files.raw_lines(Path(labeler.reads)):
        one = check(row, Ranking, where, RecordError)
        if one.labeler != name:
            raise RecordError(
                f"{where}: labeler is '{one.labeler}', but params.yaml names this file's "
                f"labeler '{name}'"
            )
        if one.criterion != labeler.criterion:
            continue
        if one.prompt_id not in has:
            raise RecordError(f"{where}: ranks prompt {one.prompt_id}, which has no completions")
        for completion in one.shown:
            if completion not in has[one.prompt_id]:
                some = ", ".join(has[one.prompt_id][:4])
                raise RecordError(
                    f"{where}: ranks completion {completion}, which prompt {one.prompt_id} "
                    f"does not have ({some} …)"
                )
        before = latest.get(one.prompt_id)
        if before and before.revision == one.revision:
            raise RecordError(
                f"{where}: prompt {one.prompt_id} has revision {one.revision} twice; raise "
                "the later one"
            )
        if before is None or before.revision < one.revision:
            latest[one.prompt_id] = one
    return [latest[prompt_id] for prompt_id in sorted(latest)], {}
