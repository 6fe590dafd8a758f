"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740) through TRL."""

import math
import statistics
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.algorithms.online import Online
from stages.lib.algorithms.task import Task


class Rloo(Online):
    """An entry of `policies` that is aligned with RLOO, which has no value function."""

    algorithm: Literal["rloo"]
    samples: Annotated[int, Field(ge=2)]
    """Completions a prompt; the others' mean reward is each one's baseline."""
    max_steps: Annotated[int, Field(ge=1)]
    """Rollouts; the learning rate reaches 0 here."""
    beta: Annotated[float, Field(ge=0)]
    """Reward a nat from the reference, in standard deviations of the reward model."""


COLUMNS = (
    "step", "loss", "score", "kl_token", "entropy", "clip_fraction", "length", "cut", "anchor_kl",
    "learning_rate", "grad_norm",
)  # fmt: skip


def train(policy: Rloo, task: Task) -> dict[str, float]:
    """Align an adapter on prompts of role align; write it and its curves.

    Returns:
        Steps, sizes, and the scores of validation prompts before and after.
    """
    from stages.lib import models, online, reward_model
    from stages.lib.algorithms.rloo import trainer as rloo_trainer

    lm = task.open(policy)
    learned, held_out = online.asks(
        lm, task.prompts, policy.categories,
        learned=policy.batch_prompts, held_out=policy.look.prompts,
    )  # fmt: skip
    with task.training(lm, policy) as training:
        trainer = rloo_trainer.AskTrainer(
            lm, policy, learned, seed=task.seed, checkpoints=training.checkpoints
        )
        scorers = reward_model.load_both(lm, task.data)
        trainer.reward = scorers[0]
        before = rloo_trainer.look(lm, policy, held_out, scorers, seed=task.seed, name="before")
        rows = training.fit(trainer, COLUMNS, read=rloo_trainer.rows)
        after = rloo_trainer.look(lm, policy, held_out, scorers, seed=task.seed, name="after")
    completions = float(policy.max_steps * policy.batch_prompts * policy.samples)
    lengths = [row["length"] for row in rows if not math.isnan(row["length"])]
    last = [row for row in rows if not math.isnan(row["score"])][-3:]
    return {
        "steps": float(policy.max_steps),
        "completions": completions,
        "completion_tokens": completions * statistics.fmean(lengths),
        "trainable_parameters": models.trainable_parameters(lm),
        **{
            key: sum(row[key] for row in last) / len(last)
            for key in ("score", "kl_token", "entropy")
        },
        **before,
        **after,
    }
