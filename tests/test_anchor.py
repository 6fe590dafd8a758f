"""The anchor: a divergence worked by hand, its gradient, and what it does to every algorithm."""
# ruff: noqa: F811 -- fixtures of other files

import csv
import math
from dataclasses import replace

import pytest
import torch
from test_dpo import P as DPO
from test_dpo import data, own_checkpoints, train  # noqa: F401
from test_kto import but as kto_but
from test_kto import task as kto_task  # noqa: F401
from test_ppo import P as PPO
from test_ppo import but
from test_ppo import task as ppo_task  # noqa: F401
from test_rloo import but as rloo_but
from test_sft import S as SFT
from tiny_model import moved_adapter
from tiny_online import write_neutral

from stages.lib import anchor, language_loss, models, neutral_text
from stages.lib.algorithms import kto, ppo, rloo, sft
from stages.lib.algorithms.task import Anchoring
from stages.lib.anchor import Anchor, divergence
from stages.lib.language_loss import sequences
from stages.lib.runtime import processes
from stages.lib.runtime.files import RecordError


def test_the_divergence_and_its_gradient_equal_the_values_worked_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = .75 log 1.5 + .25 log .5 = .3041 - .1733 = .1308
    p, q = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    kl, gradient = divergence(q, p, torch.eye(2))
    assert kl.tolist() == pytest.approx([0.1308], abs=1e-4)
    assert gradient.tolist()[0] == pytest.approx([-0.25, 0.25])  # q - p


def test_the_gradient_is_that_of_autograd_over_several_chunks(monkeypatch):
    monkeypatch.setattr(anchor, "CHUNK", 3)
    torch.manual_seed(0)
    policy, reference, words = torch.randn(8, 5), torch.randn(8, 5), torch.randn(11, 5)
    policy.requires_grad_()
    log_q, log_p = ((h @ words.T).log_softmax(-1) for h in (policy, reference))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    expected.sum().backward()
    kl, gradient = divergence(policy.detach(), reference, words)
    torch.testing.assert_close(kl, expected.detach())
    torch.testing.assert_close(gradient, policy.grad)


@pytest.fixture
def passages(tmp_path):
    return neutral_text.read(write_neutral(tmp_path / "neutral.jsonl"))


def test_a_policy_that_is_its_reference_is_not_pulled(tiny, passages):  # property 9
    models.add_lora(tiny, rank=4, alpha=8, seed=0)
    held = Anchor(tiny, sequences(tiny, passages), weight=1.0, count=2)
    assert held.pull(0) == pytest.approx(0.0, abs=1e-6)
    for parameter in tiny.model.parameters():
        if parameter.requires_grad:
            assert float(parameter.grad.abs().max()) < 1e-5


