"""Supervised fine-tuning on demonstrations, the first step of RLHF (Ouyang et al. 2022)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib import order
from stages.lib.algorithms.task import Task, TrainedEntry
from stages.lib.lora import LoraTraining
from stages.lib.records import Demonstration, Prompt, SourcePrompt
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal


class Sft(TrainedEntry, LoraTraining):
    """An entry of `policies` that imitates demonstrations."""

    shares_batches = True
    objective = "imitation"

    algorithm: Literal["sft"]
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of the demonstrations that is not learned from, chosen by hash."""
    resamples: Annotated[int, Field(ge=100)]
    """Bootstrap of the change of the loss on those."""


COLUMNS = ("step", "loss", "anchor_kl", "learning_rate", "grad_norm")


def train(policy: Sft, task: Task) -> dict[str, float]:
    """Fit an adapter to the answers; write it and its curves.

    Returns:
        Sizes, the last losses, and the loss on held-out demonstrations before and after, in nats a
        token, with the 95 % interval of its change.
    """
    from stages.lib import models, statistics
    from stages.lib.algorithms.sft.trainer import AnswerTrainer, sequences, token_losses

    learned, held_out = divided(files.read_lines(task.data, Demonstration), policy.held_out)
    if len(learned) < policy.batch_prompts or len(held_out) < 2:
        raise Refusal(
            f"{task.data}: {len(learned)} demonstrations to learn from and {len(held_out)} held "
            f"out; batch_prompts {policy.batch_prompts} and an interval ask for more"
        )
    _require_apart(task.data, [*learned, *held_out], task.prompts)
    lm = task.open_with_adapter(policy)
    given, kept = (
        sequences(lm, some, max_tokens=policy.max_tokens) for some in (learned, held_out)
    )
    before = token_losses(lm, kept, label="before")
    with task.training(lm, policy) as training:
        trainer = AnswerTrainer(lm, policy, given, seed=task.seed, checkpoints=training.checkpoints)
        rows = training.fit(trainer, COLUMNS)
    after = token_losses(lm, kept, label="after")
    change = statistics.bootstrap_mean(
        (after - before).tolist(), [d.id for d in held_out],
        resamples=policy.resamples, seed=task.seed,
    )  # fmt: skip
    return {
        "steps": float(trainer.state.global_step),
        "demonstrations": float(len(learned)),
        "completion_tokens": float(sum(len(s.completion) for s in given)),
        "trainable_parameters": models.trainable_parameters(lm),
        "loss": sum(row["loss"] for row in rows[-5:]) / len(rows[-5:]),
        "held_out_n": float(len(held_out)),
        "held_out_loss_before": float(before.mean()),
        "held_out_loss_after": float(after.mean()),
        "held_out_change": change.value,
        "held_out_change_low": change.low,
        "held_out_change_high": change.high,
    }


def divided(
    demonstrations: list[Demonstration], share: float
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Return what is learned from and what is held out.

    By the text of each one's prompt alone, so that others added later move none.
    """
    sides: tuple[list[Demonstration], list[Demonstration]] = [], []
    for one in demonstrations:
        sides[order.place(_key(one)) < share].append(one)
    return sides


def _require_apart(source: Path, demonstrations: list[Demonstration], prompts: Path) -> None:
    """Refuse a demonstration whose prompt a policy is judged on."""
    judged = {
        _key(p): f"{p.role} prompt {p.id}"
        for name in ("validation", "test")
        for p in files.read_lines(prompts / f"{name}.jsonl", Prompt)
    }
    for one in demonstrations:
        other = judged.get(_key(one))
        if other:
            raise Refusal(f"{source}: demonstration {one.id} answers {other}; leave it out")


def _key(prompt: SourcePrompt) -> str:
    """Return the prompt as text, but for case and white space."""
    return " ".join(prompt.plain().casefold().split())
