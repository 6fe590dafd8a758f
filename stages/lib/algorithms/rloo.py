"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740) through TRL."""

import math
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.algorithms.task import Entry, Task
from stages.lib.records import Name


class Rloo(Entry):
    """An entry of `policies` that is aligned with RLOO, which has no value function."""

    algorithm: Literal["rloo"]
    categories: list[Name]
    """Of the prompts that it learns on; [] means all of role align."""
    batch_prompts: Annotated[int, Field(ge=1)]
    """Prompts a step."""
    samples: Annotated[int, Field(ge=2)]
    """Completions a prompt; the others' mean reward is each one's baseline."""
    epochs: Annotated[int, Field(ge=1)]
    """Updates on the completions of a step."""
    max_steps: Annotated[int, Field(ge=1)]
    """Rollouts; the learning rate reaches 0 here."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Of a completion."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """Tokens in memory at once while it answers validation prompts."""
    temperature: Annotated[float, Field(gt=0)]
    """Of sampling, and of every log-probability here."""
    lora_rank: Annotated[int, Field(ge=1)]
    """Columns of each adapter matrix."""
    lora_alpha: Annotated[int, Field(ge=1)]
    """The adapter's output is scaled by alpha / rank."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Of AdamW, falling linearly to 0."""
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradients are scaled down to this norm."""
    clip: Annotated[float, Field(gt=0, lt=1)]
    """How far the probability ratio of a completion counts."""
    beta: Annotated[float, Field(ge=0)]
    """Reward a nat from the reference, in standard deviations of the reward model."""
    score_clip: Annotated[float, Field(gt=0)] | None
    """Largest magnitude of a score; null clips nothing."""
    look_prompts: Annotated[int, Field(ge=2)]
    """Validation prompts answered before and after."""
    look_samples: Annotated[int, Field(ge=1)]
    """Completions a validation prompt."""


COLUMNS = (
    "step", "loss", "score", "kl_token", "entropy", "clip_fraction", "length", "cut",
    "learning_rate", "grad_norm",
)  # fmt: skip


def train(policy: Rloo, task: Task) -> dict[str, float]:
    """Align an adapter on prompts of role align; write it and its curves.

    Returns:
        Steps, sizes, and the scores of validation prompts before and after.
    """
    from stages.lib import models, online, reward_model, rloo_trainer, training

    lm = task.open(policy)
    learned, held_out = online.asks(
        lm, task.prompts, policy.categories,
        learned=policy.batch_prompts, held_out=policy.look_prompts,
    )  # fmt: skip
    with training.checkpoints("align-rloo", *task.inputs(policy)) as folder:
        trainer = rloo_trainer.AskTrainer(lm, policy, learned, seed=task.seed, checkpoints=folder)
        scorers = reward_model.load_both(lm, task.data)
        trainer.reward = scorers[0]
        before = rloo_trainer.look(lm, policy, held_out, scorers, seed=task.seed, name="before")
        rows = rloo_trainer.rows(training.fit(trainer, folder))
        after = rloo_trainer.look(lm, policy, held_out, scorers, seed=task.seed, name="after")
        models.save_adapter(lm, task.out)
        training.write_curves(task.curves, rows, COLUMNS)
    last = [row for row in rows if not math.isnan(row["score"])][-3:]
    return {
        "steps": float(policy.max_steps),
        "completions": float(policy.max_steps * policy.batch_prompts * policy.samples),
        "trainable_parameters": float(
            sum(p.numel() for p in lm.model.parameters() if p.requires_grad)
        ),
        **{
            key: sum(row[key] for row in last) / len(last)
            for key in ("score", "kl_token", "entropy")
        },
        **before,
        **after,
    }
