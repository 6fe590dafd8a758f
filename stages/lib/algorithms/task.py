"""What an algorithm is given, whichever it is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from stages.lib.base import Base
from stages.lib.keeper import Keeper
from stages.lib.lora import Adapted, require_size
from stages.lib.records import Name
from stages.lib.runtime.schema import Seed, Strict

if TYPE_CHECKING:
    from stages.lib.anchor import Anchor
    from stages.lib.models import LanguageModel


Objective = Literal[
    "none", "imitation", "contrastive", "reward maximisation", "distribution matching"
]


class Entry(Strict):
    """What every entry of `policies` has, whichever its algorithm."""

    shares_batches: ClassVar[bool] = False
    """Whether several processes can share each batch."""
    objective: ClassVar[Objective]
    """What kind of method it is, for the report."""
    online: ClassVar[bool] = False
    """Whether it learns from its own answers, drawn while it trains."""

    def kind(self) -> dict[str, str]:
        """Return what the report says of the method: what it pursues, and on whose answers."""
        return {"objective": self.objective, "answers": "online" if self.online else "offline"}

    starts_from: Name
    """models/base, or the folder of a policy whose adapter training goes on from. That policy is
    then the reference as well."""
    learns_from: Name
    """What the algorithm reads: the base, pairs, demonstrations, a reward model."""
    prompts: Name
    """What an online algorithm answers, data/prompts; an offline one has its prompts in what it
    learns from, and names that again. All three are dependencies of the stage."""


class Anchoring(Strict):
    """`anchor` of an entry: neutral text on which the policy is held to its reference."""

    weight: Annotated[float, Field(gt=0)]
    """Of KL(reference || policy) in nats a token, beside the loss."""
    passages: Annotated[int, Field(ge=1)]
    """An update; cost grows with it."""


class TrainedEntry(Entry):
    """What every entry has that trains an adapter."""

    anchor: Anchoring | None
    """What holds down the loss on text that alignment is not about; null: nothing does."""

    seed: Seed | None
    """Of this training alone; null: the graph's. Entries that differ in nothing else show how much
    chance there is in a result."""
    snapshots: Annotated[int, Field(ge=0)]
    """Adapters kept on the way, evenly spaced, beside the last one."""


@dataclass(frozen=True, slots=True)
class Task:
    """One training: what it reads, and where its adapter and its curves go."""

    base: Base
    seed: int
    base_folder: Path
    starts_from: Path
    """See `Entry`."""
    data: Path
    """What `learns_from` names."""
    prompts: Path
    """Folder of train.jsonl, validation.jsonl and test.jsonl, where the algorithm answers any."""
    neutral: Path
    """Passages of neutral text, where the entry has an anchor."""
    out: Path
    curves: Path

    def inputs(self, knobs: Any) -> tuple[Any, ...]:
        """Return all that the result depends on, code included, for `training.checkpoints`."""
        read = self.base_folder, self.starts_from, self.data, self.prompts, self.neutral
        return knobs, self.base, self.seed, *read, Path(__file__).parents[1]

    @property
    def starts_anew(self) -> bool:
        """Whether the adapter is a new one, and the reference the base without any."""
        return self.starts_from.resolve() == self.base_folder.resolve()

    def open(self, knobs: Adapted) -> "LanguageModel":
        """Load the base; where training starts from a policy, with a copy of its adapter to train.

        Raises:
            Refusal: what it starts from has no adapter, or one of another size.
        """
        from stages.lib import models

        lm = models.load(self.base_folder, self.base)
        if not self.starts_anew:
            require_size(self.starts_from, knobs, kind="policy")
            models.continue_adapter(lm, self.starts_from)
        return lm

    def open_with_adapter(self, knobs: Adapted) -> "LanguageModel":
        """Load the base with the adapter that trains: a new one, or a copy to go on from."""
        from stages.lib import models

        lm = self.open(knobs)
        if self.starts_anew:
            models.add_lora(lm, rank=knobs.lora_rank, alpha=knobs.lora_alpha, seed=self.seed)
        return lm

    def anchor(self, lm: "LanguageModel", entry: TrainedEntry) -> "Anchor | None":
        """Return what holds the policy to `lm` as it is now; None where nothing is to."""
        from stages.lib import anchor

        if entry.anchor is None:
            return None
        return anchor.read(
            self.neutral, lm, weight=entry.anchor.weight, passages=entry.anchor.passages
        )

    @contextmanager
    def training(self, lm: "LanguageModel", policy: TrainedEntry) -> Iterator["Training"]:
        """Yield a training of this entry's adapter on `lm`, which is its reference as it is now.

        What it keeps outlives a kill until the block ends, so that whatever is measured after the
        training, within the block, does not cost it.
        """
        from stages.lib import training

        anchor = self.anchor(lm, policy)
        with training.checkpoints(f"align-{policy.algorithm}", *self.inputs(policy)) as folder:
            yield Training(self, lm, folder, Keeper(lm, folder, policy.snapshots), anchor)


Rows = list[dict[str, float]]
"""Curves, a row a step."""


@dataclass(frozen=True, slots=True)
class Training:
    """A training under way."""

    task: Task
    lm: "LanguageModel"
    checkpoints: Path
    keeper: Keeper
    anchor: "Anchor | None"

    def fit(
        self, trainer: Any, columns: Sequence[str], *, read: Callable[[Rows], Rows] = list
    ) -> Rows:
        """Train by transformers' loop, write adapter, states on the way and curves.

        Args:
            trainer: an `Anchored` one.
            columns: of the curves.
            read: makes the curves' rows of what the trainer logged.
        """
        from stages.lib import training

        trainer.anchor = self.anchor
        self.keeper.watch(trainer)
        rows = read(training.fit(trainer, self.checkpoints))
        self.write(rows, columns)
        return rows

    def write(self, rows: Rows, columns: Sequence[str]) -> None:
        """Write the adapter as it is now, what was kept of it on the way, and the curves."""
        from stages.lib import models, training

        models.save_adapter(self.lm, self.task.out)
        self.keeper.hand_over(self.task.out)
        training.write_curves(self.task.curves, rows, columns)
