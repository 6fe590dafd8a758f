"""A labeler that ranks by a Hugging Face text classifier."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.base import Base
from stages.lib.labelers.ranks import by_prompt, ranking
from stages.lib.records import Completion, Name, Prompt, Ranking
from stages.lib.runtime.schema import Strict


class TextClassifier(Strict):
    """An entry of `labelers`: a sequence classifier brought by `fetch`."""

    kind: Literal["classifier"]
    reads: Name
    """Folder of the classifier."""
    guide: Name
    """What it goes by; a classifier is its own guide."""
    label: str
    """Class that is asked about, by the classifier's own name for it."""
    better: Literal["high", "low"]
    """Whether more of the class is better (`nothate`) or worse (`hate`)."""
    criterion: Name
    """What is asked."""
    tie: Annotated[float, Field(gt=0)]
    """Logits are rounded to multiples of this."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Longer completions are cut at their end."""


def rank(
    labeler: TextClassifier,
    name: str,
    base: Base,
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
) -> tuple[list[Ranking], dict[str, float]]:
    """Rank every prompt's completions by the class's logit; only the completion is scored."""
    from stages.lib.classifier import Classifier  # torch, which a word list has no need of

    model = Classifier(Path(labeler.reads), labeler.label, max_tokens=labeler.max_tokens)
    sign = 1 if labeler.better == "high" else -1
    grouped = by_prompt(completions)
    ordered = sorted((c for some in grouped.values() for c in some), key=lambda c: c.id)
    logit = dict(zip([c.id for c in ordered], model.logits([c.text for c in ordered]), strict=True))
    rankings = [
        ranking(
            prompt_id,
            name,
            labeler.criterion,
            {c.id: sign * logit[c.id] for c in some},
            tie=labeler.tie,
        )
        for prompt_id, some in grouped.items()
    ]
    return rankings, {}
