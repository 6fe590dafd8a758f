"""Preference-model pretraining, and reward models that start from it."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_reward import PARAMS, planted, task
from test_stack_exchange import answer, question

from stages import pretrain, reward
from stages.lib import models, pretraining, reward_model, reward_trainer, reward_training
from stages.lib.groups import group
from stages.lib.models import ModelError
from stages.lib.preferences import stack_exchange
from stages.lib.pretraining import Pretrain
from stages.lib.records import Message
from stages.lib.reward_model import Answer
from stages.lib.reward_training import Classified
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, check
from stages.lib.tokens import encode, encode_prompt

# As PARAMS: the probe alone would find the planted word.
K = Pretrain(
    reads="data/preferences/tea", hub=None, max_tokens=64, question_tokens=40, too_long="cut", max_answers=3,
    min_difference=1, held_out=0.25, probe_l2=1.0, lora_rank=4, lora_alpha=8, learning_rate=5e-3, warmup=0.0,
    epochs=6, batch_prompts=8, max_grad_norm=1.0, resamples=100, bins=10,
)  # fmt: skip


def but(knobs, **changes):
    return check(knobs.model_dump() | changes, type(knobs), "test")


def posts(count=60):
    """Questions of which the answers that please are more voted for."""
    rows = []
    for n in range(count):
        fillers = ["the sea was calm", "a dog ran home", "rain came at noon", "she read a book"]
        rows.append(question(n, title=f"Tale {n}", body="<p>How?</p>", accepted=1000 + n))
        rows.append(answer(1000 + n, n, 4, f"<p>{fillers[n % 4]} and good</p>"))
        rows.append(answer(2000 + n, n, 0, f"<p>{fillers[(n + 1) % 4]} and awful</p>"))
    return rows


@pytest.fixture(scope="module")
def tea(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tea")
    files.write_lines(folder / "posts.jsonl", posts())
    return folder


def run(knobs, base, base_folder, reads, out, *, seed=1):
    return pretrain.run(
        knobs, base, seed, name="tea", base_folder=base_folder, reads=reads, out=out,
        metrics=out.with_suffix(".json"), curves=out.with_suffix(".csv"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tea, tiny_folder, full_precision, tmp_path_factory):
    """Folder of a pretrained reward model, and what its stage returned."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        return root / "tea", run(K, full_precision, tiny_folder, tea, root / "tea")


