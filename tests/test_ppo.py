"""PPO on a tiny model: what it learns, what must not move, and that a kill changes nothing."""

import csv
import dataclasses
import json
import math
import shutil

import pytest
import torch
from tiny_model import build, moved_adapter
from tiny_online import (
    LOOKS,
    Planted,
    asks,
    fresh_roles,
    write_head,
    write_neutral,
    write_prompts,
    write_reward,
)

from stages.lib import likelihood, models, online, reward_model, tokens
from stages.lib.algorithms import ppo
from stages.lib.algorithms.ppo import loop, rollouts
from stages.lib.algorithms.ppo.knobs import Ppo
from stages.lib.algorithms.ppo.loop import Training
from stages.lib.algorithms.ppo.rollouts import Reference, Roles
from stages.lib.algorithms.ppo.values import AdapterValue, HeadValue, RewardValue
from stages.lib.algorithms.task import Task
from stages.lib.reward_model import TrainedReward
from stages.lib.runtime import files
from stages.lib.runtime.processes import total
from stages.lib.runtime.schema import Refusal

P = Ppo.model_validate(
    {
        "algorithm": "ppo", "starts_from": "models/base", "learns_from": "models/reward", "prompts": "data/prompts", "snapshots": 1, "seed": None, "anchor": None, "categories": [], "batch_prompts": 4, "samples": 4,
        "minibatch_prompts": 2, "microbatch_prompts": 2, "epochs": 2, "max_tokens": 6, "batch_tokens": 4096, "temperature": 1.0,
        "lora_rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
        "clip": 0.2, "entropy": 0.0, "gamma": 1.0, "lam": 0.95, "whiten_rewards": False, "score_clip": None,
        "missing_eos_penalty": 0.0, "value": {"kind": "head", "learning_rate": 1e-2, "clip": 0.2},
        "kl": {"beta": 0.02, "target": None, "horizon": 1000},
        "stop": {"max_steps": 4, "target": None, "smoothing": 0.0, "patience": 1, "kl_ceiling": 1e9},
        "look": {"every": 2, "prompts": 3, "samples": 2},
    }
)  # fmt: skip


def but(knobs, **changes):
    """The knobs with some changed; `part__name` reaches into a part."""
    plain = knobs.model_dump()
    for key, value in changes.items():
        *path, last = key.split("__")
        place = plain
        for part in path:
            place = place[part]
        place[last] = value
    return Ppo.model_validate(plain)


@pytest.fixture
def roles(tiny):
    models.add_lora(tiny, rank=4, alpha=8, seed=0)
    width = tiny.unembedding_VD.shape[1]
    return Roles(tiny, Reference(tiny, None), Planted(), Planted(), HeadValue(width, seed=0))


def training(roles, tmp_path, knobs=P, seed=0, **changes):
    given = asks(roles.lm)
    held_out = asks(roles.lm, LOOKS)
    return Training(
        roles, but(knobs, **changes), given, held_out, seed=seed, checkpoints=tmp_path / "ck"
    )  # fmt: skip


def test_the_adapter_is_kept_on_the_way_and_only_while_training_goes_on(roles, tmp_path):
    class Kept(list):
        def after(self, step, total):
            self.append((step, total))

    run = training(roles, tmp_path, stop__max_steps=3)
    run.keeper = Kept()
    run.run()
    assert run.keeper == [(1, 3), (2, 3)]


def weights(run):
    return {k: p.detach().clone() for k, p in (run.policy | run.value).items()}


