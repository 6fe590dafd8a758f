"""RLOO through TRL: what its reward model sees, what it learns, and who its reference is."""

import csv
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_online import LOOKS, Planted, asks, write_reward

from stages.lib import models, reward_model, snapshots
from stages.lib.algorithms import rloo
from stages.lib.algorithms.online import Looks
from stages.lib.algorithms.rloo.trainer import AskTrainer
from stages.lib.online import Manner, look
from stages.lib.tokens import encode_completion
from stages.lib.training import fit

R = rloo.Rloo(
    algorithm="rloo", starts_from="models/base", learns_from="models/reward", prompts="data/prompts", snapshots=1, seed=None, anchor=None,
    categories=[], batch_prompts=4, samples=8, epochs=1, max_steps=20, max_tokens=6, batch_tokens=4096,
    temperature=1.0, lora_rank=4, lora_alpha=8, learning_rate=2e-2, max_grad_norm=1.0, clip=0.2,
    beta=0.02, score_clip=None, look=Looks(prompts=3, samples=8),
)  # fmt: skip


def but(**changes):
    return R.model_copy(update=changes)


def test_the_reward_model_sees_text_and_whether_it_ended(tiny, tmp_path):  # properties 3, 4, 8
    class Recorder(Planted):
        def raw(self, answers, *, label):
            seen.extend(answers)
            return super().raw(answers, label=label)

    seen = []
    given = asks(tiny)
    trainer = AskTrainer(tiny, R, given, seed=0, checkpoints=tmp_path)
    trainer.reward = Recorder()
    eos = tiny.eos_ids[0]
    ids = list(tiny.tokenizer(" sea was here", add_special_tokens=False).input_ids)
    names = [given[0].prompt.id, given[1].prompt.id]
    found = trainer._score(names, [[*ids, eos], ids])
    assert [a.prompt for a in seen] == ["He said", "The old dog went"]
    assert [(a.text, a.finish) for a in seen] == [
        (" sea was here", "stop"),
        (" sea was here", "length"),
    ]
    assert list(encode_completion(tiny, seen[0].text, seen[0].finish)) == [*ids, eos]
    assert found == [3.0, 3.0]  # of "e"
    assert AskTrainer._tokenize_prompts(trainer, names)[0] == [list(a.ids) for a in given[:2]]
    clipped = AskTrainer(tiny_again(tiny), but(score_clip=2.0), given, seed=0, checkpoints=tmp_path)
    clipped.reward = Planted(sign=-1.0)
    assert clipped._score(names[:1], [ids]) == [-2.0]


def tiny_again(lm):
    from stages.lib.base import Base

    return models.load(lm.folder, Base(quantisation="none", weights="rounded", dtype="float32"))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_learns_what_is_rewarded_and_unlearns_what_is_punished(tiny, tmp_path, sign):  # 31
    knobs = but(learning_rate=5e-2, max_steps=60, samples=16, batch_prompts=6, beta=1e-6)
    trainer = AskTrainer(tiny, knobs, asks(tiny), seed=0, checkpoints=tmp_path)
    trainer.reward = Planted(sign=sign)
    held_out, manner = asks(tiny, LOOKS), Manner(1.0, 6, 4096)

    def score():
        tiny.model.eval()
        seen = look(tiny, held_out, manner, trainer.reward, None, samples=32, seed=0)
        return seen.figures["proxy"]

    before = score()
    rows = fit(trainer, tmp_path)
    assert len(rows) == 60
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # property 9
    assert score() > before + 0.25 * abs(before)


def test_base_and_reward_model_do_not_move(tiny, tmp_path, tiny_folder, full_precision):  # 13
    write_reward(tmp_path / "reward", tiny_folder, full_precision)
    trainer = AskTrainer(tiny, but(max_steps=3), asks(tiny), seed=0, checkpoints=tmp_path / "ck")
    trainer.reward, _ = reward_model.load_both(tiny, tmp_path / "reward")
    before = {k: p.detach().clone() for k, p in tiny.model.named_parameters()}
    fit(trainer, tmp_path / "ck")
    moved = {k for k, p in tiny.model.named_parameters() if not torch.equal(p, before[k])}
    assert moved
    assert all(".default." in k for k in moved)


def test_the_algorithm_starts_from_a_policy_and_writes_what_ppo_writes(
    after_sft, tmp_path
):  # properties 12, 35
    knobs = but(max_steps=3, learning_rate=5e-3)
    found = rloo.train(knobs, after_sft)
    assert found["completions"] == 3 * 4 * 8
    assert {"proxy_before", "proxy_after", "monitor_before", "monitor_after"} <= found.keys()
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert [float(r["step"]) for r in rows] == [1, 2, 3]
    assert float(rows[0]["kl_token"]) == pytest.approx(0.0, abs=1e-5)  # from where it after_sft
    assert float(rows[-1]["kl_token"]) != pytest.approx(0.0, abs=1e-5)
    lm = models.load(after_sft.base_folder, after_sft.base)
    models.load_adapter(lm, tmp_path / "out", name="policy")
    (tmp_path / "again").mkdir()
    again = rloo.train(knobs, replace(after_sft, out=tmp_path / "again"))
    assert again == found


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_adapter(after_sft, tmp_path, monkeypatch):  # property 34
    knobs = but(max_steps=8, epochs=2, learning_rate=5e-3)
    whole = rloo.train(knobs, after_sft)
    real = AskTrainer._compute_loss
    calls = []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 11:
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(AskTrainer, "_compute_loss", dies)
    (tmp_path / "again").mkdir()
    second = replace(after_sft, out=tmp_path / "again", curves=tmp_path / "again.csv")
    with pytest.raises(Killed):
        rloo.train(knobs, second)
    assert list(tmp_path.glob(".cache/checkpoints/align-rloo-*/checkpoint-8"))
    monkeypatch.setattr(AskTrainer, "_compute_loss", real)
    assert rloo.train(knobs, second) == whole
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "o.csv").read_text()
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("out", "again"))
    assert all(torch.equal(weight, two[key]) for key, weight in one.items())
    # of 8 rollouts with two updates each, the state after 8 of 16
    assert (
        snapshots.kept(tmp_path / "out").keys() == snapshots.kept(tmp_path / "again").keys() == {8}
    )
