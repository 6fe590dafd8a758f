"""Trains a reward model on grouped pairs, or adopts a classifier as one.

Shape suffixes: B = unique sequences of the batch, P = pairs.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.lib import reward_quality
from stages.lib.base import Base
from stages.lib.lora import LoraTraining
from stages.lib.records import Completion, Name, Pair, Prompt
from stages.lib.reward_model import Answer
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, Strict


class _Common(Strict):
    reads: Name
    """Folder of the base, or of the classifier."""
    max_tokens: Annotated[int, Field(ge=2)]
    """A sequence."""
    normaliser_completions: Annotated[int, Field(ge=2)]
    """Of the base, whose scores become mean 0 and standard deviation 1."""
    resamples: Annotated[int, Field(ge=100)]
    """Cluster bootstrap of the accuracy."""
    bins: Annotated[int, Field(ge=2)]
    """Of the calibration curve."""


class Trained(_Common, LoraTraining):
    """Section `reward`, with an adapter and a head trained on pairs."""

    source: Literal["trained"]
    roles: Annotated[list[Literal["reward", "align"]], Field(min_length=1)]
    """Of the prompts learnt from; the monitor learns from role `monitor`, which is in neither."""
    probe_l2: Annotated[float, Field(gt=0)]
    """Of the head's start; larger keeps it smaller."""


class Classified(_Common):
    """Section `reward`, with the logit of a text classifier's class."""

    source: Literal["classifier"]
    label: str
    """Class whose logit is the reward, by the classifier's own name for it."""
    better: Literal["high", "low"]
    """Whether more of the class is better (`nothate`) or worse (`hate`)."""


COLUMNS = ("model", "step", "loss", "accuracy", "margin", "learning_rate", "grad_norm")


def baseline_answers(
    completions: Path, prompts: Path, samplers: dict[str, Any], *, limit: int
) -> list[Answer]:
    """Return what the samplers answered to the first align prompts: the policy's own ground."""
    known = {
        p.id: p for p in files.read_lines(prompts / "train.jsonl", Prompt) if p.role == "align"
    }
    given = files.read_entries(completions, samplers, Completion, section="samplers")
    answers = [
        Answer(known[c.prompt_id].body(), c.text, c.finish) for c in given if c.prompt_id in known
    ][:limit]
    if len(answers) < 2:
        raise Refusal(
            f"{completions}: no completions of align prompts, which the normaliser is fitted to"
        )
    return answers


def train(
    reward: Trained,
    base: Base,
    seed: int,
    *,
    reads: Path,
    pairs: Path,
    normal: Sequence[Answer],
    out: Path,
    curves: Path,
) -> dict[str, dict[str, Any]]:
    """Train reward model and monitor on disjoint prompts; measure both on test pairs.

    Returns:
        `reward` and `monitor`, each with accuracy, calibration and sizes.
    """
    from stages.lib import models, reward_model, training
    from stages.lib.groups import group
    from stages.lib.reward_trainer import fit_scorer

    learned = files.read_lines(pairs / "train.jsonl", Pair)
    held_out = files.read_lines(pairs / "test.jsonl", Pair)
    report: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    both = ("reward", out, reward.roles), ("monitor", out / "monitor", ["monitor"])
    for offset, (name, folder, roles) in enumerate(both):
        lm = models.load(reads, base)
        groups = group(lm, [p for p in learned if p.role in roles], max_tokens=reward.max_tokens)
        if not groups:
            raise Refusal(
                f"{pairs / 'train.jsonl'}: no pairs of role {' or '.join(roles)}; raise "
                f"prompts.shares.{roles[0]}"
            )
        inputs = reward, base, seed, reads, pairs, Path(__file__).parent
        with training.checkpoints(f"reward-{name}", *inputs) as place:
            head, logged = fit_scorer(lm, reward, groups, seed=seed + offset, checkpoints=place)
            rows += [{"model": name, **row} for row in logged]
            scorer = reward_model.fitted(lm, head, normal, max_tokens=reward.max_tokens)
            folder.mkdir(exist_ok=True)
            reward_model.save(scorer, folder)
            report[name] = {
                "train_pairs": sum(len(g.pairs) for g in groups),
                "train_prompts": len(groups),
                **reward_quality.measure(
                    scorer, held_out, seed=seed, resamples=reward.resamples, bins=reward.bins
                ),
            }
    write_curves(curves, rows)
    return report


def adopt(
    reward: Classified,
    seed: int,
    *,
    reads: Path,
    pairs: Path,
    normal: Sequence[Answer],
    out: Path,
    curves: Path,
) -> dict[str, dict[str, Any]]:
    """Make a classifier the reward model: its identity is kept, and its normaliser fitted.

    There is no monitor: nothing is trained, so nothing over-fits these pairs.
    """
    from stages.lib import reward_model

    scorer = reward_model.ClassifierReward.fit(
        reads, reward.label, better=reward.better, max_tokens=reward.max_tokens, normal=normal
    )
    scorer.save(out)
    if (reads / "identity.json").is_file():
        shutil.copy(reads / "identity.json", out / "identity.json")
    write_curves(curves, [])
    held_out = files.read_lines(pairs / "test.jsonl", Pair)
    quality = reward_quality.measure(
        scorer, held_out, seed=seed, resamples=reward.resamples, bins=reward.bins
    )
    return {"reward": quality}


def write_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write both models' curves as one CSV."""
    lines = [",".join(COLUMNS)]
    for row in rows:
        lines.append(",".join([row["model"], *(f"{row[c]:.6g}" for c in COLUMNS[1:])]))
    files.write_text(path, "\n".join(lines) + "\n")