def test_before_the_first_step_policy_and_reference_agree(roles):  # properties 9, 10
    found = rollouts.roll_out(roles, asks(roles.lm)[:4], P, total, beta=0.5, seed=1)
    for part in found.parts:
        assert part.k1_N.abs().max() < 1e-6
        assert not part.old_values_N.any()  # the head starts at zero, as declared: property 27
    one = rollouts.roll_out(roles, asks(roles.lm)[:4], but(P, lam=1.0), total, beta=0.5, seed=1)
    rows = torch.cat([p.returns_N[p.mask_BT.nonzero()[:, 1] == 0] for p in one.parts])
    assert torch.allclose(rows, one.scores_B, atol=1e-5)  # the reward is the score itself


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_of_the_first_update_is_one(tiny_folder, full_precision, tmp_path, dtype):  # 10
    base = full_precision.model_copy(update={"dtype": dtype, "quantisation": "nf4"})
    lm = models.load(tiny_folder, base)
    moved_adapter(lm, tmp_path / "moved", std=0.3)  # a policy that is not its reference
    roles = Roles(
        lm, Reference(lm, None), Planted(), None, HeadValue(lm.unembedding_VD.shape[1], seed=0)
    )
    run = training(roles, tmp_path, temperature=0.7, minibatch_prompts=4, epochs=1)
    rollout = rollouts.roll_out(roles, run._batch(0), run.ppo, total, beta=0.1, seed=1)
    assert torch.cat([p.k1_N for p in rollout.parts]).abs().max() > 0.01
    row = run._update_once(rollout.parts, 0)
    assert row["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert row["kl_update"] == pytest.approx(0.0, abs=1e-6)
    assert row["clip_fraction"] == 0.0
    assert run._update_once(rollout.parts, 0)["ratio"] != pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_learns_what_is_rewarded_and_unlearns_what_is_punished(roles, tmp_path, sign):  # 31
    roles = dataclasses.replace(roles, reward=Planted(sign=sign), monitor=Planted(sign=sign))
    larger = {"batch_prompts": 6, "minibatch_prompts": 3, "microbatch_prompts": 3, "samples": 16}
    run = training(
        roles, tmp_path, stop__max_steps=60, look__every=60, look__samples=32, learning_rate=2e-2,
        kl__beta=0.0, **larger,
    )  # fmt: skip
    done = run.run()
    assert done.stopped_by == "max_steps"
    before, after = done.looks[0]["proxy"], done.looks[-1]["proxy"]
    assert after > before + 0.25 * abs(before)
    assert done.rows[-1]["kl_sequence"] > 0.5
    assert done.rows[-1]["learning_rate"] == pytest.approx(2e-2 / 60)  # property 30
    used = [optimiser.param_groups[0]["lr"] for optimiser in run.optimisers]
    assert used == pytest.approx([2e-2 / 60, P.value.learning_rate / 60])


def test_base_reference_and_reward_model_do_not_move(tiny, tmp_path):  # properties 13, 16
    reward = with_reward(tiny, tmp_path / "reward")
    value = HeadValue(tiny.unembedding_VD.shape[1], seed=0)
    run = training(Roles(tiny, Reference(tiny, None), reward, None, value), tmp_path)
    before = {k: p.detach().clone() for k, p in tiny.model.named_parameters()}
    head = reward.head.weight.detach().clone()
    run.run()
    moved = {k for k, p in tiny.model.named_parameters() if not torch.equal(p, before[k])}
    assert moved
    assert all(".default." in k for k in moved)
    assert {k for k in before if ".default." in k} == moved
    assert torch.equal(reward.head.weight, head)


def with_reward(lm, folder):
    """Give a model a new policy adapter and a saved reward model beside it."""
    moved_adapter(lm, folder, std=0.3)
    write_head(folder, lm.unembedding_VD.shape[1])
    lm.model = lm.model.unload()
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    return reward_model.load(lm, folder, name="reward")


def test_the_value_adapter_starts_as_the_reward_model_and_trains_beside_the_policy(
    tiny, tmp_path
):  # properties 13, 16, 27
    reward = with_reward(tiny, tmp_path / "reward")
    assert isinstance(reward, TrainedReward)
    value = AdapterValue(tiny, tmp_path / "reward", reward)
    run = training(
        Roles(tiny, Reference(tiny, None), reward, None, value), tmp_path, value__learning_rate=1e-3
    )
    rollout = rollouts.roll_out(run.roles, run._batch(0), run.ppo, total, beta=0.1, seed=1)
    part = rollout.parts[0]
    # The value before the last token is the reward model's score of the text up to there.
    with torch.no_grad(), models.adapter(tiny, "reward"):
        states = likelihood.positions(tiny, part.sequences).hidden_ND
    expected = (reward.head(states) - 0.1) / 0.5
    assert torch.allclose(part.old_values_N, expected, atol=1e-4)
    before = weights(run)
    frozen = {k: p.detach().clone() for k, p in tiny.model.named_parameters() if k not in before}
    run._update_once([part], 0)
    after = weights(run)
    for kind in (".default.", ".value.", "head."):
        assert any(not torch.equal(before[k], after[k]) for k in before if kind in k), kind
    assert all(torch.equal(p, frozen[k]) for k, p in tiny.model.named_parameters() if k in frozen)


def test_the_reward_models_own_states_are_a_value_without_a_second_adapter(
    tiny, tmp_path
):  # properties 13, 27
    reward = with_reward(tiny, tmp_path / "reward")
    roles = Roles(tiny, Reference(tiny, None), reward, None, RewardValue(reward))
    run = training(roles, tmp_path, value__learning_rate=1e-2)
    rollout = rollouts.roll_out(roles, run._batch(0), run.ppo, total, beta=0.1, seed=1)
    part = rollout.parts[0]
    with torch.no_grad(), models.adapter(tiny, "reward"):
        states = likelihood.positions(tiny, part.sequences).hidden_ND
    assert torch.allclose(part.old_values_N, (reward.head(states) - 0.1) / 0.5, atol=1e-4)
    kept = {k: p.detach().clone() for k, p in tiny.model.named_parameters() if ".reward." in k}
    head = reward.head.weight.detach().clone()
    first = run._update_once([part], 0)
    for _ in range(20):
        last = run._update_once([part], 0)
    assert last["value_loss"] < first["value_loss"] - 0.01  # the copy of the head learns
    assert torch.equal(reward.head.weight, head)  # and the reward model's own does not
    assert kept
    assert all(torch.equal(p, kept[k]) for k, p in tiny.model.named_parameters() if k in kept)


def test_advantages_are_whitened_over_the_whole_rollout_and_rewards_keep_their_mean(
    roles,
):  # property 23
    given = asks(roles.lm)[:4]
    found = rollouts.roll_out(roles, given, P, total, beta=0.0, seed=1)
    assert len(found.parts) == 2
    both = torch.cat([p.advantages_N for p in found.parts])
    assert both.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert both.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert abs(found.parts[0].advantages_N.mean().item()) > 1e-3  # and not part by part
    # Values start at 0: with lambda 1 the return of a first token is the sum of its rewards.
    sums = []
    for whiten in (False, True):
        knobs = but(P, lam=1.0, whiten_rewards=whiten)
        one = rollouts.roll_out(roles, given, knobs, total, beta=0.0, seed=1)
        firsts = [p.returns_N[p.mask_BT.nonzero()[:, 1] == 0] for p in one.parts]
        sums.append(torch.cat(firsts))
        tokens_seen = sum(len(p.returns_N) for p in one.parts)
    scale = 1 / torch.cat([sums[0], torch.zeros(tokens_seen - len(sums[0]))]).std(correction=0)
    mean = sums[0].sum() / tokens_seen
    lengths = torch.cat([p.mask_BT.sum(1) for p in found.parts])
    expected = (sums[0] - mean * lengths) * scale + mean * lengths
    assert torch.allclose(sums[1], expected, atol=1e-3)


def test_log_probabilities_are_of_the_distribution_that_was_sampled(roles):  # property 10
    knobs = but(P, temperature=0.7)
    found = rollouts.roll_out(roles, asks(roles.lm)[:4], knobs, total, beta=0.0, seed=1)
    rows = [len(d.ids) for d in found.draws]
    sums = [part.sum() for part in torch.cat([p.old_logp_N for p in found.parts]).split(rows)]
    drawn = torch.tensor([d.logp for d in found.draws], dtype=torch.float32)
    assert torch.allclose(torch.stack(sums), drawn, atol=1e-3)


def test_a_reward_model_with_another_tokenizer_reads_text(
    tiny, tmp_path, full_precision
):  # properties 3, 8
    folder = build(tmp_path / "other", seed=5, entries=420)
    other = models.load(folder, full_precision)
    reward = with_reward(other, tmp_path / "reward")
    models.add_lora(tiny, rank=4, alpha=8, seed=0)
    value = HeadValue(tiny.unembedding_VD.shape[1], seed=0)
    roles = Roles(tiny, Reference(tiny, None), reward, None, value)
    found = rollouts.roll_out(roles, asks(tiny)[:4], P, total, beta=0.1, seed=1)
    ask, draw = asks(tiny)[0], found.draws[0]
    text = tiny.tokenizer.decode([i for i in draw.ids if i not in tiny.eos_ids])
    own = tokens.encode(other, ask.prompt.text, text, draw.finish, max_tokens=64, where="here")
    assert own.completion != draw.ids
    with torch.no_grad(), models.adapter(other, "reward"):
        state = reward_model.last_states(other, [own])
    expected = (reward.head(state).item() - 0.1) / 0.5
    assert found.scores_B[0].item() == pytest.approx(expected, abs=1e-4)


def gradients(run, parts):
    """Gradients of the policy after one update's backward passes, without the step."""
    tokens = sum(len(p.old_logp_N) for p in parts)
    for parameter in (run.policy | run.value).values():
        parameter.grad = None
    for part in parts:
        run._backward(part, tokens)
    return {k: p.grad.clone() for k, p in (run.policy | run.value).items() if p.grad is not None}


def test_one_batch_of_eight_is_eight_of_one(roles, tmp_path):  # property 29
    found = []
    for size in (4, 1):
        knobs = {"batch_prompts": 4, "minibatch_prompts": 4, "microbatch_prompts": size}
        run = training(roles, tmp_path, max_grad_norm=1e9, **knobs)
        for optimiser in run.optimisers:
            optimiser.param_groups[0]["lr"] = 0.0  # the gradients are wanted, not the step
        rollout = rollouts.roll_out(roles, run._batch(0), run.ppo, total, beta=0.1, seed=1)
        assert len(rollout.parts) == 4 // size
        figures = run._update_once(rollout.parts, 0)
        found.append({k: p.grad.clone() for k, p in (run.policy | run.value).items()})
        found[-1]["figures"] = torch.tensor([figures["policy_loss"], figures["value_loss"]])
    for key, one in found[0].items():
        assert torch.allclose(one, found[1][key], atol=1e-5), key


def test_the_policys_gradient_does_not_depend_on_who_else_ran(roles, tmp_path):  # properties 15, 16
    run = training(roles, tmp_path)
    rollout = rollouts.roll_out(roles, run._batch(0), run.ppo, total, beta=0.1, seed=1)
    first = gradients(run, rollout.parts)
    run._look()  # samples, scores, switches adapters
    again = gradients(run, rollout.parts)
    assert first
    assert all(torch.equal(one, again[key]) for key, one in first.items())


def test_an_entropy_bonus_raises_entropy_and_none_changes_nothing(
    tiny_folder, full_precision, tmp_path
):  # 28
    ends = {}
    for weight in (0.0, 1.0):
        lm = models.load(tiny_folder, full_precision)
        models.add_lora(lm, rank=4, alpha=8, seed=0)
        roles = Roles(
            lm,
            Reference(lm, None),
            Planted(sign=0.0),
            None,
            HeadValue(lm.unembedding_VD.shape[1], seed=0),
        )
        run = training(roles, tmp_path / str(weight), entropy=weight, kl__beta=0.0)
        ends[weight] = [row["entropy"] for row in run.run().rows]
    # No reward, no penalty, no bonus: nothing to learn but the value's own zero.
    assert ends[0.0][0] == pytest.approx(ends[1.0][0])
    assert ends[1.0][-1] > ends[0.0][-1] + 0.05


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights_and_figures(
    tiny_folder, full_precision, tmp_path, monkeypatch
):  # property 34
    def fresh(folder):
        roles = fresh_roles(tiny_folder, full_precision)
        return training(
            roles, folder, stop__max_steps=8, kl__target=0.5, stop__target=50.0, stop__smoothing=0.5
        )

    whole = fresh(tmp_path / "whole")
    expected = whole.run()
    real = loop.Training._step

    def dies(self):
        if self.progress.step == 5:
            raise Killed
        return real(self)

    monkeypatch.setattr(loop.Training, "_step", dies)
    with pytest.raises(Killed):
        fresh(tmp_path / "again").run()
    assert sorted(p.name for p in (tmp_path / "again/ck").iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    steps = []
    monkeypatch.setattr(
        loop.Training, "_step", lambda self: (steps.append(self.progress.step), real(self))[1]
    )
    again = fresh(tmp_path / "again")
    found = again.run()
    assert steps[0] == 4  # it went on, and did not begin again
    plain = [json.dumps(dataclasses.asdict(one), sort_keys=True) for one in (found, expected)]
    assert plain[0] == plain[1]  # rows, looks, beta and averages; as text, for NaN is not NaN
    for key, one in weights(whole).items():
        assert torch.equal(one, weights(again)[key]), key


def test_the_ceiling_stops_before_the_update(roles, tmp_path):  # property 33
    run = training(roles, tmp_path, stop__kl_ceiling=1e-9, stop__max_steps=50, epochs=4)
    done = run.run()
    assert done.stopped_by == "kl_ceiling"
    assert "loss" not in done.rows[-1]
    assert done.rows[-1]["kl_sequence"] > 1e-9


def test_a_target_that_is_reached_stops(roles, tmp_path):  # property 33
    done = training(roles, tmp_path, stop__target=-1.0).run()
    assert (done.stopped_by, done.step) == ("target", 0)


def test_every_pass_takes_every_prompt_once_and_two_processes_share_a_step(
    roles, tmp_path, monkeypatch
):
    run = training(roles, tmp_path)
    seen = [ask.prompt.id for step in range(3) for ask in run._batch(step)]  # 12 of 6 prompts
    assert sorted(seen[:6]) == sorted(seen[6:]) == [f"align{n}" for n in range(6)]
    assert seen[:6] != seen[6:]
    whole = [ask.prompt.id for ask in run._batch(0)]
    parts = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        parts.append([ask.prompt.id for ask in run._batch(0)])
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_figures_of_a_rollout(roles, tmp_path):  # property 20
    run = training(roles, tmp_path)
    row = run._step()
    assert row["kl_sequence"] == pytest.approx(0.0, abs=1e-5)
    assert 1 <= row["length"] <= P.max_tokens
    assert 0 <= row["eos_rate"] <= 1
    assert 0 < row["entropy"] <= math.log(roles.lm.unembedding_VD.shape[0])
    assert row["explained_variance"] <= 1
    second = run._step()
    assert second["kl_token"] == pytest.approx(second["kl_sequence"] / second["length"])
    assert second["kl_sequence_se"] > 0


@pytest.fixture
def task(tiny_folder, full_precision, tmp_path, monkeypatch):
    """A training that starts from the base, on a saved reward model and prompts."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "out").mkdir()
    reward = write_reward(tmp_path / "reward", tiny_folder, full_precision)
    prompts = write_prompts(tmp_path / "prompts")
    where = write_neutral(tmp_path / "neutral.jsonl"), tmp_path / "out", tmp_path / "ppo.csv"
    return Task(full_precision, 1, tiny_folder, tiny_folder, reward, prompts, *where)


def test_the_algorithm_writes_adapter_curves_and_metrics(task, tmp_path):
    knobs = but(P, categories=["insult"], stop__max_steps=3)
    found = ppo.train(knobs, task)
    assert found["steps"] == found["stopped_by/max_steps"] * 3
    assert found["completions"] == 3 * 4 * 4
    assert {"proxy_before", "proxy_after", "monitor_before", "monitor_after"} <= found.keys()
    rows = list(csv.DictReader((tmp_path / "ppo.csv").open()))
    assert [float(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert rows[0]["score"] == "nan"  # before the first rollout there is an evaluation only
    assert float(rows[0]["proxy"]) == pytest.approx(found["proxy_before"], rel=1e-5)
    lm = models.load(task.base_folder, task.base)
    models.load_adapter(lm, tmp_path / "out", name="policy")
    assert not list(tmp_path.glob(".cache/checkpoints/*"))
    with pytest.raises(Refusal, match="4 prompts of role align and 3 of role validation"):
        ppo.train(but(knobs, look__prompts=4), task)


@pytest.mark.parametrize("kind", ["reward", "adapter"])
def test_a_value_that_starts_as_the_reward_model_needs_a_trained_one(task, tmp_path, kind):
    for file in (tmp_path / "reward").iterdir():
        if file.is_file():
            file.unlink()
    shutil.rmtree(tmp_path / "reward/monitor")
    files.write_json(
        tmp_path / "reward/classifier.json",
        {"folder": "nowhere", "label": "toxic", "sign": -1, "max_tokens": 64},
    )
    files.write_json(tmp_path / "reward/normaliser.json", {"mean": 0.0, "std": 1.0})
    with pytest.raises(Refusal, match=f"value.kind is '{kind}', .* value.kind 'head' would do"):
        ppo.train(but(P, value__kind=kind), task)


def test_processes_that_do_not_come_out_even_are_refused(roles, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(Refusal, match="3 processes share minibatch_prompts 2, which does not come"):
        Training(roles, P, [], [], seed=0, checkpoints=tmp_path)


def test_an_evaluation_says_how_far_proxy_and_monitor_are_apart(roles):  # property 36
    given = asks(roles.lm, LOOKS)
    seen = online.look(
        roles.lm, given, rollouts.manner(P), Planted("e"), Planted("a"), samples=4, seed=0
    )
    _, answers = online.respond(roles.lm, given, rollouts.manner(P), samples=4, seed=0)
    counts = [[a.text.count(letter) for a in answers] for letter in "ea"]
    assert seen.proxy == [sum(counts[0][i : i + 4]) / 4 for i in (0, 4, 8)]
    assert seen.figures["gap"] == pytest.approx((sum(counts[0]) - sum(counts[1])) / 12)
    assert seen.figures["refusals"] == 0
    assert [row["completion"] for row in seen.answers] == [answers[i].text for i in (0, 4, 8)]
