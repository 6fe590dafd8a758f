"""The knobs that a training of an adapter has in params.yaml, and what it may start from."""

from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, Strict


class Adapted(Protocol):
    """Knobs of an adapter."""

    @property
    def lora_rank(self) -> int:
        """Columns of each adapter matrix."""
        ...

    @property
    def lora_alpha(self) -> int:
        """The adapter's output is scaled by alpha / rank."""
        ...


def require_size(starts_from: Path, knobs: Adapted, *, kind: str) -> None:
    """Refuse to go on from a folder that holds no adapter, or one of another size.

    Args:
        starts_from: folder of the adapter.
        knobs: of the training that is to go on from it.
        kind: what a folder with an adapter is called here, `policy` or `reward model`.
    """
    config = starts_from / "adapter_config.json"
    if not config.is_file():
        raise Refusal(
            f"{starts_from}: starts_from names a {kind} without an adapter; name the base itself, "
            f"or a {kind} that was trained"
        )
    saved = files.read_json(config)
    found = saved["r"], saved["lora_alpha"]
    if found != (knobs.lora_rank, knobs.lora_alpha):
        raise Refusal(
            f"{starts_from}: its adapter has rank {found[0]} and alpha {found[1]}, and what starts "
            f"from it has {knobs.lora_rank} and {knobs.lora_alpha}; make them equal"
        )


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


class ScorerTraining(LoraTraining):
    """An entry that trains a reward model: an adapter and a head."""

    probe_l2: Annotated[float, Field(gt=0)]
    """Of the head's start, a linear probe of the base; larger keeps it smaller."""
