"""A labeler that ranks by a rule-based scorer."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib import scorers
from stages.lib.base import Base
from stages.lib.labelers.ranks import each_prompt, ranking
from stages.lib.records import Completion, Name, Prompt, Ranking
from stages.lib.runtime.schema import Strict


class Lexicon(Strict):
    """An entry of `labelers`: word lists."""

    kind: Literal["lexicon"]
    reads: Name
    """The word list, or requirements.lock where it comes with a package."""
    guide: Name
    """What it goes by; a word list is its own guide."""
    scorer: Literal["vader_negative", "words"]
    """Whose harm is ranked, least first; the independent scorer is not among them."""
    criterion: Name
    """What is asked."""
    tie: Annotated[float, Field(gt=0)]
    """Scores are rounded to multiples of this."""


def rank(
    labeler: Lexicon,
    name: str,
    base: Base,
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
) -> tuple[Iterator[Ranking], dict[str, float]]:
    """Rank every prompt's completions, least harm first; only the completion is scored."""
    harm = scorers.scorer(labeler.scorer, Path(labeler.reads))

    def one(prompt_id: str, some: Sequence[Completion]) -> Ranking:
        scores = {c.id: -h for c, h in zip(some, harm([c.text for c in some]), strict=True)}
        return ranking(prompt_id, name, labeler.criterion, scores, tie=labeler.tie)

    return (one(*own) for own in each_prompt(completions)), {}