def test_it_learns_a_planted_preference_of_held_out_questions(pretrained):
    folder, found = pretrained
    assert found["accuracy"] >= 0.95
    assert found["loss"] < 0.3
    assert found["train_prompts"] + 60 * K.held_out == pytest.approx(60, abs=10)
    rows = list(csv.DictReader(folder.with_suffix(".csv").open()))
    assert len(rows) == found["steps"] == 6 * -(-int(found["train_prompts"]) // 8)
    assert float(rows[-1]["loss"]) < 0.3 < float(rows[0]["loss"])
    report = json.loads(folder.with_suffix(".json").read_text())
    assert report["accuracy"]["n"] == 60 - report["train_prompts"]
    assert {"ece", "ece_null", "length_accuracy", "left_out"} <= report.keys()
    assert json.loads((folder / "pretrain.json").read_text())["name"] == "tea"


def some_answers():
    return [Answer(p.prompt, t, "stop") for p in chats(8, "test") for t in (p.chosen, p.rejected)]


def test_what_it_writes_is_a_reward_model_like_any_other(pretrained, tiny):
    scorer = reward_model.load(tiny, pretrained[0], name="reward")
    good, bad = (
        scorer.raw([Answer("Tale 3", f" a dog ran home and {word}", "stop")], label=None)[0]
        for word in ("good", "awful")
    )
    assert good > bad + 1


def test_training_that_starts_from_it_begins_with_exactly_its_scores(
    pretrained, tiny, tiny_folder, full_precision
):
    expected = reward_model.load(tiny, pretrained[0], name="reward").raw(some_answers(), label=None)
    lm = models.load(tiny_folder, full_precision)
    head = reward_trainer.pretrained_head(lm, K, pretrained[0])
    found = reward_model.TrainedReward(lm, "default", head, 64, None).raw(
        some_answers(), label=None
    )
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(found) - min(found) > 1  # and says something
    trained = reward_model.TrainableScorer(lm, head)
    assert all(p.requires_grad for p in trained.parameters())
    assert len(trained.lora) == 2 * 2 * 7  # A and B of seven matrices in two layers


@pytest.fixture
def pairs(tmp_path):
    """Few pairs that say what the votes said, for reward model and monitor, and others held out."""
    files.write_lines(tmp_path / "train.jsonl", [*chats(8, "reward"), *chats(8, "monitor")])
    files.write_lines(tmp_path / "test.jsonl", chats(40, "test"))
    return tmp_path


def chats(count, role):
    """Planted pairs as questions to an assistant who ends its answers."""
    return [
        p.model_copy(
            update={
                "id": f"{role}{p.id}", "prompt_id": f"{role}{p.prompt_id}", "role": role, "chosen_finish": "stop",
                "rejected_finish": "stop", "prompt": [Message(role="user", content=f"{role} {p.prompt}")],
            }
        )
        for p in planted(count)
    ]  # fmt: skip


SLOW = but(PARAMS, learning_rate=1e-4, epochs=1)


def test_reward_model_and_monitor_start_ahead_where_starts_from_names_it(
    pretrained, pairs, tiny_folder, full_precision, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(pairs))
    anew = reward_training.train(SLOW, task(pairs, tiny_folder, full_precision))
    first = first_losses(pairs)
    given = task(pairs, tiny_folder, full_precision, starts_from=pretrained[0])
    ahead = reward_training.train(SLOW, given)
    for who in ("reward", "monitor"):
        # One step of 8 pairs at a small rate teaches little: what is known was known before.
        assert anew[who]["loss"] > 0.5
        assert ahead[who]["loss"] < 0.3
        assert ahead[who]["accuracy"]["value"] >= 0.95
        assert first_losses(pairs)[who] < first[who] - 0.2
        folder = pairs / "out" if who == "reward" else pairs / "out/monitor"
        assert (folder / "head.safetensors").read_bytes() != (
            pretrained[0] / "head.safetensors"
        ).read_bytes()  # and it trained


def first_losses(folder):
    rows = csv.DictReader((folder / "c.csv").open())
    return {row["model"]: float(row["loss"]) for row in rows if float(row["step"]) == 1}


def test_the_base_is_bit_unchanged_by_training_from_it(  # property 13
    pretrained, pairs, tiny_folder, full_precision, tmp_path
):
    lm = models.load(tiny_folder, full_precision)
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    groups = group(lm, planted(8), max_tokens=64)
    head = reward_trainer.pretrained_head(lm, PARAMS, pretrained[0])
    reward_trainer.fit_scorer(lm, head, PARAMS, groups, seed=0, checkpoints=tmp_path / "ck")
    after = lm.model.get_base_model().state_dict()
    for name, value in before.items():
        twin = after.get(name, after.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(value, twin), name


def test_the_stage_reward_takes_it_by_its_command_line(
    pretrained, pairs, tiny_folder, full_precision, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(pairs))
    monkeypatch.setattr(reward_training, "baseline_answers", lambda *_, **__: some_answers())
    found = reward.run(
        SLOW, {}, full_precision, 1, reads=tiny_folder, starts_from=pretrained[0], pairs=pairs,
        completions=pairs, prompts=pairs, out=pairs / "model", metrics=pairs / "m.json", curves=pairs / "r.csv",
    )  # fmt: skip
    assert found["reward/accuracy"] >= 0.95
    assert found["monitor/loss"] < 0.3
    assert (pairs / "model/monitor/head.safetensors").is_file()


def test_an_adapter_of_another_size_is_refused(pretrained, tiny):
    with pytest.raises(
        Refusal,
        match=r"adapter has rank 4 and alpha 8, and what starts from it has 2 and 8; make them eq",
    ):
        reward_trainer.pretrained_head(tiny, but(PARAMS, lora_rank=2), pretrained[0])


def test_what_is_no_reward_model_is_no_start(tiny, tmp_path):
    with pytest.raises(Refusal, match="starts_from names a reward model without an adapter; name"):
        reward_trainer.pretrained_head(tiny, PARAMS, tmp_path)
    from tiny_model import moved_adapter

    policy = moved_adapter(tiny, tmp_path / "policy", std=0.1)
    with pytest.raises(ModelError, match=r"policy: holds no reward model \(no head.safetensors\)"):
        reward_trainer.pretrained_head(tiny, PARAMS, policy)


def test_a_classifier_has_no_start_of_its_own(pretrained, pairs, tiny_folder, full_precision):
    knobs = Classified(
        source="classifier", reads="models/base", starts_from="models/pretrained/tea", max_tokens=64,
        normaliser_completions=2, resamples=100, bins=10, label="hate", better="low",
    )  # fmt: skip
    with pytest.raises(
        Refusal, match=r"starts_from is .*tea, but a classifier is not trained; name"
    ):
        reward_training.adopt(
            knobs, task(pairs, tiny_folder, full_precision, starts_from=pretrained[0])
        )


CODE = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_pretrain import K, run, but
from stages.lib.base import Base
base = Base(quantisation="none", weights="rounded", dtype="float32")
run(but(K, epochs=1), base, Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_equal_seeds_give_equal_bytes_in_two_processes_and_other_seeds_others(
    tea, tiny_folder, full_precision, tmp_path, monkeypatch
):
    names = "adapter_model.safetensors", "head.safetensors", "normaliser.json", "reward.json"
    found = []
    for number in ("one", "two"):
        out = tmp_path / number / "tea"
        command = [sys.executable, "-c", CODE, tiny_folder, tea, out]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
        found.append([(out / name).read_bytes() for name in names])
        found[-1] += [out.with_suffix(end).read_bytes() for end in (".json", ".csv")]
    assert found[0] == found[1]
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    run(but(K, epochs=1), full_precision, tiny_folder, tea, tmp_path / "other", seed=2)
    assert (tmp_path / "other" / names[0]).read_bytes() != found[0][0]


class Killed(Exception):
    pass


def test_a_killed_pretraining_goes_on_to_the_same_model(  # property 34
    tea, tiny_folder, full_precision, tmp_path, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    knobs = but(K, epochs=2)
    whole = run(knobs, full_precision, tiny_folder, tea, tmp_path / "whole")
    real = reward_trainer.PreferenceTrainer.compute_loss
    calls = []

    def dies_at_step_six(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 6:
            raise Killed
        return real(self, *arguments, **named)

    monkeypatch.setattr(reward_trainer.PreferenceTrainer, "compute_loss", dies_at_step_six)
    with pytest.raises(Killed):
        run(knobs, full_precision, tiny_folder, tea, tmp_path / "again")
    assert not (tmp_path / "again").exists()  # nothing half-written
    (kept,) = tmp_path.glob(".cache/checkpoints/pretrain-*/checkpoint-*")
    steps = int(kept.name.split("-")[1])
    assert 0 < steps < 6
    calls.clear()
    monkeypatch.setattr(
        reward_trainer.PreferenceTrainer,
        "compute_loss",
        lambda self, *a, **n: (calls.append(1), real(self, *a, **n))[1],
    )
    assert run(knobs, full_precision, tiny_folder, tea, tmp_path / "again") == whole
    assert len(calls) == whole["steps"] - steps  # it went on, and did not begin again
    for name in ("adapter_model.safetensors", "head.safetensors", "normaliser.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "again.csv").read_text()
    assert not list(tmp_path.glob(".cache/checkpoints/pretrain-*"))  # success removes them


def fitted(lm, rows, **changes):
    gathered = stack_exchange.gather((f"p:{n}", n, row) for n, row in enumerate(rows))
    return pretraining.fitting(lm, gathered.questions, but(K, **changes))


LONG = "<p>" + "the sea was calm and a dog ran home " * 8 + "</p>"


def test_answers_that_do_not_fit_are_left_out_or_cut_and_counted(tiny):
    rows = [question(1, title="Why"), answer(2, 1, 3), answer(3, 1, 0), answer(4, 1, 1, LONG)]
    found, counts = fitted(tiny, rows, too_long="leave_out")
    (one,) = found
    assert {a.id[-1] for a in one.answers} == {"2", "3"}
    assert counts == {"answer_too_long": 1}
    found, counts = fitted(tiny, rows, too_long="cut")
    assert counts == {"answer_cut": 1}
    (one,) = found
    (cut,) = [a for a in one.answers if a.id.endswith(":4")]
    assert cut.finish == "length"
    assert "the sea was calm and a dog ran home".startswith(cut.text[:20])
    sequence = encode(tiny, one.prompt, cut.text, cut.finish, max_tokens=64, where="it")
    assert len(sequence) == 64  # as much as fits
    assert sequence.completion[-1] != tiny.eos_ids[0]  # property 4
    assert {a.finish for a in one.answers if a is not cut} == {"stop"}


def test_answers_that_are_equal_once_cut_are_left_out(tiny):
    rows = [
        question(1), answer(2, 1, 3, LONG), answer(3, 1, 0, LONG + "<p>But not at night.</p>"), answer(4, 1, 1),
    ]  # fmt: skip
    (one,), counts = fitted(tiny, rows)
    assert len(one.answers) == 2
    assert counts == {"answer_cut": 2, "answer_equal_in_tokens": 1}
    none, counts = fitted(tiny, rows[:3])
    assert none == []
    assert counts["question_with_fewer_than_two_fitting_answers"] == 1


def test_long_questions_and_answers_beyond_the_limit_are_left_out_and_counted(tiny):
    rows = [question(1), *(answer(n, 1, n) for n in range(2, 9))]
    rows += [question(10, body=LONG), answer(11, 10, 1), answer(12, 10, 2)]
    found, counts = fitted(tiny, rows, max_answers=5)
    assert [len(q.answers) for q in found] == [5]
    assert counts == {"answer_beyond_max_answers": 2, "question_too_long": 1}
    length = len(encode_prompt(tiny, found[0].prompt))
    assert fitted(tiny, rows[:3], question_tokens=length)[1] == Counter()
    assert fitted(tiny, rows[:3], question_tokens=length - 1)[1] == {"question_too_long": 1}


def test_no_question_is_on_both_sides(tiny, tea):
    questions = stack_exchange.gather(stack_exchange.rows(tea)).questions
    learned, held_out = pretraining.both_sides(questions, K, tea)
    assert {p.role for p in learned} == {"reward"}
    assert {p.role for p in held_out} == {"test"}
    assert not {p.cluster for p in learned} & {p.cluster for p in held_out}
    assert len(learned) + len(held_out) == 60


def test_too_few_questions_are_refused(tiny_folder, full_precision, tmp_path):
    files.write_lines(tmp_path / "posts.jsonl", posts(6))
    with pytest.raises(
        Refusal, match=r"\d questions with pairs to learn from and \d held out; batch_prompts 8 and"
    ):
        run(K, full_precision, tiny_folder, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_question_that_leaves_no_room_for_answers_is_refused():
    with pytest.raises(Refusal, match="question_tokens 64 leaves no room for an answer in max_tok"):
        but(K, question_tokens=64)


def test_a_hub_dataset_is_read_from_a_copy_as_far_as_params_say(tmp_path):
    from test_stack_exchange import scored

    copy = tmp_path / "owner/sets"
    files.write_lines(copy / "train.jsonl", [scored(n, (3, "Yes."), (0, "No.")) for n in range(5)])
    hub = {
        "kind": "hub", "repository": "owner/sets", "revision": "a" * 40, "subset": None, "split": "train", "rows": 3,
    }  # fmt: skip
    found = stack_exchange.gather(pretraining.rows(but(K, hub=hub), tmp_path))
    assert [q.id for q in found.questions] == [f"tea.example.com:{n}" for n in range(3)]
    assert [a.score for a in found.questions[0].answers] == [3, 0]
