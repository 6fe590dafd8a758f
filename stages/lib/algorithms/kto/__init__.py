"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306) through TRL."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.lib.algorithms.task import Task, TrainedEntry
from stages.lib.lora import LoraTraining
from stages.lib.records import Pair, Signal
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from stages.lib.algorithms.kto.signals import Judged
    from stages.lib.models import LanguageModel


class Kto(TrainedEntry, LoraTraining):
    """An entry of `policies` that learns from completions that are good or bad by themselves."""

    objective = "contrastive"

    algorithm: Literal["kto"]
    signals: Literal["thumbs", "pairs"]
    """thumbs: what people said of single completions; pairs: completions that win more than they
    lose are good, those that lose more bad, and the rest is left out."""
    beta: Annotated[float, Field(gt=0)]
    """1/nats; larger reaches the flat ends of the loss sooner."""
    balance: Annotated[float, Field(gt=0)] | None
    """Summed weight of good completions over that of bad ones; null weighs each of them 1."""
    batch_prompts: Annotated[int, Field(ge=2)]
    """Prompts a step, each with all its completions; two at least, since the loss sets answers
    against a prompt that is not theirs."""


COLUMNS = (
    "step",
    "loss",
    "kl",
    "reward_up",
    "reward_down",
    "anchor_kl",
    "learning_rate",
    "grad_norm",
)


def train(policy: Kto, task: Task) -> dict[str, float]:
    """Align an adapter on completions of role `align`; write it and its curves.

    Returns:
        Sizes, the last losses and reference points, and how often the implicit reward puts a good
        completion of role `validation` above a bad one, where there are both.
    """
    from stages.lib import models
    from stages.lib.algorithms.kto import signals
    from stages.lib.algorithms.kto import trainer as kto_trainer

    lm = task.open_with_adapter(policy)
    learned, undecided = _judged(lm, policy, task, "align")
    held_out, _ = _judged(lm, policy, task, "validation")
    up, down = signals.count(learned)
    _require_enough(policy, task, len(learned), up, down)
    given = kto_trainer.rows(learned, batch_prompts=policy.batch_prompts, seed=task.seed)
    kept = [sequence for one in held_out for sequence in one.sequences]
    with task.training(lm, policy) as training:
        before = kto_trainer.logps(lm, kept, label="validation before")
        trainer = kto_trainer.JudgedKTOTrainer(
            lm, policy, given,
            weights=weights(policy.balance, up, down), seed=task.seed,
            checkpoints=training.checkpoints,
        )  # fmt: skip
        rows = training.fit(trainer, COLUMNS)
        after = kto_trainer.logps(lm, kept, label="validation after")
    last = rows[-5:]
    return {
        "steps": float(trainer.state.global_step),
        "prompts": float(len(learned)),
        "completion_tokens": float(
            sum(len(s.completion) for one in learned for s in one.sequences)
        ),
        "examples_up": float(up),
        "examples_down": float(down),
        "examples_undecided": float(undecided),
        "trainable_parameters": models.trainable_parameters(lm),
        **{key: sum(row[key] for row in last) / len(last) for key in ("loss", "kl")},
        **accuracy(held_out, after - before),
    }


def _judged(
    lm: "LanguageModel", policy: Kto, task: Task, role: Literal["align", "validation"]
) -> tuple[list["Judged"], int]:
    """Return the completions of one role, and how many are neither good nor bad."""
    from stages.lib.algorithms.kto import signals

    if policy.signals == "thumbs":
        some = files.read_lines(task.data / "signals.jsonl", Signal)
        said = signals.by_thumbs(one for one in some if one.role == role)
    else:
        split = {"align": "train", "validation": "validation"}[role]
        pairs = files.read_lines(task.data / f"{split}.jsonl", Pair)
        said = signals.by_pairs(pair for pair in pairs if pair.role == role)
    return signals.judge(lm, said, max_tokens=policy.max_tokens)


def _require_enough(policy: Kto, task: Task, prompts: int, up: int, down: int) -> None:
    where = task.data / ("signals.jsonl" if policy.signals == "thumbs" else "train.jsonl")
    more = (
        "label some with `make label TASK=thumbs`, or set signals: pairs"
        if policy.signals == "thumbs"
        else "raise prompts.split.shares.align or sample more completions"
    )
    if not prompts:
        kind = "thumbs" if policy.signals == "thumbs" else "pairs that say which is better"
        raise Refusal(f"{where}: no {kind} of role align; {more}")
    if prompts < 2 or not up or not down:
        raise Refusal(
            f"{where}: {up} good and {down} bad completions of {prompts} prompts of role align; "
            f"KTO learns from both kinds, and from two prompts at least; {more}"
        )


def weights(balance: float | None, up: int, down: int) -> tuple[float, float]:
    """Return what a good and what a bad completion weighs; their mean weight is 1.

        up * w_up = balance * down * w_down,    up * w_up + down * w_down = up + down

    The paper and TRL advise a balance between 1 and 4/3 and set one of the two weights to 1; a mean
    of 1 keeps the size of the loss, and with it that of the gradient.

    Args:
        balance: summed weight of good completions over that of bad ones; None weighs each 1.
        up: good completions.
        down: bad completions.

    Returns:
        1 of 4 good ones and balance 1: (2, 2/3).
    """
    if balance is None:
        return 1.0, 1.0
    share = balance / (1 + balance)
    return share * (up + down) / up, (1 - share) * (up + down) / down


def accuracy(judged: Sequence["Judged"], log_ratios: "Tensor") -> dict[str, float]:
    """Return how often a good completion has a larger log-ratio than a bad one; ties count half.

    Over all pairs of a good and a bad one, of any prompts: the area under the ROC curve. Without
    one of the two kinds it is not measured, and the counts alone are returned.

    Args:
        judged: held-out prompts.
        log_ratios: policy minus reference, in nats, of their completions in order.
    """
    from scipy.stats import mannwhitneyu

    verdicts = [up for one in judged for up in one.up]
    up, down = (
        [r for r, verdict in zip(log_ratios.tolist(), verdicts, strict=True) if verdict is kind]
        for kind in (True, False)
    )
    counts = {"held_out_up": float(len(up)), "held_out_down": float(len(down))}
    if not up or not down:
        return counts
    return {
        "implicit_accuracy": float(mannwhitneyu(up, down).statistic) / (len(up) * len(down)),
        "implicit_accuracy_n": float(len(verdicts)),
        **counts,
    }
