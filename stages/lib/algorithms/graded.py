"""What algorithms share that match a distribution on graded completions.

The target of a prompt is the posterior of an answer, given that it is good,

    p(y) exp(r(y) / temperature) / Z,

with p the base and r the reward: the policy that maximises reward at that price of KL (Korbak et
al. 2022, arXiv:2206.00761, theorem 1). Completions come from a proposal, and are weighed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from stages.lib.algorithms.task import Task, TrainedEntry
from stages.lib.lora import LoraTraining
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from stages.lib.graded_groups import Batch, Group
    from stages.lib.graded_trainer import GradedTrainer, Objective


class Matching(TrainedEntry, LoraTraining):
    """What every entry of `policies` has that learns from graded completions."""

    shares_batches = True
    objective = "distribution matching"

    temperature: Annotated[float, Field(gt=0)]
    """Of the target, in standard deviations of the reward: smaller asks for more reward, at more
    KL, and leaves fewer completions that count."""
    min_effective: Annotated[float, Field(ge=0, le=1)]
    """Effective sample size of a prompt's completions under the target, as a share of their number,
    below which training is refused: a mean over prompts. 1 / completions is a single one."""


COLUMNS = ("step", "loss", "kl_target", "effective", "anchor_kl", "learning_rate", "grad_norm")


def fit(
    policy: Matching,
    task: Task,
    objective: "Objective",
    *,
    folder: Path,
    prepare: "Callable[[GradedTrainer], None]" = lambda _: None,
) -> dict[str, float]:
    """Train an adapter on graded completions of role align; write it and its curves.

    Args:
        policy: the entry.
        task: what it reads.
        objective: what is minimised.
        folder: of the graded completions.
        prepare: does more to the trainer before it starts.

    Returns:
        Sizes, the last losses, and on held-out prompts the divergence of the target from the
        policy, self-normalised, before and after.
    """
    from stages.lib import graded_groups, models
    from stages.lib.graded_trainer import GradedTrainer, logps

    lm = task.open_with_adapter(policy)
    learned = graded_groups.read(folder, "align", lm, max_tokens=policy.max_tokens)
    held_out = graded_groups.read(folder, "validation", lm, max_tokens=policy.max_tokens)
    effective = require_effective(policy, learned, folder)
    with task.training(lm, policy) as training:
        before = logps(lm, held_out, label="validation before")
        trainer = GradedTrainer(
            lm, policy, learned, objective, seed=task.seed, checkpoints=training.checkpoints
        )
        prepare(trainer)
        rows = training.fit(trainer, COLUMNS)
        after = logps(lm, held_out, label="validation after")
    kept = graded_groups.collate(held_out)
    last = rows[-5:]
    return {
        "steps": float(trainer.state.global_step),
        "prompts": float(len(learned)),
        "completions": float(sum(len(g.sequences) for g in learned)),
        "completion_tokens": float(sum(len(s.completion) for g in learned for s in g.sequences)),
        "trainable_parameters": models.trainable_parameters(lm),
        "loss": sum(row["loss"] for row in last) / len(last),
        "effective": effective,
        "held_out_n": float(len(held_out)),
        "held_out_kl_before": float(kl_target(before, kept, policy.temperature).mean()),
        "held_out_kl_after": float(kl_target(after, kept, policy.temperature).mean()),
    }


def require_effective(policy: Matching, groups: "Sequence[Group]", folder: Path) -> float:
    """Return the mean effective share of the completions under the target.

    Raises:
        Refusal: it is below `min_effective`: a few completions would be all that is learned.
    """
    from stages.lib import graded_groups

    batch = graded_groups.collate(groups)
    weights_GN = batch.log_target(policy.temperature) - batch.proposal_GN
    share = float(graded_groups.effective_share(weights_GN).mean())
    if share < policy.min_effective:
        count = batch.reward_GN.shape[1]
        raise Refusal(
            f"{folder}: at temperature {policy.temperature} {share * count:.1f} of the {count} "
            f"completions of a prompt count, a share of {share:.2f}, and min_effective is "
            f"{policy.min_effective}; raise temperature, or let a policy that is nearer to the "
            "target propose"
        )
    return share


def kl_target(logps_GN: "Tensor", batch: "Batch", temperature: float) -> "Tensor":
    """Return KL(target || policy) in nats on each prompt's completions, both self-normalised.

    0 where the policy's log-ratios are the target's up to a constant of the prompt.
    """
    target_GN = (batch.log_target(temperature) - batch.proposal_GN).log_softmax(1)
    policy_GN = (logps_GN - batch.proposal_GN).log_softmax(1)
    return (target_GN.exp() * (target_GN - policy_GN)).sum(1)
