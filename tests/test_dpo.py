"""DPO through TRL on whole prompts: gradients, resume, and what must not move."""

import csv
import math
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from test_reward import pair, planted

from stages import align
from stages.lib import likelihood, losses, models, snapshots
from stages.lib.algorithms import dpo
from stages.lib.algorithms.dpo import trainer as dpo_trainer
from stages.lib.groups import collate, group
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal

P = dpo.Dpo(
    algorithm="dpo", starts_from="models/base", learns_from="data/pairs", prompts="data/pairs", snapshots=3, seed=None, anchor=None, labels="given", beta=0.1, loss="sigmoid", label_smoothing=0.0, lora_rank=4,
    lora_alpha=8, learning_rate=5e-3, warmup=0.0, epochs=2, batch_prompts=8, max_pairs_per_prompt=3,
    max_grad_norm=1.0, max_tokens=64,
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "pairs"
    files.write_lines(folder / "train.jsonl", planted(32, role="align") + planted(4, role="reward"))
    held_out = [
        p.model_copy(
            update={"role": "validation", "prompt": f"Another {p.id}", "prompt_id": f"v{p.id}"}
        )
        for p in planted(8)
    ]
    files.write_lines(folder / "validation.jsonl", held_out)
    return folder


def train(policy, base, tiny_folder, data, out, seed=0):
    return align.run(
        policy, base, seed, name="dpo", base_folder=tiny_folder, starts_from=tiny_folder, data=data,
        prompts=data, neutral=data.parent / "neutral.jsonl", out=out,
        metrics=out.with_suffix(".json"), curves=out.with_suffix(".csv"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_dpo_learns_the_planted_word(tiny_folder, full_precision, data, tmp_path):  # property 31
    found = train(P, full_precision, tiny_folder, data, tmp_path / "dpo")
    assert found["implicit_accuracy"] == 1.0
    assert found["implicit_accuracy_n"] == 8
    assert found["pairs"] == 32  # the four pairs of role reward are not learnt from
    rows = list(csv.DictReader((tmp_path / "dpo.csv").open()))
    assert float(rows[0]["loss"]) == pytest.approx(math.log(2), abs=1e-4)  # property 9
    assert float(rows[-1]["loss"]) < 0.45
    assert [int(float(r["step"])) for r in rows] == list(range(1, 9))  # 32 prompts / 8 x 2 epochs
    lm = models.load(tiny_folder, full_precision)
    models.load_adapter(lm, tmp_path / "dpo", name="policy")
    good, _awful = (group(lm, [p], max_tokens=64)[0] for p in planted(2))
    with torch.no_grad():
        with models.adapter(lm, None):
            before = likelihood.sequence_logps(lm, list(good.sequences))
        with models.adapter(lm, "policy"):
            after = likelihood.sequence_logps(lm, list(good.sequences))
    assert (after - before)[0] > (after - before)[1]  # chosen rose against rejected


def test_same_seed_same_adapter_other_seed_another(
    tiny_folder, full_precision, data, tmp_path
):  # property 35
    found = [
        train(P, full_precision, tiny_folder, data, tmp_path / name, seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert found[0] == found[1]
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_adapter(
    tiny_folder, full_precision, data, tmp_path, monkeypatch
):  # property 34
    whole = train(P, full_precision, tiny_folder, data, tmp_path / "whole")
    real = dpo_trainer.GroupedDPOTrainer._compute_loss
    calls = []

    def dies_at_step_six(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(dpo_trainer.GroupedDPOTrainer, "_compute_loss", dies_at_step_six)
    with pytest.raises(Killed):
        train(P, full_precision, tiny_folder, data, tmp_path / "again")
    assert not (tmp_path / "again").exists()  # nothing half-written
    assert list(tmp_path.glob(".cache/checkpoints/align-dpo-*/checkpoint-4"))
    monkeypatch.setattr(dpo_trainer.GroupedDPOTrainer, "_compute_loss", real)
    resumed = train(P, full_precision, tiny_folder, data, tmp_path / "again")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert resumed == whole
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "again.csv").read_text()
    assert not list(tmp_path.glob(".cache/checkpoints/align-dpo-*"))  # success removes them
    # of 8 steps, kept before the kill (2, 4) and after it (6)
    one, two = snapshots.kept(tmp_path / "whole"), snapshots.kept(tmp_path / "again")
    assert list(one) == list(two) == [2, 4, 6]
    states = [[weights(folder) for folder in own.values()] for own in (one, two)]
    for ours, theirs in zip(*states, strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not all(torch.equal(states[0][0][k], states[0][1][k]) for k in states[0][0])


def test_shuffled_labels_teach_nothing_of_what_was_labelled(
    tiny_folder, full_precision, data, tmp_path
):
    control = P.model_copy(update={"labels": "shuffled", "snapshots": 0})
    found = train(control, full_precision, tiny_folder, data, tmp_path / "shuffled")
    assert found["pairs"] == 32
    assert (
        0.1 < found["implicit_accuracy"] < 0.9
    )  # held-out labels are given ones; theirs teach 1.0
    assert not (tmp_path / "shuffled/snapshots").exists()


def test_a_label_is_shuffled_by_the_pairs_id_and_the_seed_and_loses_no_text():
    given = planted(200)
    found = [dpo.shuffled(p, seed=1) for p in given]
    turned = [a.chosen == b.rejected for a, b in zip(given, found, strict=True)]
    assert 70 < sum(turned) < 130  # half of 200, with a standard deviation of 7
    for before, after in zip(given, found, strict=True):
        ours, theirs = (
            {
                (p.chosen_id, p.chosen, p.chosen_finish),
                (p.rejected_id, p.rejected, p.rejected_finish),
            }
            for p in (before, after)
        )
        assert ours == theirs
        assert dpo.shuffled(before, seed=1) == after
    assert [dpo.shuffled(p, seed=2) for p in given] != found


def test_a_checkpoint_cut_short_is_passed_over(
    tiny_folder, full_precision, data, tmp_path, monkeypatch
):
    whole = train(P, full_precision, tiny_folder, data, tmp_path / "whole")
    from stages.lib import training

    folder = tmp_path / "ck"
    monkeypatch.setattr(training, "_checkpoint_folder", lambda *_: folder)
    (folder / "checkpoint-4").mkdir(parents=True)  # the kill hit the save
    assert train(P, full_precision, tiny_folder, data, tmp_path / "again") == whole


def test_other_inputs_never_share_checkpoints(data, tmp_path):
    from stages.lib import training

    one = training._checkpoint_folder("align", P, data)
    assert one == training._checkpoint_folder("align", P, data)
    assert one != training._checkpoint_folder("align", P.model_copy(update={"beta": 0.2}), data)
    (data / "train.jsonl").write_text("")
    assert one != training._checkpoint_folder("align", P, data)


def test_two_trainings_on_the_same_inputs_take_turns(tmp_path, monkeypatch, capsys):
    # Two queued experiments that share a stage both run it, and would share its checkpoints.
    from stages.lib import training

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    inside, seen = threading.Event(), []

    def first():
        with training.checkpoints("align-dpo", P) as folder:
            folder.mkdir(parents=True)
            inside.set()
            time.sleep(0.5)
            seen.append("first")

    def second():
        with training.checkpoints("align-dpo", P) as folder:
            seen.append("second")
            assert not folder.exists()  # a training of its own, not the end of the other

    threads = [threading.Thread(target=one) for one in (first, second)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    for one in threads:
        one.join(timeout=20)
    assert seen == ["first", "second"]
    expected = "another process trains align-dpo on the same inputs; waiting\n"
    assert capsys.readouterr().out == expected


def test_the_loss_and_gradient_equal_trls_own_on_hard_labels(
    tiny, tiny_folder, full_precision, tmp_path
):  # property 42
    """The subclass against stock TRL on the same tokens: one batch, hard labels, equal weights."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pairs = planted(8, role="align")
    groups = group(tiny, pairs, max_tokens=64)
    reference = dpo_trainer.group_logps(tiny, groups, label="reference")
    ours = dpo_trainer.GroupedDPOTrainer(
        tiny, P, groups, reference, seed=0, checkpoints=tmp_path / "o"
    )

    class Stock(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    rows = [
        {
            "prompt_ids": list(g.sequences[0].prompt),
            "chosen_ids": list(g.sequences[0].completion),
            "rejected_ids": list(g.sequences[1].completion),
        }
        for g in groups
    ]
    theirs_lm = models.load(tiny_folder, full_precision)
    stock = Stock(
        model=theirs_lm.model,
        args=DPOConfig(
            output_dir=str(tmp_path / "s"),
            beta=0.1,
            seed=0,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=theirs_lm.tokenizer,
        peft_config=models.lora_config(rank=4, alpha=8),
    )
    for trainer in (ours, stock):
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    own_loss = ours._compute_loss(
        ours.model, ours._collate([{"index": i} for i in range(8)]), False
    )
    stock_loss = stock._compute_loss(stock.model, stock.data_collator(rows), False)
    assert own_loss.item() == pytest.approx(stock_loss.item(), abs=1e-5)
    assert abs(own_loss.item() - math.log(2)) > 1e-3  # not merely both at the start
    own_loss.backward()
    stock_loss.backward()
    twin = dict(stock.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, twin[name].grad, atol=1e-6, rtol=1e-3)


def test_precomputed_reference_logps_are_those_of_the_base_with_adapters_off(
    tiny, tmp_path
):  # property 42
    groups = group(tiny, planted(6, role="align"), max_tokens=64)
    reference = dpo_trainer.group_logps(tiny, groups, label="reference")
    trainer = dpo_trainer.GroupedDPOTrainer(
        tiny, P, groups, reference, seed=0, checkpoints=tmp_path / "o"
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        with models.adapter(tiny, None):
            for one in groups:
                found = likelihood.sequence_logps(tiny, list(one.sequences))
                torch.testing.assert_close(found, reference[one.prompt_id], atol=1e-4, rtol=1e-5)


def test_weights_and_soft_labels_reach_the_loss(tiny):
    pairs = [pair(1, chosen=" a", rejected=" b", p=0.75), pair(2, chosen=" c", rejected=" d")]
    pairs[1] = pairs[1].model_copy(update={"weight": 0.5})
    batch = collate(group(tiny, pairs, max_tokens=64))
    logps = torch.tensor([1.0, 0.0, 0.0, 2.0])
    found, margins = dpo_trainer.pair_losses(P, logps, torch.zeros(4), batch)
    # margins 1 and -2, beta 0.1: m = 0.1, -0.2
    # soft: 0.75 log(1 + e^-0.1) + 0.25 log(1 + e^0.1) = 0.75 * 0.644397 + 0.25 * 0.744397 = 0.669397
    # hard: log(1 + e^0.2) = 0.798139;  weighted: (0.669397 + 0.5 * 0.798139) / 1.5 = 0.712311
    assert margins.tolist() == [1.0, -2.0]
    assert losses.weighted_mean(found, batch.weight_P).item() == pytest.approx(0.712311, abs=1e-5)


def test_the_widest_pairs_of_a_prompt_are_kept(tiny):
    pairs = [
        pair(n, prompt="P", chosen=f" good {n}", rejected=f" bad {n}", margin=m)
        for n, m in enumerate((1.0, 3.0, 2.0))
    ]
    (one,) = group(tiny, pairs, max_tokens=64, max_pairs=2)
    assert [p.margin for p in one.pairs] == [3.0, 2.0]


def test_no_pairs_for_alignment_is_refused(tiny_folder, full_precision, tmp_path):
    files.write_lines(tmp_path / "d/train.jsonl", planted(4, role="reward"))
    files.write_lines(tmp_path / "d/validation.jsonl", [])
    with pytest.raises(Refusal, match=r"no pairs of role align; raise prompts.split.shares.align"):
        train(P, full_precision, tiny_folder, tmp_path / "d", tmp_path / "out")


def test_a_pair_of_the_same_tokens_is_refused(tiny):
    same = pair(1, chosen=" a", rejected=" a b").model_copy(update={"rejected": " a"})
    with pytest.raises(RecordError, match="pair p1: chosen and rejected are the same tokens"):
        group(tiny, [same], max_tokens=64)


def test_no_training_writes_a_policy_without_an_adapter(tiny_folder, full_precision, tmp_path):
    from stages.lib.algorithms.none import NoTraining

    policy = NoTraining(
        algorithm="none",
        starts_from="models/base",
        learns_from="models/base",
        prompts="models/base",
        quantised=False,
    )
    found = train(policy, full_precision, tiny_folder, tiny_folder, tmp_path / "baseline")
    assert found["steps"] == 0
    assert sorted(p.name for p in Path(tmp_path / "baseline").iterdir()) == ["policy.json"]
    shutil.rmtree(tmp_path / "baseline")
