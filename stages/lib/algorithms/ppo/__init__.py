"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) against a reward model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.lib.algorithms.ppo.knobs import Ppo
from stages.lib.algorithms.task import Task
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from stages.lib.algorithms.ppo.loop import Progress
    from stages.lib.algorithms.ppo.rollouts import Roles
    from stages.lib.algorithms.ppo.values import ValueFunction
    from stages.lib.models import LanguageModel
    from stages.lib.reward_model import Scorer

COLUMNS = (
    "step",
    "loss",
    "score",
    "proxy",
    "monitor",
    "gap",
    "repeats4",
    "refusals",
    "kl_sequence",
    "kl_sequence_se",
    "kl_token",
    "entropy",
    "beta",
    "policy_loss",
    "value_loss",
    "clip_fraction",
    "kl_update",
    "anchor_kl",
    "explained_variance",
    "length",
    "eos_rate",
    "dist2",
    "score_clipped",
    "learning_rate",
    "grad_norm",
)
"""Of the curves; `proxy` to `refusals` have a value where validation prompts were answered."""


def train(policy: Ppo, task: Task) -> dict[str, float]:
    """Align an adapter on prompts of role align; write it and its curves.

    Returns:
        Steps, sizes, the score at both ends of the training, the distance gone, and
        `stopped_by/<rule>` of the rule that ended it.
    """
    from stages.lib import online
    from stages.lib.algorithms.ppo.loop import Training

    lm = task.open_with_adapter(policy)
    learned, held_out = online.asks(
        lm, task.prompts, policy.categories,
        learned=policy.batch_prompts, held_out=policy.look.prompts,
    )  # fmt: skip
    roles = _roles(lm, policy, task)
    with task.training(lm, policy) as training:
        run = Training(
            roles, policy, learned, held_out, seed=task.seed,
            checkpoints=training.checkpoints, keeper=training.keeper, anchor=training.anchor,
        )  # fmt: skip
        done = run.run()
        training.write(_rows(done), COLUMNS)
    moved = sum(p.numel() for p in run.policy.values())
    return _metrics(done, policy) | {"trainable_parameters": float(moved)}


def _roles(lm: "LanguageModel", policy: Ppo, task: Task) -> "Roles":
    """Attach the other roles to the policy's base."""
    from stages.lib import models, reward_model
    from stages.lib.algorithms.ppo.rollouts import Reference, Roles

    reference = Reference(lm, None)
    if not task.starts_anew:
        models.load_adapter(lm, task.starts_from, name="reference")
        reference = Reference(lm, "reference")
    reward, monitor = reward_model.load_both(lm, task.data)
    return Roles(lm, reference, reward, monitor, _value(lm, policy, task, reward))


def _value(lm: "LanguageModel", policy: Ppo, task: Task, reward: "Scorer") -> "ValueFunction":
    from stages.lib.algorithms.ppo.values import AdapterValue, HeadValue, RewardValue
    from stages.lib.reward_model import TrainedReward

    if policy.value.kind == "head":
        return HeadValue(lm.unembedding_VD.shape[1], seed=task.seed).to(lm.device)
    if not isinstance(reward, TrainedReward):
        raise Refusal(
            f"{task.data}: value.kind is '{policy.value.kind}', which starts as the reward model's "
            "own, and this one is a classifier; value.kind 'head' would do"
        )
    if policy.value.kind == "reward":
        return RewardValue(reward)
    return AdapterValue(lm, task.data, reward)


def _rows(done: "Progress") -> list[dict[str, float]]:
    """Return steps and evaluations as one table by step; NaN where there is no value."""
    by_step: dict[float, dict[str, float]] = {}
    for row in (*done.rows, *done.looks):
        by_step.setdefault(row["step"], dict.fromkeys(COLUMNS, float("nan"))).update(row)
    return [by_step[step] for step in sorted(by_step)]


def _metrics(done: "Progress", policy: Ppo) -> dict[str, float]:
    last: Sequence[dict[str, float]] = done.rows[-3:]
    a_step = policy.batch_prompts * policy.samples
    found = {
        "steps": float(done.step),
        "completions": float(done.step * a_step),
        "completion_tokens": sum(row["length"] for row in done.rows) * a_step,
        f"stopped_by/{done.stopped_by}": 1.0,
    }
    if last:  # a target may be reached before the first step
        for key in ("score", "kl_sequence", "kl_token", "entropy", "dist2"):
            found[key] = sum(row[key] for row in last) / len(last)
    for key in ("proxy", "monitor", "gap", "repeats4", "refusals"):
        for when, look in (("before", done.looks[0]), ("after", done.looks[-1])):
            if key in look:
                found[f"{key}_{when}"] = look[key]
    return found
