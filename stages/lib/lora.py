"""The knobs that every training of an adapter has in params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.lib.runtime.schema import Strict


class LoraTraining(Strict):
    """An entry of params.yaml that trains a LoRA adapter on prompts with their completions."""

    lora_rank: Annotated[int, Field(ge=1)]
    """Columns of each adapter matrix."""
    lora_alpha: Annotated[int, Field(ge=1)]
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Of AdamW, reached after warm-up, then falling linearly to 0."""
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps."""
    epochs: Annotated[int, Field(ge=1)]
    """Passes over the prompts."""
    batch_prompts: Annotated[int, Field(ge=1)]
    """Prompts a step, each with all its completions."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradients are scaled down to this norm."""
    max_tokens: Annotated[int, Field(ge=2)]
    """Of prompt and completion together; a longer sequence is refused."""

    def steps(self, prompts: int) -> int:
        """Return the steps of the whole training on this many prompts."""
        return -(-prompts // self.batch_prompts) * self.epochs
