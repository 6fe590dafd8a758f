"""Graded completions: what the stage writes, and what learns from it."""

import csv
import itertools
import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from tiny_graded import BRAIN, DPG, own_answers, rows, write_graded
from tiny_model import moved_adapter
from tiny_online import write_neutral, write_prompts, write_reward

from stages import grade, sample
from stages.lib import graded, graded_trainer, likelihood, models
from stages.lib.algorithms import registry
from stages.lib.algorithms.dpg import Adapting
from stages.lib.algorithms.task import Task
from stages.lib.graded import Graded
from stages.lib.records import Completion, Pair
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal
from stages.lib.tokens import TokenSequence, encode_prompt

GRADER = grade.Grader(
    proposal="models/base", reward="models/reward", roles=["align", "validation"], categories=[],
    completions=3, max_tokens=8, batch_tokens=1024, min_p_chosen=0.5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def world(tiny_folder, full_precision, tmp_path):
    """Prompts, a reward model, and a policy that is not the base."""
    write_prompts(tmp_path / "prompts")
    write_reward(tmp_path / "reward", tiny_folder, full_precision)
    lm = models.load(tiny_folder, full_precision)
    moved_adapter(lm, tmp_path / "policy", std=0.3)
    return tmp_path


def graded_by(world, tiny_folder, base, *, name="base", proposal=None, **knobs):
    out = world / "graded" / name
    found = grade.run(
        GRADER.model_copy(update=knobs), base, 1, name=name, base_folder=tiny_folder,
        proposal=proposal or tiny_folder, reward=world / "reward", prompts=world / "prompts",
        out=out,
    )  # fmt: skip
    return found, files.read_lines(out / "graded.jsonl", Graded), out


# --- the stage


def test_of_the_base_reference_and_proposal_are_one(world, tiny_folder, full_precision):
    found, made, _ = graded_by(world, tiny_folder, full_precision)
    assert found["prompts"] == 14  # 8 of role align, 6 of role validation; none of test
    assert found["completions"] == 42 == len(made)
    assert found["kl_sequence"] == 0
    assert all(row.logp_reference == row.logp_proposal for row in made)
    assert {row.role for row in made} == {"align", "validation"}


def test_its_completions_are_those_of_a_sampler_with_the_same_base(
    world, tiny_folder, full_precision
):
    _, made, _ = graded_by(world, tiny_folder, full_precision)
    sampler = sample.Sampler(
        temperature=1.0, top_k=0, top_p=1.0, model="m", adapter="m", roles=["align", "validation"],
        categories=[], completions=2, max_tokens=8, batch_tokens=1024,
    )  # fmt: skip
    sample.run(
        sampler, full_precision, 1, name="s", model=tiny_folder, adapter=tiny_folder,
        prompts=world / "prompts", out=world / "s.jsonl",
    )  # fmt: skip
    theirs = {
        (c.prompt_id, c.index): c.text for c in files.read_lines(world / "s.jsonl", Completion)
    }
    ours = {(row.prompt_id, row.index): row.text for row in made}
    assert theirs.items() <= ours.items()


def test_log_probabilities_are_of_base_and_proposal_each(world, tiny_folder, full_precision):
    found, made, _ = graded_by(
        world, tiny_folder, full_precision, name="p", proposal=world / "policy"
    )
    assert found["kl_sequence"] > 0.05
    lm = models.load(tiny_folder, full_precision)
    models.load_adapter(lm, world / "policy", name="policy")
    sequences = [TokenSequence(encode_prompt(lm, row.prompt), tuple(row.ids)) for row in made]
    with torch.no_grad():
        for adapter, key in ((None, "logp_reference"), ("policy", "logp_proposal")):
            with models.adapter(lm, adapter):
                expected = likelihood.sequence_logps(lm, sequences)
            found_B = torch.tensor([getattr(row, key) for row in made])
            torch.testing.assert_close(found_B, expected, atol=2e-3, rtol=1e-4)


def test_a_policy_draws_by_random_numbers_of_its_own(world, tiny_folder, full_precision):
    """Else one that is near the base would say what the base said."""
    _, bare, _ = graded_by(world, tiny_folder, full_precision)
    near = world / "near"
    moved_adapter(models.load(tiny_folder, full_precision), near, std=1e-6)
    _, own, _ = graded_by(world, tiny_folder, full_precision, name="near", proposal=near)
    assert [r.text for r in bare] != [r.text for r in own]


def test_pairs_go_by_the_rewards_odds(world, tiny_folder, full_precision):
    _, made, out = graded_by(world, tiny_folder, full_precision)
    by_id = {row.id: row for row in made}
    pairs = files.read_lines(out / "train.jsonl", Pair)
    assert pairs
    assert {p.role for p in pairs} == {"align"}
    assert {p.role for p in files.read_lines(out / "validation.jsonl", Pair)} == {"validation"}
    for pair in pairs:
        gap = by_id[pair.chosen_id].score - by_id[pair.rejected_id].score
        assert gap >= 0
        assert pair.p_chosen == pytest.approx(1 / (1 + math.exp(-gap)))
        assert pair.weight == pytest.approx(1 / 3)


def test_pairs_by_hand(tiny):
    made = rows(tiny, 2, completions=3)  # scores 1, 0, 1
    found = list(graded.pairs(made, min_p_chosen=0.6))
    assert [(p.chosen_id, p.rejected_id) for p in found] == [
        (f"align{n}/base-{a}", f"align{n}/base-1") for n in (0, 1) for a in (0, 2)
    ]
    assert found[0].p_chosen == pytest.approx(1 / (1 + math.exp(-1)))
    assert not list(graded.pairs(made, min_p_chosen=0.8))


def test_two_equal_texts_make_no_pair(tiny):
    made = rows(tiny, 1, completions=2)
    twin = made[1].model_copy(update={"text": made[0].text})
    assert list(graded.pairs(made, min_p_chosen=0.5))
    assert not list(graded.pairs([made[0], twin], min_p_chosen=0.5))


def test_a_prompt_comes_back_from_its_completions(tiny):
    (row, *_) = rows(tiny, 1)
    assert graded.prompt_of(row).body() == row.prompt
    chat = Graded.model_validate(row.model_dump() | {"prompt": [{"role": "user", "content": "Hi"}]})
    assert graded.prompt_of(chat).form == "chat"


# --- what learns from it


@pytest.fixture
def task(tiny_folder, full_precision, tmp_path):
    folder = write_graded(tmp_path / "own", tiny_folder)
    (tmp_path / "out").mkdir()
    neutral = write_neutral(tmp_path / "neutral.jsonl")
    where = folder, folder, neutral, tmp_path / "out", tmp_path / "out.csv"
    return Task(full_precision, 1, tiny_folder, tiny_folder, *where)


def lm_of(task):
    return models.load(task.base_folder, task.base)


def again(task, name):
    out = task.out.with_name(name)
    out.mkdir()
    return replace(task, out=out, curves=out.with_suffix(".csv"))


def weights(task):
    from safetensors.torch import load_file

    return load_file(task.out / "adapter_model.safetensors")


ENTRIES = {
    "brain": BRAIN,
    **{
        f"dpg {divergence}": DPG.model_copy(update={"divergence": divergence})
        for divergence in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
    },
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_it_learns_the_planted_letter(task, tiny, entry):  # property 31
    """What it draws on held-out prompts earns more than what the base draws."""
    longer = entry.model_copy(update={"epochs": 10, "learning_rate": 2e-2})
    found = registry.train(longer, task)
    assert (found["prompts"], found["completions"], found["held_out_n"]) == (32, 256, 6)
    curve = list(csv.DictReader(task.curves.open()))
    assert len(curve) == 40 == found["steps"]
    assert 0 < found["effective"] < 1
    models.load_adapter(tiny, task.out, name="policy")
    earned = {
        adapter: statistics.fmean(
            row.score
            for row in own_answers(tiny, 6, role="validation", completions=64, adapter=adapter)
        )
        for adapter in (None, "policy")
    }
    assert earned["policy"] > earned[None] + 0.15, earned
    if entry.algorithm == "brain":
        assert float(curve[-1]["kl_target"]) < 0.9 * float(curve[0]["kl_target"])


def test_a_killed_training_goes_on_to_the_same_adapter(task, monkeypatch):  # property 34
    registry.train(BRAIN, task)
    killed = again(task, "killed")
    real, calls = graded_trainer.GradedTrainer.compute_loss, itertools.count(1)

    def dies_at_step_four(self, *given, **named):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *given, **named)

    monkeypatch.setattr(graded_trainer.GradedTrainer, "compute_loss", dies_at_step_four)
    with pytest.raises(KeyboardInterrupt):
        registry.train(BRAIN, killed)
    monkeypatch.setattr(graded_trainer.GradedTrainer, "compute_loss", real)
    registry.train(BRAIN, killed)
    assert killed.curves.read_text() == task.curves.read_text()
    assert all(torch.equal(a, weights(killed)[k]) for k, a in weights(task).items())


def test_an_entrys_own_seed_is_another_training_and_null_is_the_graphs(task):
    registry.train(BRAIN, task)
    registry.train(BRAIN.model_copy(update={"seed": 1}), again(task, "same"))
    registry.train(BRAIN.model_copy(update={"seed": 2}), again(task, "other"))
    mine, same, other = (
        weights(replace(task, out=task.out.with_name(name))) for name in ("out", "same", "other")
    )
    assert all(torch.equal(a, same[k]) for k, a in mine.items())
    assert not all(torch.equal(a, other[k]) for k, a in mine.items())


def test_too_few_effective_completions_are_refused(task):
    made = rows(lm_of(task), 4) + rows(lm_of(task), 2, role="validation")  # scores 1, 0, 1, 0
    files.write_lines(task.data / "graded.jsonl", made)
    cold = BRAIN.model_copy(update={"temperature": 0.05, "min_effective": 0.6})
    with pytest.raises(Refusal) as refused:
        registry.train(cold, task)
    assert str(refused.value) == (
        f"{task.data}: at temperature 0.05 2.0 of the 4 completions of a prompt count, a share of "
        "0.50, and min_effective is 0.6; raise temperature, or let a policy that is nearer to the "
        "target propose"
    )
    assert not list(task.out.iterdir())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:-1], "7 to 8 completions of a prompt of role validation; as many"),
        (lambda rows: [r for r in rows if r["role"] == "align"], "no completions of role validation"),
        (lambda rows: [r | {"ids": []} for r in rows], "1: ids must have at least 1 item"),
        (lambda rows: [r | {"ids": [5] * 70} for r in rows], "has .* tokens .*; max_tokens is 64"),
    ],
)  # fmt: skip
def test_completions_that_do_not_fit_are_refused(task, spoil, message):
    path = task.data / "graded.jsonl"
    spoilt = spoil([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in spoilt))
    with pytest.raises(RecordError, match=message):
        registry.train(BRAIN, task)


