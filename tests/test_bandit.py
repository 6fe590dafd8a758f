"""A two-armed bandit: one token, and half of the vocabulary pays. Every algorithm learns it."""

from functools import partial

import pytest
import torch
from test_dpo import P as DPO
from test_kto import K as KTO
from test_kto import judged, signal
from test_ppo import P as PPO
from test_ppo import but
from test_reward import pair
from test_rloo import R as RLOO
from tiny_graded import BRAIN
from tiny_online import Planted, asks

from stages.lib import graded, graded_groups, models, training
from stages.lib.algorithms import brain
from stages.lib.algorithms.dpg import objective
from stages.lib.algorithms.dpo import trainer as dpo_trainer
from stages.lib.algorithms.kto import trainer as kto_trainer
from stages.lib.algorithms.ppo.loop import Training
from stages.lib.algorithms.ppo.rollouts import Reference, Roles
from stages.lib.algorithms.ppo.values import HeadValue
from stages.lib.algorithms.rloo.trainer import AskTrainer
from stages.lib.graded_trainer import GradedTrainer
from stages.lib.groups import group
from stages.lib.sampling import Draw

PROMPT = "The old dog went"


def arms(lm):
    """What each token says, and which of them pay: those on one side of a plane through the output
    layer, so that even two layers can tell the arms apart."""
    good_V = lm.unembedding_VD[:, 0] > 0
    return [lm.tokenizer.decode([i]) for i in range(len(good_V))], good_V


class Arms(Planted):
    """Pays `sign` for the good arm, nothing for the other."""

    def __init__(self, lm, sign):
        texts, good_V = arms(lm)
        self.good, self.sign = {t for t, good in zip(texts, good_V, strict=True) if good}, sign

    def raw(self, answers, *, label):
        return [self.sign * (a.text in self.good) for a in answers]


@torch.no_grad()
def p_good(lm):
    """The exact probability of the good arm."""
    lm.model.eval()
    (ask,) = asks(lm, [PROMPT])
    p_V = lm.model(torch.tensor([ask.ids])).logits[0, -1].softmax(-1)
    return float(p_V[arms(lm)[1]].sum())


def by_ppo(lm, sign, folder):
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    head = HeadValue(lm.unembedding_VD.shape[1], seed=0)
    roles = Roles(lm, Reference(lm, None), Arms(lm, sign), None, head)
    knobs = but(
        PPO, max_tokens=1, batch_prompts=1, minibatch_prompts=1, microbatch_prompts=1, samples=32,
        stop__max_steps=30, look__every=30, look__prompts=2, kl__beta=0.0, learning_rate=5e-2,
    )  # fmt: skip
    given = asks(lm, [PROMPT])
    Training(roles, knobs, given, given * 2, seed=0, checkpoints=folder).run()


def by_rloo(lm, sign, folder):
    knobs = RLOO.model_copy(
        update={
            "max_tokens": 1,
            "batch_prompts": 1,
            "samples": 32,
            "max_steps": 30,
            "beta": 0.0,
            "learning_rate": 5e-2,
        }
    )
    trainer = AskTrainer(lm, knobs, asks(lm, [PROMPT]), seed=0, checkpoints=folder)
    trainer.reward = Arms(lm, sign)
    training.fit(trainer, folder)


def sides(lm, sign):
    """What is to be liked and what is not, of tokens whose text gives them back."""
    texts, good_V = arms(lm)
    single = [
        i
        for i, text in enumerate(texts)
        if lm.tokenizer(text, add_special_tokens=False).input_ids == [i]
    ]
    both = [texts[i] for i in single if good_V[i]], [texts[i] for i in single if not good_V[i]]
    return both if sign > 0 else both[::-1]


def by_dpo(lm, sign, folder):
    chosen, rejected = sides(lm, sign)
    some = [
        pair(n, prompt=PROMPT, chosen=a, rejected=b, role="align")
        for n, (a, b) in enumerate(zip(chosen, rejected, strict=False))
    ]
    groups = group(lm, some, max_tokens=64)
    reference = dpo_trainer.group_logps(lm, groups, label="reference")
    knobs = DPO.model_copy(update={"epochs": 30, "learning_rate": 2e-2})
    trainer = dpo_trainer.GroupedDPOTrainer(
        lm, knobs, groups, reference, seed=0, checkpoints=folder
    )
    training.fit(trainer, folder)


def by_kto(lm, sign, folder):
    some = [
        signal(f"{n}-{up}-{k}", prompt=prompt, text=text, up=up)
        for n, prompt in enumerate((PROMPT, "Once upon a time"))  # one to borrow answers from
        for up, side in zip((True, False), sides(lm, sign), strict=True)
        for k, text in enumerate(side[::4])
    ]
    knobs = KTO.model_copy(update={"batch_prompts": 2, "epochs": 20, "learning_rate": 2e-2})
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    rows = kto_trainer.rows(judged(lm, some), batch_prompts=2, seed=0)
    trainer = kto_trainer.JudgedKTOTrainer(
        lm, knobs, rows, weights=(1.0, 1.0), seed=0, checkpoints=folder
    )
    training.fit(trainer, folder)


def by_matching(objective):
    """On 256 draws of the base, graded."""

    def learn(lm, sign, folder):
        _, good_V = arms(lm)
        (ask,) = asks(lm, [PROMPT])
        with torch.no_grad():
            p_V = lm.model(torch.tensor([ask.ids])).logits[0, -1].softmax(-1)
        generator = torch.Generator().manual_seed(0)
        ids = torch.multinomial(p_V, 256, replacement=True, generator=generator)
        drawn = [[Draw(ask.prompt.id, k, (int(i),), "length", 0.0) for k, i in enumerate(ids)]]
        scorer = Arms(lm, sign)
        scorer.raw = lambda *_, **__: (sign * good_V[ids]).tolist()  # by token: some share a text
        found = graded.grade(
            lm, [ask.prompt], drawn, scorer, proposal=None, name="b", batch_tokens=4096
        )
        models.add_lora(lm, rank=4, alpha=8, seed=0)
        knobs = BRAIN.model_copy(update={"epochs": 30, "batch_prompts": 1, "learning_rate": 2e-2})
        trainer = GradedTrainer(
            lm, knobs, graded_groups.groups(lm, found), objective, seed=0, checkpoints=folder
        )
        training.fit(trainer, folder)

    return learn


BY_BRAIN = by_matching(partial(brain.loss, temperature=0.5))
BY_DPG = by_matching(
    partial(objective.loss, temperature=0.5, divergence="forward_kl", baseline=True, max_ratio=10.0)
)


@pytest.mark.parametrize("learn", [by_ppo, by_rloo, by_dpo, by_kto, BY_BRAIN, BY_DPG])
def test_the_arm_that_pays_is_pulled_more_and_the_one_that_costs_less(
    tiny_folder, full_precision, tmp_path, learn
):  # property 31
    ends = {}
    for sign in (1.0, -1.0):
        lm = models.load(tiny_folder, full_precision)
        start = p_good(lm)
        assert 0.2 < start < 0.8
        learn(lm, sign, tmp_path / f"{sign}")
        ends[sign] = p_good(lm)
    assert ends[-1.0] < 0.7 * start
    assert 1 - ends[1.0] < 0.7 * (1 - start)
