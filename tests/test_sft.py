"""Fine-tuning on demonstrations, and what starts from a policy that was."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from test_ppo import P, but
from test_reward import planted as pairs
from tiny_online import SFT as S
from tiny_online import asks, demonstration

from stages import align
from stages.lib import likelihood, models, neighbours
from stages.lib.algorithms import dpo, ppo, sft
from stages.lib.algorithms.ppo import rollouts
from stages.lib.algorithms.sft import trainer as sft_trainer
from stages.lib.records import Demonstration, SourcePrompt
from stages.lib.runtime import files
from stages.lib.runtime.processes import total
from stages.lib.runtime.schema import Refusal


def test_it_learns_what_held_out_answers_have_in_common(sft_task, tmp_path):
    found = sft.train(S, sft_task)
    assert found["demonstrations"] + found["held_out_n"] == 40
    assert found["held_out_loss_after"] < found["held_out_loss_before"] - 1
    assert found["held_out_change"] == pytest.approx(
        found["held_out_loss_after"] - found["held_out_loss_before"]
    )
    assert found["held_out_change_low"] <= found["held_out_change"] < 0
    assert found["held_out_change_high"] < 0
    rows = list(csv.DictReader((tmp_path / "sft.csv").open()))
    assert len(rows) == found["steps"] == 4 * math.ceil(found["demonstrations"] / 4)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 1


def test_the_loss_is_that_of_the_answers_tokens_eos_included(tiny):  # properties 1, 7
    some = [demonstration(1), demonstration(2, answer=" and then it rained for a long time.")]
    given = sft_trainer.sequences(tiny, some, max_tokens=64)
    assert all(s.completion[-1] == tiny.eos_ids[0] for s in given)
    total = count = 0
    for one in given:
        ids = torch.tensor([one.ids])
        logps = tiny.model(ids).logits[0, :-1].log_softmax(-1)
        for at in range(len(one.prompt), len(one.ids)):
            total -= logps[at - 1, one.ids[at]].item()
            count += 1
    trainer = sft_trainer.AnswerTrainer.__new__(sft_trainer.AnswerTrainer)
    trainer._lm = tiny
    loss = trainer.compute_loss(None, {"sequences": given})
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


def test_what_is_held_out_does_not_depend_on_what_is_added(sft_task):
    some = [demonstration(n) for n in range(20)]
    learned, held_out = sft.divided(some, 0.3)
    more_learned, more_held_out = sft.divided(some + [demonstration(n) for n in range(20, 60)], 0.3)
    assert {d.id for d in learned} <= {d.id for d in more_learned}
    assert {d.id for d in held_out} <= {d.id for d in more_held_out}
    assert 0.15 < len(more_held_out) / 60 < 0.45


def test_an_answer_to_a_prompt_that_policies_are_judged_on_is_refused(sft_task, tmp_path):
    judged = SourcePrompt(
        id="x", form="continuation", category="insult", source="t", text="number 2  said to TEST"
    )
    files.write_lines(
        tmp_path / "demos.jsonl",
        [*(demonstration(n) for n in range(40)), Demonstration(**judged.model_dump(), answer=" a")],
    )
    with pytest.raises(Refusal, match="demonstration x answers test prompt test2; leave it out"):
        sft.train(S, sft_task)


def test_too_few_demonstrations_are_refused(sft_task, tmp_path):
    files.write_lines(tmp_path / "demos.jsonl", [demonstration(n) for n in range(3)])
    with pytest.raises(Refusal, match=r"demos.jsonl: \d demonstrations to learn from and \d held"):
        sft.train(S, sft_task)


def reference_logps(task, sequences):
    """By a model of its own that holds nothing but the policy that training after_sft from."""
    lm = models.load(task.base_folder, task.base)
    with torch.no_grad():
        base = likelihood.sequence_logps(lm, sequences)
        models.load_adapter(lm, task.starts_from, name="alone")
        with models.adapter(lm, "alone"):
            return likelihood.sequence_logps(lm, sequences), base


def test_ppo_that_starts_from_it_has_it_as_reference(after_sft):  # properties 9, 12, 13
    lm = after_sft.open_with_adapter(P)
    roles = ppo._roles(lm, P, after_sft)
    found = rollouts.roll_out(roles, asks(lm)[:4], P, total, beta=0.5, seed=1)
    for part in found.parts:
        assert part.k1_N.abs().max() < 1e-6
        rows = part.mask_BT.nonzero()[:, 0]
        sums = torch.zeros(len(part.sequences)).index_add(0, rows, part.reference_logp_N)
        expected, base = reference_logps(after_sft, part.sequences)
        assert torch.allclose(sums, expected, atol=1e-4)
        assert (sums - base).abs().max() > 0.5
    before = {k: p.clone() for k, p in lm.model.named_parameters() if ".reference." in k}
    done = ppo.train(but(P, kl__beta=0.1), after_sft)
    assert done["steps"] == 4
    after = dict(lm.model.named_parameters())
    assert before
    assert all(torch.equal(p, after[k]) for k, p in before.items())


def test_dpo_that_starts_from_it_has_it_as_reference(after_sft, tmp_path):  # properties 9, 12
    train = pairs(16, role="align")
    held_out = [
        p.model_copy(update={"role": "validation", "prompt": f"Another {p.id}", "prompt_id": f"v{p.id}"})
        for p in pairs(4)
    ]  # fmt: skip
    files.write_lines(tmp_path / "pairs/train.jsonl", train)
    files.write_lines(tmp_path / "pairs/validation.jsonl", held_out)
    knobs = dpo.Dpo(
        algorithm="dpo", starts_from="models/policies/sft", learns_from="data/pairs", prompts="data/pairs", snapshots=0, seed=None, anchor=None, labels="given",
        beta=0.1, loss="sigmoid", label_smoothing=0.0, lora_rank=4, lora_alpha=8, learning_rate=5e-3, warmup=0.0,
        epochs=2, batch_prompts=8, max_pairs_per_prompt=3, max_grad_norm=1.0, max_tokens=64,
    )  # fmt: skip
    found = dpo.train(
        knobs, replace(after_sft, data=tmp_path / "pairs", prompts=tmp_path / "pairs")
    )
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert float(rows[0]["loss"]) == pytest.approx(math.log(2), abs=1e-4)
    assert float(rows[-1]["loss"]) < math.log(2) - 0.05
    assert found["implicit_accuracy"] == 1.0
    saved = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert saved["r"] == 4
    # The first step was taken from the policy, not from the base: its likelihoods at the start
    sequences = sft_trainer.sequences(
        models.load(after_sft.base_folder, after_sft.base), [demonstration(1)], max_tokens=64
    )
    start, base = reference_logps(after_sft, sequences)
    end, _ = reference_logps(replace(after_sft, starts_from=tmp_path / "out"), sequences)
    assert abs(end - start) < abs(end - base)


def test_an_adapter_of_another_size_is_refused(after_sft):
    with pytest.raises(
        Refusal, match="adapter has rank 4 and alpha 8, and what starts from it has 2 and 8"
    ):
        after_sft.open(but(P, lora_rank=2))


def test_a_policy_without_an_adapter_is_no_start(after_sft, tmp_path):
    (tmp_path / "baseline").mkdir()
    with pytest.raises(Refusal, match="starts_from names a policy without an adapter"):
        replace(after_sft, starts_from=tmp_path / "baseline").open(P)


def test_the_entry_in_params_reaches_the_algorithm(sft_task, tmp_path):
    out = tmp_path / "policy"
    found = align.run(
        S, sft_task.base, 1, name="sft", base_folder=sft_task.base_folder, starts_from=sft_task.base_folder, data=sft_task.data,
        prompts=sft_task.prompts, neutral=sft_task.neutral, out=out, metrics=tmp_path / "m.json", curves=tmp_path / "c.csv",
    )  # fmt: skip
    assert json.loads((out / "policy.json").read_text())["algorithm"] == "sft"
    kind = {"objective": "imitation", "answers": "offline"}
    assert json.loads((tmp_path / "m.json").read_text()) == kind | found


def test_the_shipped_demonstrations_answer_no_shipped_prompt():
    from graph import ROOT

    ours = files.read_lines(ROOT / "data/sources/demonstrations.jsonl", Demonstration)
    assert len(ours) >= 150
    prompts = [
        p
        for file in sorted((ROOT / "data/sources/prompts").glob("*.jsonl"))
        for p in files.read_lines(file, SourcePrompt)
    ]
    both = [*ours, *prompts]
    texts = [neighbours.normalise(p.plain()) for p in both]
    found = neighbours.clusters([p.id for p in both], texts, threshold=0.6)
    assert len(set(found[: len(ours)])) == len(ours)  # nor one another's
    assert not set(found[: len(ours)]) & set(found[len(ours) :])
