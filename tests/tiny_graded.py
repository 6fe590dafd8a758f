"""What tests of graded completions share: entries, and fifty outcomes that can be counted out."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stages.lib.algorithms.brain import Brain
from stages.lib.algorithms.dpg import Dpg, objective
from stages.lib.graded_groups import Batch

COMMON = {
    "starts_from": "models/base", "learns_from": "data/graded/base", "prompts": "data/graded/base",
    "snapshots": 0, "seed": None, "anchor": None, "temperature": 0.5, "min_effective": 0.0, "lora_rank": 4,
    "lora_alpha": 8, "learning_rate": 1e-2, "warmup": 0.0, "epochs": 3, "batch_prompts": 8, "max_grad_norm": 1.0,
    "max_tokens": 64,
}  # fmt: skip
BRAIN = Brain(algorithm="brain", **COMMON)
DPG = Dpg(
    algorithm="dpg", **COMMON, divergence="forward_kl", baseline=True, max_ratio=10.0, adapt=None
)  # fmt: skip

OUTCOMES = 50


@dataclass(frozen=True)
class Toy:
    """A policy over fifty outcomes, which are its logits; what it is to become, and from what."""

    logits_V: Tensor
    reference_V: Tensor
    """Log-probabilities; proposal_V likewise."""
    proposal_V: Tensor
    reward_V: Tensor
    temperature: float

    @property
    def log_z(self) -> Tensor:
        return (self.reference_V + self.reward_V / self.temperature).logsumexp(0)

    @property
    def target_V(self) -> Tensor:
        """log p*, normalised."""
        return self.reference_V + self.reward_V / self.temperature - self.log_z

    def drawn(self, prompts: int, count: int, *, seed: int) -> Batch:
        """Outcomes of the proposal, whose index stands where a completion's tokens would."""
        generator = torch.Generator().manual_seed(seed)
        ids_GN = torch.multinomial(
            self.proposal_V.exp().expand(prompts, -1), count, replacement=True, generator=generator
        )
        return Batch(
            ids_GN, self.reward_V[ids_GN], self.reference_V[ids_GN], self.proposal_V[ids_GN]
        )

    def estimates(self, loss, *, draws: int = 4_000, completions: int = 8) -> Tensor:
        """The gradient of a loss by the logits, once for each of many draws."""
        batch = self.drawn(draws, completions, seed=1)
        logits_GV = self.logits_V.expand(draws, -1).clone().requires_grad_()
        logps_GN = logits_GV.log_softmax(1).gather(1, batch.sequences)
        (found,) = torch.autograd.grad(loss(logps_GN, batch)[0].sum(), logits_GV)
        return found

    def dpg(self, **own):
        return partial(objective.loss, temperature=self.temperature, **own)

    def exact_gradient(self, divergence: str) -> Tensor:
        """Of sum p* f(pi / p*) by the logits."""
        logits_V = self.logits_V.clone().requires_grad_()
        log_pi_V, log_p_V = logits_V.log_softmax(0), self.target_V
        log_t_V, p_V, pi_V = log_pi_V - log_p_V, log_p_V.exp(), log_pi_V.exp()
        mixed_V = torch.logaddexp(log_pi_V, log_p_V)
        value = {
            "forward_kl": -(p_V * log_t_V).sum(),
            "reverse_kl": (pi_V * log_t_V).sum(),
            # f = t log t - (t + 1) log((t + 1) / 2)
            "jensen_shannon": (
                pi_V * log_t_V - (pi_V + p_V) * (mixed_V - log_p_V) + pi_V * 0.6931472
            ).sum(),
            "total_variation": (pi_V - p_V).abs().sum() / 2,
        }[divergence]
        (found,) = torch.autograd.grad(value, logits_V)
        return found

    def policy_gradient(self) -> Tensor:
        """Of -(E[r] / t - KL(pi || p)), by REINFORCE over every outcome."""
        logits_V = self.logits_V.clone().requires_grad_()
        log_pi_V = logits_V.log_softmax(0)
        returns_V = self.reward_V / self.temperature - (log_pi_V - self.reference_V).detach()
        (found,) = torch.autograd.grad(
            -(log_pi_V.exp().detach() * returns_V * log_pi_V).sum(), logits_V
        )
        return found


def toy(proposal: str) -> Toy:
    """Draw one; the proposal is the reference or the policy as it is now."""
    generator = torch.Generator().manual_seed(0)
    reference, policy, reward = torch.randn(3, OUTCOMES, generator=generator)
    logits = reference + 0.3 * policy
    logs = {"reference": reference.log_softmax(0), "policy": logits.log_softmax(0)}
    return Toy(logits, logs["reference"], logs[proposal], reward, 1.0)


def target_gradient(world: Toy) -> Tensor:
    """Of KL(p* || pi): pi - p*."""
    return world.logits_V.softmax(0) - world.target_V.exp()


def rows(lm, count: int, *, role: str = "align", completions: int = 4, planted: str = "good"):
    """Completions of the base's own making: one of two holds a word that is paid for."""
    from tiny_online import prompt

    from stages.lib import graded
    from stages.lib.reward_model import Normaliser
    from stages.lib.sampling import Draw
    from stages.lib.tokens import encode_completion

    class Paid:
        """Pays for the word."""

        normalise = Normaliser(0.0, 1.0)

        def raw(self, answers, *, label):
            return [float(planted in a.text) for a in answers]

    asked = [prompt(n, role, f"Tale {n} of {role}:") for n in range(count)]
    fillers = [" the sea was calm", " a dog ran home", " rain came at noon", " she read a book"]
    words = ("good", "awful")
    drawn = [
        [
            Draw(p.id, k, encode_completion(lm, f"{fillers[(n + k) % 4]} and {words[k % 2]}", "length"), "length", 0.0)
            for k in range(completions)
        ]
        for n, p in enumerate(asked)
    ]  # fmt: skip
    return graded.grade(lm, asked, drawn, Paid(), proposal=None, name="base", batch_tokens=4096)


def own_answers(lm, count: int, *, role: str = "align", completions: int = 8, adapter=None):
    """Completions that a tiny model drew, paid for by the letters e in them."""
    from tiny_online import Planted, prompt

    from stages.lib import graded, models, sampling
    from stages.lib.sampling import Request
    from stages.lib.tokens import encode_prompt

    asked = [prompt(n, role, f"Tale {n} of {role}:") for n in range(count)]
    requests = [Request(p.id, encode_prompt(lm, p.body()), completions) for p in asked]
    with models.adapter(lm, adapter):
        draws = sampling.sample(
            lm, requests, graded.WHOLE, max_tokens=6, seed=1, batch_tokens=4096, label=None
        )
    return graded.grade(
        lm, asked, sampling.by_request(draws, requests), Planted(), proposal=adapter, name="base",
        batch_tokens=4096,
    )  # fmt: skip


def write_graded(folder: Path, model: Path, *, count: int = 32) -> Path:
    """Prompts to learn from, and six of role validation."""
    from stages.lib import models
    from stages.lib.base import Base
    from stages.lib.runtime import files

    lm = models.load(model, Base(quantisation="none", weights="rounded", dtype="float32"))
    files.write_lines(
        folder / "graded.jsonl", own_answers(lm, count) + own_answers(lm, 6, role="validation")
    )
    return folder