def test_a_folder_without_graded_completions_is_refused(task, tmp_path):
    elsewhere = replace(task, data=tmp_path)
    with pytest.raises(RecordError, match=r"no graded\.jsonl; name a folder of stage grade"):
        registry.train(BRAIN, elsewhere)


ADAPTING = DPG.model_copy(update={"adapt": Adapting(every=2, prompts=8, batch_tokens=1024)})


def moving(task, world):
    return replace(task, data=world / "reward")


def test_the_policy_takes_the_proposals_place_once_it_is_nearer(task, world, monkeypatch):
    seen = []
    real = graded_trainer.GradedTrainer.compute_loss

    def watched(self, model, inputs, *given, **named):
        seen.append([g.proposal_N - g.reference_N for g in inputs["groups"]])
        return real(self, model, inputs, *given, **named)

    monkeypatch.setattr(graded_trainer.GradedTrainer, "compute_loss", watched)
    found = registry.train(ADAPTING, moving(task, world))
    assert found["proposals"] > 1
    assert all(float(gap_N.abs().max()) == 0 for step in seen[:2] for gap_N in step)
    assert any(float(gap_N.abs().max()) > 0.05 for step in seen[2:] for gap_N in step)


def test_it_stays_where_the_policy_is_further_off(task, world, monkeypatch):
    from stages.lib.algorithms.dpg import proposal

    monkeypatch.setattr(proposal, "nearness", lambda *_, **__: torch.tensor(-0.1))
    assert registry.train(ADAPTING, moving(task, world))["proposals"] == 1


def test_a_killed_training_takes_up_the_proposal_that_it_had(task, world, monkeypatch):
    whole = moving(task, world)
    registry.train(ADAPTING, whole)
    killed = again(whole, "killed")
    real, calls = graded_trainer.GradedTrainer.compute_loss, itertools.count(1)

    def dies_at_step_five(self, *given, **named):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *given, **named)

    monkeypatch.setattr(graded_trainer.GradedTrainer, "compute_loss", dies_at_step_five)
    with pytest.raises(KeyboardInterrupt):
        registry.train(ADAPTING, killed)
    monkeypatch.setattr(graded_trainer.GradedTrainer, "compute_loss", real)
    found = registry.train(ADAPTING, killed)
    assert found["proposals"] > 1
    assert all(torch.equal(a, weights(killed)[k]) for k, a in weights(whole).items())
