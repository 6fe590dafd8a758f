"""What tests of online algorithms share: a planted reward, prompts, and a saved reward model."""

from pathlib import Path

from tiny_model import moved_adapter

from stages.lib import models
from stages.lib.algorithms import sft
from stages.lib.algorithms.ppo.rollouts import Reference, Roles
from stages.lib.algorithms.ppo.values import HeadValue
from stages.lib.online import Ask
from stages.lib.records import Demonstration, Prompt
from stages.lib.reward_model import Head, Normaliser
from stages.lib.runtime import files
from stages.lib.tokens import encode_prompt

LOOKS = ("A", "We all know", "Then")
TEXTS = ("He said", "The old dog went", "She", "They had a long story of", "Once", "In it")


SFT = sft.Sft(
    algorithm="sft", starts_from="models/base", learns_from="data/sources/demonstrations.jsonl",
    prompts="data/prompts", snapshots=0, seed=None, anchor=None, held_out=0.3, resamples=200, lora_rank=4, lora_alpha=8,
    learning_rate=1e-2, warmup=0.0, epochs=4, batch_prompts=4, max_grad_norm=1.0, max_tokens=64,
)  # fmt: skip


class Planted:
    """Rewards each occurrence of a text; the larger `sign`, the more is liked."""

    normalise = Normaliser(0.0, 1.0)

    def __init__(self, planted: str = "e", sign: float = 1.0) -> None:
        self.planted, self.sign = planted, sign

    def raw(self, answers, *, label):
        return [self.sign * a.text.count(self.planted) for a in answers]


def prompt(number: int, role: str, text: str, category: str = "insult") -> Prompt:
    name = f"{role}{number}"
    return Prompt(
        id=name, cluster=name, category=category, role=role, source="t", form="continuation", text=text
    )  # fmt: skip


def asks(lm, texts=TEXTS) -> list[Ask]:
    prompts = [prompt(n, "align", text) for n, text in enumerate(texts)]
    return [Ask(p, encode_prompt(lm, p.body())) for p in prompts]


def write_neutral(path: Path, count: int = 6) -> Path:
    """A few passages of neutral text."""
    rows = [
        {
            "id": f"n{n}",
            "genre": "manual",
            "text": f"Turn screw {n} to the left, and lift lid {n} off.",
        }
        for n in range(count)
    ]
    files.write_lines(path, rows)
    return path


def write_prompts(folder: Path) -> Path:
    """Eight prompts of role align, six of role validation and of test, in two categories."""
    words = ("insult", "neutral")
    for split, role, count in (
        ("train", "align", 8),
        ("validation", "validation", 6),
        ("test", "test", 6),
    ):
        rows = [prompt(n, role, f"Number {n} said to {role}", words[n % 2]) for n in range(count)]
        files.write_lines(folder / f"{split}.jsonl", rows)
    return folder


def write_reward(folder: Path, model: Path, base) -> Path:
    """A reward model and a monitor with random adapters."""
    for where in (folder, folder / "monitor"):
        lm = models.load(model, base)
        moved_adapter(lm, where, std=0.3)
        write_head(where, lm.unembedding_VD.shape[1])
    return folder


def write_head(folder: Path, width: int, *, max_tokens: int = 64) -> None:
    from safetensors.torch import save_file

    weights = {k: v.contiguous() for k, v in Head(width, seed=3).state_dict().items()}
    save_file(weights, folder / "head.safetensors")
    files.write_json(folder / "normaliser.json", {"mean": 0.1, "std": 0.5})
    files.write_json(folder / "reward.json", {"max_tokens": max_tokens})


def demonstration(number: int, answer: str = " and all was well.") -> Demonstration:
    return Demonstration(
        id=f"d{number}", form="continuation", category="insult", source="t",
        text=f"Tale number {number} began", answer=answer,
    )  # fmt: skip


def fresh_roles(model: Path, base) -> Roles:
    """A model with a new policy adapter; reward and monitor like one letter."""
    lm = models.load(model, base)
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    value = HeadValue(lm.unembedding_VD.shape[1], seed=0)
    return Roles(lm, Reference(lm, None), Planted(), Planted(), value)
