"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) against a reward model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.lib.base import Base
from stages.lib.ppo.knobs import Ppo
from stages.lib.records import Prompt
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from stages.lib.models import LanguageModel
    from stages.lib.ppo.loop import Progress
    from stages.lib.ppo.rollouts import Ask, Roles

COLUMNS = (
    "step",
    "loss",
    "score",
    "proxy",
    "monitor",
    "kl_sequence",
    "kl_sequence_se",
    "kl_token",
    "entropy",
    "beta",
    "policy_loss",
    "value_loss",
    "clip_fraction",
    "kl_update",
    "explained_variance",
    "length",
    "eos_rate",
    "dist2",
    "score_clipped",
    "learning_rate",
    "grad_norm",
)
"""Of the curves; `proxy` and `monitor` have a value where validation prompts were answered."""


def train(
    policy: Ppo,
    base: Base,
    seed: int,
    *,
    base_folder: Path,
    data: Path,
    prompts: Path,
    out: Path,
    curves: Path,
) -> dict[str, float]:
    """Align a new adapter on prompts of role align; write it to `out` and its curves.

    Returns:
        Steps, sizes, the score at both ends of the training, the distance gone, and
        `stopped_by/<rule>` of the rule that ended it.
    """
    from stages.lib import models, training
    from stages.lib.ppo.loop import ALONE, Training

    lm = models.load(base_folder, base)
    learned = _asks(lm, prompts / "train.jsonl", "align", policy)
    held_out = _asks(lm, prompts / "validation.jsonl", "validation", policy)[: policy.look.prompts]
    if len(learned) < policy.batch_prompts or len(held_out) < policy.look.prompts:
        raise Refusal(
            f"{prompts}: {len(learned)} prompts of role align and {len(held_out)} of role "
            f"validation in categories {policy.categories or 'all'}; batch_prompts "
            f"{policy.batch_prompts} and look.prompts {policy.look.prompts} ask for more"
        )
    models.add_lora(lm, rank=policy.lora_rank, alpha=policy.lora_alpha, seed=seed)
    roles = _roles(lm, policy, data, seed)
    inputs = policy, base, seed, base_folder, data, prompts, Path(__file__).parents[1]
    with training.checkpoints("align-ppo", *inputs) as folder:
        run = Training(
            roles, policy, learned, held_out, seed=seed, checkpoints=folder, processes=ALONE
        )
        done = run.run()
        models.save_adapter(lm, out)
        training.write_curves(curves, _rows(done), COLUMNS)
    moved = sum(p.numel() for p in run.policy.values())
    return _metrics(done, policy) | {"trainable_parameters": float(moved)}


def _asks(lm: "LanguageModel", path: Path, role: str, policy: Ppo) -> "list[Ask]":
    from stages.lib import answering, tokens
    from stages.lib.ppo.rollouts import Ask

    wanted = [
        p
        for p in files.read_lines(path, Prompt)
        if p.role == role and (not policy.categories or p.category in policy.categories)
    ]
    wanted.sort(key=lambda p: answering.order(p.id))
    return [Ask(p, tokens.encode_prompt(lm, p.body())) for p in wanted]


def _roles(lm: "LanguageModel", policy: Ppo, folder: Path, seed: int) -> "Roles":
    """Attach the other roles to the policy's base."""
    from stages.lib import reward_model
    from stages.lib.ppo.rollouts import Roles
    from stages.lib.ppo.values import AdapterValue, HeadValue

    reward = reward_model.load(lm, folder, name="reward")
    watched = (folder / "monitor").is_dir()
    monitor = reward_model.load(lm, folder / "monitor", name="monitor") if watched else None
    if policy.value.kind == "head":
        width = lm.unembedding_VD.shape[1]
        return Roles(lm, None, reward, monitor, HeadValue(width, seed=seed).to(lm.device))
    if not (folder / reward_model.HEAD).is_file():
        raise Refusal(
            f"{folder}: value.kind is 'adapter', which starts as the reward model's own, and this "
            "one is a classifier; value.kind 'head' would do"
        )
    return Roles(lm, None, reward, monitor, AdapterValue(lm, folder, reward.normalise))


def _rows(done: "Progress") -> list[dict[str, float]]:
    """Return steps and evaluations as one table by step; NaN where there is no value."""
    by_step: dict[float, dict[str, float]] = {}
    for row in (*done.rows, *done.looks):
        by_step.setdefault(row["step"], dict.fromkeys(COLUMNS, float("nan"))).update(row)
    return [by_step[step] for step in sorted(by_step)]


def _metrics(done: "Progress", policy: Ppo) -> dict[str, float]:
    last: Sequence[dict[str, float]] = done.rows[-3:]
    found = {
        "steps": float(done.step),
        "completions": float(done.step * policy.batch_prompts * policy.samples),
        f"stopped_by/{done.stopped_by}": 1.0,
    }
    for key in ("score", "kl_sequence", "kl_token", "entropy", "dist2"):
        found[key] = sum(row[key] for row in last) / len(last) if last else float("nan")
    for key in ("proxy", "monitor"):
        if key in done.looks[0]:
            found[f"{key}_before"] = done.looks[0][key]
            found[f"{key}_after"] = done.looks[-1][key]
    return found
