"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740) through TRL."""

import math
from typing import Annotated, Literal

from pydantic import Field

from stages.lib.algorithms.online import Online
from stages.lib.algorithms.task import Task
from stages.lib.keeper import Keeper


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
    from stages.lib import models, online, reward_model, rloo_trainer, training

    lm = task.open(policy)
    learned, held_out = online.asks(
        lm, task.prompts, policy.categories,
        learned=policy.batch_prompts, held_out=policy.look.prompts,
    )  # fmt: skip
    anchor = task.anchor(lm, policy)
    with training.checkpoints("align-rloo", *task.inputs(policy)) as folder:
        trainer = rloo_trainer.AskTrainer(lm, policy, learned, seed=task.seed, checkpoints=folder)
        trainer.anchor = anchor
        scorers = reward_model.load_both(lm, task.data)
        trainer.reward = scorers[0]
        before = rloo_trainer.look(lm, policy, held_out, scorers, seed=task.seed, name="before")
        keeper = Keeper(lm, folder, policy.snapshots)
        keeper.watch(trainer)
        rows = rloo_trainer.rows(training.fit(trainer, folder))
        after = rloo_trainer.look(lm, policy, held_out, scorers, seed=task.seed, name="after")
        models.save_adapter(lm, task.out)
        keeper.hand_over(task.out)
        training.write_curves(task.curves, rows, COLUMNS)
    last = [row for row in rows if not math.isnan(row["score"])][-3:]
    return {
        "steps": float(policy.max_steps),
        "completions": float(policy.max_steps * policy.batch_prompts * policy.samples),
        "trainable_parameters": models.trainable_parameters(lm),
        **{
            key: sum(row[key] for row in last) / len(last)
            for key in ("score", "kl_token", "entropy")
        },
        **before,
        **after,
    }
