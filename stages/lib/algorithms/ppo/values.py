"""Value functions: the expected return from before each token of a completion on.

Shape suffixes: N = completion tokens of a batch, D = hidden size, H = units.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from stages.lib import likelihood, models
from stages.lib.likelihood import Positions
from stages.lib.models import LanguageModel
from stages.lib.reward_model import Head, TrainedReward
from stages.lib.tokens import TokenSequence

UNITS = 64
ADAPTER = "value"


class ValueFunction(Protocol):
    """What estimates returns."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what an optimiser moves, by name."""
        ...

    def on(self) -> AbstractContextManager[None]:
        """Return the context in which it is called, and in which its gradients flow back."""
        ...

    def read(self, sequences: Sequence[TokenSequence], reference: Positions) -> Tensor:
        """Return what it takes from frozen weights, once a rollout: states_ND.

        Args:
            sequences: of a batch.
            reference: the states of the reference from which their tokens are predicted.
        """
        ...

    def __call__(self, sequences: Sequence[TokenSequence], states_ND: Tensor) -> Tensor:
        """Return values_N, float32, with gradients; `states_ND` is what `read` returned."""
        ...


class HeadValue(nn.Module):
    """A small network on the frozen base's states: no further pass through the base.

    Its last layer starts at zero, so that every value does.
    """

    def __init__(self, width: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = math.sqrt(width)
        self.inner = nn.Linear(width, UNITS)
        self.outer = nn.Linear(UNITS, 1)
        with torch.no_grad():
            self.inner.weight.normal_(std=1 / math.sqrt(width), generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def trained(self) -> dict[str, nn.Parameter]:
        """Return its weights."""
        return dict(self.named_parameters())

    def on(self) -> AbstractContextManager[None]:
        """Nothing to switch on."""
        return nullcontext()

    def read(self, sequences: Sequence[TokenSequence], reference: Positions) -> Tensor:
        """Return the reference's states."""
        return reference.hidden_ND

    def forward(self, sequences: Sequence[TokenSequence], states_ND: Tensor) -> Tensor:
        """Return values_N."""
        with torch.autocast(states_ND.device.type, enabled=False):
            # Divided by their root mean square, which is 44 where the base is SmolLM2-135M.
            states_ND = states_ND.float()
            states_ND = states_ND * torch.rsqrt(states_ND.square().mean(-1, keepdim=True) + 1e-6)
            return self.outer(torch.tanh(self.inner(states_ND))).squeeze(-1)


class RewardValue:
    """The reward model's own states, and a copy of its head that trains.

    One pass forward a rollout and none back. It explains half of the returns' variance before the
    first update (SmolLM2-135M, the default graph), where a new head has nothing to say for as long
    as a short training lasts.
    """

    def __init__(self, reward: TrainedReward) -> None:
        self.reward = reward
        self.head = _copy(reward.head)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the head's weights."""
        return {f"head.{k}": p for k, p in self.head.named_parameters()}

    def on(self) -> AbstractContextManager[None]:
        """Nothing to switch on: what trains is no part of the base."""
        return nullcontext()

    @torch.no_grad()
    def read(self, sequences: Sequence[TokenSequence], reference: Positions) -> Tensor:
        """Return the reward model's states; `reference` is not read."""
        lm = self.reward.lm
        with models.adapter(lm, self.reward.name), models.training_precision(lm):
            return likelihood.positions(lm, sequences).hidden_ND

    def __call__(self, sequences: Sequence[TokenSequence], states_ND: Tensor) -> Tensor:
        """Return values_N on the reward model's normalised scale."""
        normalise = self.reward.normalise
        return (self.head(states_ND) - normalise.mean) / normalise.std


class AdapterValue:
    """An adapter and head of its own, which start as the reward model's (arXiv:2403.17031)."""

    def __init__(self, lm: LanguageModel, folder: Path, reward: TrainedReward) -> None:
        lm.model.load_adapter(str(folder), adapter_name=ADAPTER, is_trainable=True)
        models.trainable(lm.model)
        self.head = _copy(reward.head)
        self.lm, self.normalise = lm, reward.normalise

    def trained(self) -> dict[str, nn.Parameter]:
        """Return adapter and head."""
        lora = {k: p for k, p in self.lm.model.named_parameters() if f".{ADAPTER}." in k}
        return {**lora, **{f"head.{k}": p for k, p in self.head.named_parameters()}}

    def on(self) -> AbstractContextManager[None]:
        """Make its adapter the active one."""
        return active(self.lm, ADAPTER)

    def read(self, sequences: Sequence[TokenSequence], reference: Positions) -> Tensor:
        """Return nothing: all that it reads moves."""
        return reference.hidden_ND.new_empty(0)

    def __call__(self, sequences: Sequence[TokenSequence], states_ND: Tensor) -> Tensor:
        """Return values_N on the reward model's normalised scale; `states_ND` is not read."""
        with models.training_precision(self.lm):
            own_ND = likelihood.positions(self.lm, sequences).hidden_ND
        return (self.head(own_ND) - self.normalise.mean) / self.normalise.std


def _copy(head: Head) -> Head:
    """Return a head of the same weights that trains."""
    own = Head(head.weight.shape[1], seed=0).to(head.weight.device)
    own.load_state_dict(head.state_dict())
    return own


@contextmanager
def active(lm: LanguageModel, name: str) -> Iterator[None]:
    """Make an adapter the active one, for a forward pass and its backward pass.

    peft switches `requires_grad` off for every other adapter: a backward pass that ends later than
    this leaves no gradient, and says nothing.
    """
    before = lm.model.active_adapter
    lm.model.set_adapter(name)
    try:
        yield
    finally:
        lm.model.set_adapter(before)
