"""What an algorithm is given, whichever it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages.lib.base import Base
from stages.lib.lora import Adapted, require_size
from stages.lib.records import Name
from stages.lib.runtime.schema import Strict

if TYPE_CHECKING:
    from stages.lib.anchor import Anchor
    from stages.lib.models import LanguageModel


class Entry(Strict):
    """What every entry of `policies` has, whichever its algorithm."""

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
