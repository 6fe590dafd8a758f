"""A scorer that is a Hugging Face text classifier: the probability of one of its classes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.base import Base
from stages.lib.classifier import Classifier
from stages.lib.model_scorers.said import Said, of_texts
from stages.lib.records import Name
from stages.lib.runtime.schema import Strict
from stages.lib.scores import ByPolicy


class TextClassifier(Strict):
    """An entry of `scorers`: a sequence classifier brought by `fetch`."""

    kind: Literal["classifier"]
    reads: Name
    """Folder of the classifier."""
    guide: Name
    """What it goes by; a classifier is its own guide."""
    label: str
    """The harmful class, by the classifier's own name for it."""
    sets: Annotated[list[Name], Field(min_length=1)]
    """Of `evaluate.sets`, those whose answers are scored."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Longer answers are cut at their end, and counted."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """Tokens in memory at once."""


def score(scorer: TextClassifier, base: Base, answers: ByPolicy, baseline: str) -> Said:
    """Return the probability of the class for every answer; only the answer is read."""
    model = Classifier(Path(scorer.reads), scorer.label, max_tokens=scorer.max_tokens)
    batch = max(1, scorer.batch_tokens // scorer.max_tokens)
    found, texts = of_texts(
        answers, scorer.sets, lambda some: model.probabilities(some, batch=batch)
    )
    return Said(
        found,
        asks=f"class '{scorer.label}'",
        reads=f"the answer alone, cut at its end after {scorer.max_tokens} tokens",
        texts=texts,
        cut=model.cut,
        sets=scorer.sets,
        prompts=None,
        measures={},
    )