def test_pulls_alone_bring_a_policy_back_to_its_reference(tiny, passages, tmp_path):
    held = Anchor(tiny, sequences(tiny, passages), weight=1.0, count=len(passages))
    moved_adapter(tiny, tmp_path / "moved", std=0.1)
    own = [p for p in tiny.model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(own, lr=1e-2)
    away = []
    for turn in range(30):
        optimiser.zero_grad()
        away.append(held.pull(turn))
        optimiser.step()
    assert away[0] > 0.001
    assert away[-1] < 0.3 * away[0]


def test_every_passage_has_its_turn_and_shares_add_up(tiny, passages, tmp_path, monkeypatch):
    held = Anchor(tiny, sequences(tiny, passages), weight=3.0, count=4)
    moved_adapter(tiny, tmp_path / "moved", std=0.1)
    seen = []
    real = anchor.likelihood.positions
    monkeypatch.setattr(
        anchor.likelihood, "positions", lambda lm, some: seen.append(some) or real(lm, some)
    )
    for turn in range(3):
        held.pull(turn)
    given = sequences(tiny, passages)
    assert [given.index(one) for some in seen for one in some] == [0, 1, 2, 3, 4, 5] * 2

    monkeypatch.setattr(processes, "means", lambda values, count: values)
    monkeypatch.setattr(processes, "divides_base", lambda: False)  # which would join the others

    def gradient(count):
        tiny.model.zero_grad()
        for rank in range(count):
            monkeypatch.setenv("WORLD_SIZE", str(count))
            monkeypatch.setenv("RANK", str(rank))
            held.pull(0)
        return torch.cat([p.grad.flatten() for p in tiny.model.parameters() if p.requires_grad])

    alone = gradient(1)
    for count in (2, 3, 5):  # of four passages: the fifth process has none
        torch.testing.assert_close(gradient(count), alone)


def anchored(weight=30.0):
    return Anchoring(weight=weight, passages=3)


def tax(folder, adapter, passages, base):
    """How much an adapter adds to the loss on neutral text, in nats a token."""
    lm = models.load(folder, base)
    models.load_adapter(lm, adapter, name="policy")
    before, after = (
        sum(x.nll for x in language_loss.losses(lm, name, passages, batch_tokens=512))
        for name in (None, "policy")
    )
    return (after - before) / sum(len(s.completion) for s in sequences(lm, passages))


def test_dpo_on_an_anchor_learns_and_leaves_neutral_text_alone(  # property 31
    tiny_folder,
    full_precision,
    data,
    tmp_path,
    passages,
):
    free = train(DPO, full_precision, tiny_folder, data, tmp_path / "free")
    knobs = DPO.model_copy(update={"anchor": anchored()})
    held = train(knobs, full_precision, tiny_folder, data, tmp_path / "held")
    assert free["implicit_accuracy"] == held["implicit_accuracy"] == 1.0
    costs = [
        abs(tax(tiny_folder, tmp_path / name, passages, full_precision))
        for name in ("free", "held")
    ]
    assert costs[1] < 0.5 * costs[0]
    rows = [list(csv.DictReader((tmp_path / f"{n}.csv").open())) for n in ("free", "held")]
    assert {row["anchor_kl"] for row in rows[0]} == {"nan"}
    assert float(rows[1][0]["anchor_kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(rows[1][-1]["anchor_kl"]) > 0


def differs(run, task, knobs):
    """Whether an anchor changes what an algorithm's training ends at, and is logged."""
    found = {}
    for name, entry in (("free", knobs), ("held", knobs.model_copy(update={"anchor": anchored()}))):
        out = task.out.with_name(name)
        out.mkdir()
        own = replace(task, out=out, curves=out.with_suffix(".csv"))
        run(entry, own)
        last = list(csv.DictReader(own.curves.open()))[-1]
        found[name] = float(last["anchor_kl"]), (out / "adapter_model.safetensors").read_bytes()
    return math.isnan(found["free"][0]), found["held"][0], found["free"][1] != found["held"][1]


def test_sft_is_pulled(sft_task):
    assert differs(sft.train, sft_task, SFT)[0::2] == (True, True)


def test_kto_is_pulled(kto_task):
    assert differs(kto.train, kto_task, kto_but())[0::2] == (True, True)


def test_ppo_is_pulled(ppo_task):
    knobs = but(PPO, categories=["insult"], stop__max_steps=2)
    assert differs(ppo.train, ppo_task, knobs)[0::2] == (True, True)


def test_rloo_is_pulled_to_the_policy_that_it_starts_from(after_sft):  # property 12
    knobs = rloo_but(max_steps=2, learning_rate=5e-3)
    free, last, changed = differs(rloo.train, after_sft, knobs)
    assert (free, changed) == (True, True)
    assert last < 0.05  # from the bare base it would be much further away


def test_a_missing_file_of_passages_is_refused_before_training(
    tiny_folder,
    full_precision,
    data,
    tmp_path,
):
    knobs = DPO.model_copy(update={"anchor": anchored()})
    with pytest.raises(RecordError, match=r"neutral\.jsonl: no such file"):
        train(knobs, full_precision, tiny_folder, data, tmp_path / "dpo")
    assert not (tmp_path / "dpo").exists()
