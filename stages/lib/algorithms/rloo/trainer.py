"""TRL's RLOO with our tokens and our reward model.

TRL decodes completions without special tokens and encodes the text again for a reward model, so
that one trained with EOS would be scored without it. Here the reward model gets what every other
stage gives it: text, and whether the completion ended.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from stages.lib import models, online, reward_model, training
from stages.lib.anchor import Anchored
from stages.lib.models import LanguageModel
from stages.lib.online import Ask, Manner
from stages.lib.reward_model import Answer, Scorer
from stages.lib.runtime import tracking

if TYPE_CHECKING:
    from stages.lib.algorithms.rloo import Rloo


class AskTrainer(Anchored, RLOOTrainer):
    """REINFORCE with a leave-one-out baseline on prompts that are encoded already."""

    def __init__(
        self,
        lm: LanguageModel,
        policy: "Rloo",
        asked: Sequence[Ask],
        *,
        seed: int,
        checkpoints: Path,
    ) -> None:
        self._lm, self._policy = lm, policy
        self._asks = {ask.prompt.id: ask for ask in asked}
        self.reward: Scorer | None = None
        """Set before training: it attaches to the model that TRL has put its adapter on."""
        super().__init__(
            model=lm.model,
            reward_funcs=self._score,
            args=RLOOConfig(**_arguments(policy, seed=seed, checkpoints=checkpoints)),
            train_dataset=_turns(policy, asked, seed=seed),
            processing_class=lm.tokenizer,
            peft_config=models.missing_adapter(lm, rank=policy.lora_rank, alpha=policy.lora_alpha),
            callbacks=[training.Curves()],
        )
        lm.model = self.model
        models.keep_cpu_gradients_whole(lm.model)
        for name, parameter in lm.model.named_parameters():
            if ".ref." in name:  # TRL's copy of what training starts from
                parameter.requires_grad_(False)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self._asks[name].ids) for name in prompts], None, {}

    def _score(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Return the reward of each completion: the normalised score, clipped."""
        answers = [
            self._answer(self._asks[name], ids)
            for name, ids in zip(prompts, completion_ids, strict=True)
        ]
        clip = self._policy.score_clip
        scores = reward_model.scores(self.reward, answers, label=None)
        return [min(max(s, -clip), clip) for s in scores] if clip is not None else scores

    def _answer(self, ask: Ask, ids: list[int]) -> Answer:
        ended = ids[-1] in self._lm.eos_ids
        text = self._lm.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
        return Answer(ask.prompt.body(), text, "stop" if ended else "length")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # TRL writes a model card with every checkpoint; Trainer's own method does not.
        super(RLOOTrainer, self)._save_checkpoint(model, trial)


def _turns(policy: "Rloo", asked: Sequence[Ask], *, seed: int) -> Dataset:
    """Return the prompts of the whole training in order.

    TRL's sampler shuffles every epoch anew and begins from the first order when a run goes on from
    a checkpoint; with one epoch there is nothing to begin again.
    """
    count = policy.max_steps * policy.batch_prompts
    names = [online.at_turn(asked, turn, seed=seed).prompt.id for turn in range(count)]
    return Dataset.from_dict({"prompt": names})


def _arguments(policy: "Rloo", *, seed: int, checkpoints: Path) -> dict[str, Any]:
    steps = policy.max_steps * policy.epochs
    plain = training.common(
        policy.learning_rate, policy.max_grad_norm, steps=steps, seed=seed, checkpoints=checkpoints
    )
    return plain | {
        "max_steps": steps,
        # A killed run goes on from between two rollouts: TRL does not save one.
        "save_steps": -(-policy.max_steps // training.CHECKPOINTS) * policy.epochs,
        "per_device_train_batch_size": policy.batch_prompts * policy.samples,
        "num_generations": policy.samples,
        "num_iterations": policy.epochs,
        "max_completion_length": policy.max_tokens,
        "temperature": policy.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "beta": policy.beta,
        "epsilon": policy.clip,
        "shuffle_dataset": False,
        "disable_dropout": True,  # TRL leaves it on
    }


ROLLOUT = {
    "score": "reward",
    "kl_token": "kl",
    "length": "completions/mean_length",
    "cut": "completions/clipped_ratio",
}
"""What TRL logs at the first update of a rollout alone, by this project's names."""


def rows(logged: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the curves, a row an update; NaN where an update had no rollout of its own."""
    return [
        {
            "step": row["step"],
            "loss": row["loss"],
            **{name: row.get(theirs, float("nan")) for name, theirs in ROLLOUT.items()},
            "entropy": row["entropy"],
            "clip_fraction": row["clip_ratio/region_mean"],
            "anchor_kl": row.get("anchor_kl", float("nan")),
            "learning_rate": row["learning_rate"],
            "grad_norm": row["grad_norm"],
        }
        for row in logged
    ]


def look(
    lm: LanguageModel,
    policy: "Rloo",
    held_out: Sequence[Ask],
    scorers: tuple[Scorer, Scorer | None],
    *,
    seed: int,
    name: str,
) -> dict[str, float]:
    """Score answers to validation prompts; return `proxy_<name>` and the like."""
    lm.model.eval()
    manner = Manner(policy.temperature, policy.max_tokens, policy.batch_tokens)
    seen = online.look(lm, held_out, manner, *scorers, samples=policy.look.samples, seed=seed)
    tracking.table(seen.answers, f"completions/{name}.json")
    return {f"{key}_{name}": value for key, value in seen.figures.items()}
