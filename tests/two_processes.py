"""What processes share, done by all that torchrun started; see test_processes.py.

torchrun --standalone --nproc_per_node 2 tests/two_processes.py MODEL WORLD OUT PART ...
"""

import sys
from pathlib import Path

import torch
from test_dpo import P as DPO
from test_ppo import P as PPO
from test_ppo import but
from test_reward import PARAMS, planted
from test_sft import S as SFT
from tiny_graded import BRAIN, DPG
from tiny_online import LOOKS, asks, fresh_roles

from stages import align, sample
from stages.lib import (
    answering,
    implicit,
    language_loss,
    models,
    neutral_text,
    online,
    reward_model,
)
from stages.lib.algorithms.dpg import Adapting
from stages.lib.algorithms.ppo import rollouts
from stages.lib.algorithms.ppo.loop import Training
from stages.lib.algorithms.task import Anchoring
from stages.lib.answering import Subject
from stages.lib.base import Base
from stages.lib.groups import group
from stages.lib.records import Pair, Prompt
from stages.lib.reward_model import Answer
from stages.lib.reward_trainer import fit_scorer, new_head
from stages.lib.runtime import files, processes
from stages.lib.sampling import Decoding

BASE = Base(quantisation="none", weights="rounded", dtype="float32")
ANCHOR = Anchoring(weight=1.0, passages=3)  # of which two processes have two and one


def trained(lm) -> dict:
    return {k: p.detach().clone() for k, p in lm.model.named_parameters() if ".default." in k}


def aligned(
    knobs, model: Path, data: Path, world: Path, out: Path, prompts: Path | None = None
) -> dict:
    knobs = knobs.model_copy(update={"anchor": ANCHOR})
    return align.run(
        knobs, BASE, 0, name=out.name, base_folder=model, starts_from=model, data=data, prompts=prompts or world / "prompts",
        neutral=world / "neutral.jsonl", out=out, metrics=out.with_suffix(".json"), curves=out.with_suffix(".csv"),
    )  # fmt: skip


def dpo(model: Path, world: Path, out: Path) -> dict:
    return aligned(DPO, model, world / "pairs", world, out / "dpo")


def sft(model: Path, world: Path, out: Path) -> dict:
    return aligned(SFT, model, world / "demos.jsonl", world, out / "sft")


def brain(model: Path, world: Path, out: Path) -> dict:
    return aligned(BRAIN, model, world / "graded", world, out / "brain")


def dpg(model: Path, world: Path, out: Path) -> dict:
    """Its proposal moves on the way."""
    moving = DPG.model_copy(update={"adapt": Adapting(every=3, prompts=8, batch_tokens=1024)})
    found = aligned(moving, model, world / "reward", world, out / "dpg", world / "graded")
    assert found["proposals"] > 1
    return found


def reward(model: Path, world: Path, out: Path) -> dict:
    lm = models.load(model, BASE)
    groups = group(lm, planted(41), max_tokens=64)  # 5 batches of 8, and one pair left over
    head = new_head(lm, PARAMS, groups, seed=0)
    knobs = PARAMS.model_copy(update={"epochs": 2})
    rows = fit_scorer(lm, head, knobs, groups, seed=0, checkpoints=out / "reward")
    answers = [Answer(p.prompt, p.chosen, "length") for p in planted(5)]
    scorer = reward_model.fitted(lm, head, answers, max_tokens=64)
    return {
        "rows": rows,
        "weights": trained(lm) | {"head": head.weight.detach()},
        "normaliser": [scorer.normalise.mean, scorer.normalise.std],
    }


def ppo(model: Path, world: Path, out: Path) -> dict:
    roles = fresh_roles(model, BASE)
    knobs = but(
        PPO, batch_prompts=4, minibatch_prompts=2, microbatch_prompts=2, whiten_rewards=True, kl__target=0.5
    )  # fmt: skip
    run = Training(
        roles, knobs, asks(roles.lm), asks(roles.lm, LOOKS), seed=0, checkpoints=out / "ck"
    )
    done = run.run()
    held = {k: p.detach() for k, p in (run.policy | run.value).items()}
    return {"rows": done.rows, "looks": done.looks, "weights": held}


def sampled(model: Path, world: Path, out: Path) -> dict:
    sampler = sample.Sampler(
        temperature=1.0, top_k=0, top_p=0.9, model="m", adapter="m", roles=["align"], categories=[],
        completions=3, max_tokens=12, batch_tokens=256,
    )  # fmt: skip
    return sample.run(
        sampler, BASE, 0, name="s", model=model, adapter=model, prompts=world / "prompts", out=out / "sampled.jsonl"
    )  # fmt: skip


def asked(model: Path, world: Path, out: Path) -> dict:
    """Answers, their drift, losses, leanings and scores of a policy that is not the base."""
    lm = models.load(model, BASE)
    models.load_adapter(lm, world / "moved", name=models.POLICY)
    subject = Subject(lm, lm, models.POLICY)
    prompts = files.read_lines(world / "prompts/test.jsonl", Prompt)
    plain = Decoding(temperature=1.0, top_k=0, top_p=1.0)
    answers = answering.answer(
        subject, prompts, "toxic", plain, samples=2, tokens=8, seed=0, batch_tokens=256
    )
    often = {"batch_tokens": 256}
    passages = neutral_text.read(world / "neutral.jsonl")
    losses = language_loss.losses(lm, models.POLICY, passages, **often)
    pairs = files.read_lines(world / "pairs/validation.jsonl", Pair)
    scorer = reward_model.load_both(lm, world / "reward")[0]
    scored = reward_model.shared_raw(scorer, [a.as_answer() for a in answers], label=None)
    with models.adapter(lm, models.POLICY):
        seen = online.look(
            lm, asks(lm, LOOKS), rollouts.manner(PPO), scorer, scorer, samples=2, seed=0
        )
    return {
        "texts": [(a.prompt.id, a.index, a.text) for a in answers] + seen.answers,
        "numbers": [
            *(a.drift.exact for a in answers),
            *(one.nll for one in losses),
            *(one.margin for one in implicit.leanings(subject, pairs, **often)),
            *scored,
            *seen.figures.values(),
        ],
    }


def divided(model: Path, world: Path, out: Path) -> dict:
    """What share of a layer and of the rest this process holds."""
    lm = models.load(model, BASE)
    layer = lm.model.model.layers[0].self_attn.q_proj.weight
    return {
        "layer": layer.to_local().numel() / layer.numel(),
        "rest": lm.unembedding_VD.numel() / (lm.unembedding_VD.shape[0] * 64),
    }


if __name__ == "__main__":
    given, there, place = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    found = {name: globals()[name](given, there, place) for name in sys.argv[4:]}
    torch.save(found, place / f"rank-{processes.rank()}.pt")
