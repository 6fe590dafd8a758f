"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290) on pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.lib import order
from stages.lib.algorithms.task import Task, TrainedEntry
from stages.lib.lora import LoraTraining
from stages.lib.records import Pair
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from stages.lib.groups import Group
    from stages.lib.models import LanguageModel


class Dpo(TrainedEntry, LoraTraining):
    """An entry of `policies` that is aligned with DPO."""

    shares_batches = True
    objective = "contrastive"

    algorithm: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)]
    """1/nats; larger stays closer to the base."""
    loss: Literal["sigmoid", "ipo"]
    """sigmoid is DPO; ipo is Identity Preference Optimization."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    """Probability that a label is flipped."""
    max_pairs_per_prompt: Annotated[int, Field(ge=1)]
    """Surest and widest first."""
    labels: Literal["given", "shuffled"]
    """shuffled: which completion of a pair is chosen is drawn by hash. A control: what such a
    policy still changes is not due to what the labelers said."""


COLUMNS = (
    "step",
    "loss",
    "margin",
    "accuracy",
    "logp_chosen",
    "logp_rejected",
    "anchor_kl",
    "learning_rate",
    "grad_norm",
)


def train(policy: Dpo, task: Task) -> dict[str, float]:
    """Align an adapter on the pairs of role `align`; write it and its curves.

    Returns:
        Sizes, the last losses, and the implicit reward's accuracy on validation pairs.
    """
    # Torch and TRL take seconds to import; reading params of another policy should not.
    from stages.lib import models
    from stages.lib.algorithms.dpo.trainer import GroupedDPOTrainer, accuracy, group_logps

    lm = task.open(policy)
    learned = _pairs(task.data / "train.jsonl", "align")
    if policy.labels == "shuffled":
        learned = [shuffled(pair, seed=task.seed) for pair in learned]
    train_groups = _groups(lm, policy, learned)
    held_out = _groups(lm, policy, _pairs(task.data / "validation.jsonl", "validation"))
    if not train_groups:
        raise Refusal(
            f"{task.data / 'train.jsonl'}: no pairs of role align; raise "
            "prompts.split.shares.align or sample more completions"
        )
    reference = group_logps(lm, [*train_groups, *held_out], label="reference")
    with task.training(lm, policy) as training:
        trainer = GroupedDPOTrainer(
            lm, policy, train_groups, reference, seed=task.seed, checkpoints=training.checkpoints
        )
        rows = training.fit(trainer, COLUMNS)
        after = group_logps(lm, held_out, label="validation")
    return {
        "steps": float(trainer.state.global_step),
        "pairs": float(sum(len(g.pairs) for g in train_groups)),
        "prompts": float(len(train_groups)),
        "completion_tokens": float(
            sum(len(s.completion) for g in train_groups for s in g.sequences)
        ),
        "trainable_parameters": models.trainable_parameters(lm),
        "loss": sum(row["loss"] for row in rows[-5:]) / len(rows[-5:]),
        "implicit_accuracy": accuracy(held_out, after, reference),
        "implicit_accuracy_n": float(sum(len(g.pairs) for g in held_out)),
    }


def shuffled(pair: Pair, *, seed: int) -> Pair:
    """Return the pair with a label that says nothing: the two change places, or not, by hash."""
    if int(order.by_hash(f"{seed}:{pair.id}"), 16) % 2:
        return pair
    return pair.model_copy(
        update={
            "chosen_id": pair.rejected_id, "rejected_id": pair.chosen_id,
            "chosen": pair.rejected, "rejected": pair.chosen,
            "chosen_finish": pair.rejected_finish, "rejected_finish": pair.chosen_finish,
        }
    )  # fmt: skip


def _pairs(path: Path, role: str) -> list[Pair]:
    return [pair for pair in files.read_lines(path, Pair) if pair.role == role]


def _groups(lm: "LanguageModel", policy: Dpo, pairs: list[Pair]) -> list["Group"]:
    from stages.lib.groups import group

    return group(lm, pairs, max_tokens=policy.max_tokens, max_pairs=policy.max_pairs_per_prompt)
