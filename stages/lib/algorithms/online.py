"""The knobs of algorithms that learn from their own answers."""

from typing import Annotated

from pydantic import Field

from stages.lib.algorithms.task import TrainedEntry
from stages.lib.records import Name
from stages.lib.runtime.schema import Strict


class Looks(Strict):
    """`look` of an entry: evaluation on validation prompts."""

    prompts: Annotated[int, Field(ge=2)]
    """Validation prompts, the first by hash."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt, under the same random numbers each time."""


class Online(TrainedEntry):
    """What every entry of `policies` has that is scored on its own answers while it learns."""

    objective = "reward maximisation"
    online = True

    categories: list[Name]
    """Of the prompts that it learns on; [] means all of role align."""
    batch_prompts: Annotated[int, Field(ge=1)]
    """Prompts a step."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt."""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the completions of a step."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Of a completion."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """Tokens in memory at once while it samples."""
    temperature: Annotated[float, Field(gt=0)]
    """Of sampling, and of every log-probability here."""
    lora_rank: Annotated[int, Field(ge=1)]
    """Columns of each adapter matrix."""
    lora_alpha: Annotated[int, Field(ge=1)]
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Of AdamW, falling linearly to 0 at the last step."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradients are scaled down to this norm; those of another role's parameters apart."""
    clip: Annotated[float, Field(gt=0, lt=1)]
    """How far the probability ratio counts."""
    score_clip: Annotated[float, Field(gt=0)] | None
    """Largest magnitude of a score; null clips nothing."""
    look: Looks
