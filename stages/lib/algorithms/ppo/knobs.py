"""The knobs of PPO in params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.lib.algorithms.online import Looks, Online
from stages.lib.algorithms.ppo.control import KlControl, Stops
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


class RegularLooks(Looks):
    """`look` of a PPO entry, which looks while it trains."""

    every: Annotated[int, Field(ge=1)]
    """Steps between evaluations; there is one before the first step and one after the last."""


class Ppo(Online):
    """An entry of `policies` that is aligned with PPO."""

    shares_batches = True

    algorithm: Literal["ppo"]
    minibatch_prompts: Annotated[int, Field(ge=1)]
    """Prompts an update of the weights."""
    microbatch_prompts: Annotated[int, Field(ge=1)]
    """Prompts in memory at once; less costs time and changes nothing else."""
    adam_epsilon: Annotated[float, Field(gt=0)]
    """Added to the root of the second moment; it matters in the first steps."""
    entropy: Annotated[float, Field(ge=0)]
    """Weight of the entropy bonus, a nat."""
    gamma: Annotated[float, Field(ge=0, le=1)]
    """Discount a token."""
    lam: Annotated[float, Field(ge=0, le=1)]
    """Of generalised advantage estimation."""
    whiten_rewards: bool
    """Scale the rewards of a step to standard deviation 1."""
    missing_eos_penalty: Annotated[float, Field(ge=0)]
    """Taken from the score of a completion that was cut at `max_tokens`."""
    value: Value
    kl: KlControl
    stop: Stops
    look: RegularLooks

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
