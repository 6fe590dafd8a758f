"""Trains a reward model on grouped pairs, or adopts a classifier as one.

Shape suffixes: B = unique sequences of the batch, P = pairs.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.lib import reward_quality
from stages.lib.base import Base
from stages.lib.lora import ScorerTraining
from stages.lib.records import Completion, Name, Pair, Prompt
from stages.lib.reward_model import Answer
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, Strict


class _Common(Strict):
    reads: Name
    """Folder of the base, or of the classifier."""
    starts_from: Name
    """What `reads` names again, for a new adapter and head; or models/pretrained/<name>, whose
    adapter and head both reward model and monitor go on from."""
    max_tokens: Annotated[int, Field(ge=2)]
    """A sequence."""
    normaliser_completions: Annotated[int, Field(ge=2)]
    """Of the base, whose scores become mean 0 and standard deviation 1."""
    resamples: Annotated[int, Field(ge=100)]
    """Cluster bootstrap of the accuracy."""
    bins: Annotated[int, Field(ge=2)]
    """Of the calibration curve."""


class Trained(_Common, ScorerTraining):
    """Section `reward`, with an adapter and a head trained on pairs."""

    source: Literal["trained"]
    roles: Annotated[list[Literal["reward", "align"]], Field(min_length=1)]
    """Of the prompts learnt from; the monitor learns from role `monitor`, which is in neither."""


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
    """Return what the samplers answered to the first align prompts: the policy's own ground.

    Those with an adapter left out: a later round's answers are no longer the base's.
    """
    known = {
        p.id: p for p in files.read_lines(prompts / "train.jsonl", Prompt) if p.role == "align"
    }
    given = files.read_entries(completions, samplers, Completion, section="samplers")
    bare = {name for name, own in samplers.items() if own["adapter"] == own["model"]}
    answers = [
        Answer(known[c.prompt_id].body(), c.text, c.finish)
        for c in given
        if c.prompt_id in known and c.sampler in bare
    ][:limit]
    if len(answers) < 2:
        raise Refusal(
            f"{completions}: the normaliser is fitted to completions of align prompts, and no "
            "sampler without an adapter has two of them"
        )
    return answers


@dataclass(frozen=True, slots=True)
class Task:
    """One training or adoption: what it reads, and where its results go."""

    base: Base
    seed: int
    reads: Path
    """The base, or the classifier."""
    starts_from: Path
    """See `_Common`."""
    pairs: Path
    """Folder of train.jsonl and test.jsonl."""
    normal: Sequence[Answer]
    """What the normaliser is fitted to."""
    out: Path
    curves: Path

    @property
    def starts_anew(self) -> bool:
        """Whether adapter and head are new ones."""
        return self.starts_from.resolve() == self.reads.resolve()

    def inputs(self, knobs: Trained) -> tuple[Any, ...]:
        """Return all that the result depends on, code included, for `training.checkpoints`."""
        read = self.reads, self.starts_from, self.pairs
        return knobs, self.base, self.seed, *read, Path(__file__).parent

    def held_out(self) -> list[Pair]:
        """Return the pairs that a reward model is measured on."""
        return files.read_lines(self.pairs / "test.jsonl", Pair)


def train(reward: Trained, task: Task) -> dict[str, dict[str, Any]]:
    """Train reward model and monitor on disjoint prompts; measure both on test pairs.

    Both start from the same pretrained model where `starts_from` names one: what it saw are no
    pairs of the graph, so that they stay each other's check on those.

    Returns:
        `reward` and `monitor`, each with accuracy, calibration and sizes.
    """
    learned = files.read_lines(task.pairs / "train.jsonl", Pair)
    held_out = task.held_out()
    report: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    both = ("reward", task.out, reward.roles), ("monitor", task.out / "monitor", ["monitor"])
    for offset, (name, folder, roles) in enumerate(both):
        mine = [p for p in learned if p.role in roles]
        if not mine:
            raise Refusal(
                f"{task.pairs / 'train.jsonl'}: no pairs of role {' or '.join(roles)}; raise "
                f"prompts.split.shares.{roles[0]}"
            )
        report[name], logged = _train_one(reward, task, name, mine, held_out, folder, offset)
        rows += [{"model": name, **row} for row in logged]
    write_curves(task.curves, rows)
    return report


def _train_one(
    reward: Trained,
    task: Task,
    name: str,
    learned: Sequence[Pair],
    held_out: Sequence[Pair],
    folder: Path,
    offset: int,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train one of the two, save it to `folder`, and return its quality and its curves."""
    from stages.lib import models, reward_model, training
    from stages.lib.groups import group
    from stages.lib.reward_trainer import fit_scorer, new_head, pretrained_head

    lm = models.load(task.reads, task.base)
    groups = group(lm, learned, max_tokens=reward.max_tokens)
    seed = task.seed + offset
    with training.checkpoints(f"reward-{name}", *task.inputs(reward)) as place:
        if task.starts_anew:
            head = new_head(lm, reward, groups, seed=seed)
        else:
            head = pretrained_head(lm, reward, task.starts_from)
        logged = fit_scorer(lm, head, reward, groups, seed=seed, checkpoints=place)
        scorer = reward_model.fitted(lm, head, task.normal, max_tokens=reward.max_tokens)
        folder.mkdir(exist_ok=True)
        reward_model.save(scorer, folder)
        quality = reward_quality.measure(
            scorer, held_out, seed=task.seed, resamples=reward.resamples, bins=reward.bins
        )
    sizes = {"train_pairs": sum(len(g.pairs) for g in groups), "train_prompts": len(groups)}
    return sizes | quality, logged


def adopt(reward: Classified, task: Task) -> dict[str, dict[str, Any]]:
    """Make a classifier the reward model: its identity is kept, and its normaliser fitted.

    There is no monitor: nothing is trained, so nothing over-fits these pairs.

    Raises:
        Refusal: it is to start from something else: nothing is trained that could.
    """
    from stages.lib import reward_model

    if not task.starts_anew:
        raise Refusal(
            f"params.yaml: reward.starts_from is {task.starts_from}, but a classifier is not "
            f"trained; name {task.reads} there again"
        )
    scorer = reward_model.ClassifierReward.fit(
        task.reads, reward.label, better=reward.better, max_tokens=reward.max_tokens,
        normal=task.normal,
    )  # fmt: skip
    scorer.save(task.out)
    if (task.reads / "identity.json").is_file():
        shutil.copy(task.reads / "identity.json", task.out / "identity.json")
    write_curves(task.curves, [])
    quality = reward_quality.measure(
        scorer, task.held_out(), seed=task.seed, resamples=reward.resamples, bins=reward.bins
    )
    return {"reward": quality}


def write_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write both models' curves as one CSV."""
    lines = [",".join(COLUMNS)]
    for row in rows:
        lines.append(",".join([row["model"], *(f"{row[c]:.6g}" for c in COLUMNS[1:])]))
    files.write_text(path, "\n".join(lines) + "\n")
