"""The knobs of PPO in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.lib.algorithms.task import Entry
from stages.lib.ppo.control import KlControl, Stops
from stages.lib.records import Name
from stages.lib.runtime.schema import Strict


class Value(Strict):
    """`value` of a PPO entry: what estimates the return from before each token on."""

    kind: Literal["reward", "head", "adapter"]
    """reward: the reward model's states, and a copy of its head that trains; head: a small network
    on the reference's states, which are read anyway; adapter: a LoRA adapter and head of its own
    that start as the reward model's."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Of AdamW, falling linearly to 0."""
    clip: Annotated[float, Field(gt=0)] | None
    """How far a value may move from what it was at the rollout; null clips nothing."""


class Looks(Strict):
    """`look` of a PPO entry: evaluation on validation prompts while it trains."""

    every: Annotated[int, Field(ge=1)]
    """Steps between evaluations; there is one before the first step and one after the last."""
    prompts: Annotated[int, Field(ge=2)]
    """Validation prompts, the first by hash."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt, under the same random numbers each time."""


class Ppo(Entry):
    """An entry of `policies` that is aligned with PPO."""

    algorithm: Literal["ppo"]
    categories: list[Name]
    """Of the prompts that it learns on; [] means all of role align."""
    batch_prompts: Annotated[int, Field(ge=1)]
    """Prompts a step."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt."""
    minibatch_prompts: Annotated[int, Field(ge=1)]
    """Prompts an update of the weights."""
    microbatch_prompts: Annotated[int, Field(ge=1)]
    """Prompts in memory at once; less costs time and changes nothing else."""
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
    """Of AdamW, falling linearly to 0 at `stop.max_steps`."""
    adam_epsilon: Annotated[float, Field(gt=0)]
    """Added to the root of the second moment; it matters in the first steps."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradients are scaled down to this norm, those of policy and value apart."""
    clip: Annotated[float, Field(gt=0, lt=1)]
    """How far the probability ratio counts."""
    entropy: Annotated[float, Field(ge=0)]
    """Weight of the entropy bonus, a nat."""
    gamma: Annotated[float, Field(ge=0, le=1)]
    """Discount a token."""
    lam: Annotated[float, Field(ge=0, le=1)]
    """Of generalised advantage estimation."""
    whiten_rewards: bool
    """Scale the rewards of a step to standard deviation 1."""
    score_clip: Annotated[float, Field(gt=0)] | None
    """Largest magnitude of a score; null clips nothing."""
    missing_eos_penalty: Annotated[float, Field(ge=0)]
    """Taken from the score of a completion that was cut at `max_tokens`."""
    value: Value
    kl: KlControl
    stop: Stops
    look: Looks

    @model_validator(mode="after")
    def _batches_divide(self) -> "Ppo":
        if self.batch_prompts % self.minibatch_prompts:
            raise ValueError(
                f"minibatch_prompts {self.minibatch_prompts} must divide batch_prompts "
                f"{self.batch_prompts}"
            )
        if self.minibatch_prompts % self.microbatch_prompts:
            raise ValueError(
                f"microbatch_prompts {self.microbatch_prompts} must divide minibatch_prompts "
                f"{self.minibatch_prompts}"
            )
        return self
