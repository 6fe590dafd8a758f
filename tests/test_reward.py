"""The reward model: trained, saved, loaded, measured."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_model import classifier

from stages.lib import losses, models, reward_model, reward_quality, reward_training
from stages.lib.groups import collate, group
from stages.lib.models import ModelError
from stages.lib.records import Completion, Pair, Prompt
from stages.lib.reward_model import Answer, Head, Normaliser
from stages.lib.reward_trainer import fit_scorer, new_head, probe
from stages.lib.reward_training import Task, Trained
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal
from stages.lib.tokens import TokenSequence

# The probe alone would find the planted word: held small, it leaves training something to learn.
PARAMS = Trained(
    source="trained", reads="models/base", starts_from="models/base", max_tokens=64, normaliser_completions=10, resamples=100, bins=10,
    roles=["reward"], probe_l2=1.0, lora_rank=4, lora_alpha=8, learning_rate=5e-3, warmup=0.0, epochs=6, batch_prompts=8, max_grad_norm=1.0,
)  # fmt: skip


def pair(
    number, *, chosen, rejected, prompt=None, p=1.0, role="reward", margin=1.0, criterion="harmless"
):
    prompt = prompt or f"Tale {number}:"
    return Pair(
        id=f"p{number}", prompt_id=prompt.replace(" ", "-"), cluster=prompt.replace(" ", "-"), role=role,
        category="insult", criterion=criterion, prompt=prompt, chosen_id=f"c{number}", rejected_id=f"r{number}", chosen=chosen,
        rejected=rejected, chosen_finish="length", rejected_finish="length", p_chosen=p, weight=1.0,
        margin=margin, votes=1, labelers=["words"], junk=False,
    )  # fmt: skip


def planted(count=48, role="reward"):
    """Pairs whose rejected side holds the planted word."""
    fillers = [" the sea was calm", " a dog ran home", " rain came at noon", " she read a book"]
    return [
        pair(
            n,
            chosen=fillers[n % 4] + " and good",
            rejected=fillers[(n + 1) % 4] + " and awful",
            role=role,
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def trained(tiny_folder, full_precision, tmp_path_factory):
    lm = models.load(tiny_folder, full_precision)
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    groups = group(lm, planted(), max_tokens=64)
    head = new_head(lm, PARAMS, groups, seed=0)
    rows = fit_scorer(lm, head, PARAMS, groups, seed=0, checkpoints=tmp_path_factory.mktemp("ck"))
    normal = [Answer(p.prompt, t, "length") for p in planted() for t in (p.chosen, p.rejected)]
    return reward_model.fitted(lm, head, normal, max_tokens=64), rows, before, normal


def test_a_reward_model_learns_a_planted_word(trained):
    scorer, rows, _, _ = trained
    held_out = [
        pair(
            n,
            prompt=f"Other {n}",
            chosen=" the sea ran home and good",
            rejected=" the sea ran home and awful",
        )
        for n in range(20)
    ]
    assert rows[-1]["loss"] < 0.3 < rows[0]["loss"]
    found = reward_quality.measure(scorer, held_out, seed=0, resamples=100, bins=10)
    assert found["accuracy"]["value"] >= 0.95
    assert found["accuracy"]["n"] == 20


def test_the_head_starts_as_the_best_one_on_the_bases_own_states(tiny):
    pairs = [
        pair(n, chosen=f" good {n}", rejected=f" awful {n}", p=0.7 + 0.03 * n) for n in range(8)
    ]
    pairs += [pair(9, chosen=" a", rejected=" b").model_copy(update={"weight": 0.3})]
    groups = group(tiny, pairs, max_tokens=64)
    one, two = Head(64, seed=1), Head(64, seed=2)
    probe(tiny, one, groups, l2=0.01)
    probe(tiny, two, groups, l2=0.01)
    torch.testing.assert_close(one.weight, two.weight)  # of the pairs alone, not of the seed
    batch = collate(groups)
    with torch.no_grad():
        states = reward_model.last_states(tiny, batch.sequences)
    one.requires_grad_(True)
    margins = one(states)[batch.chosen_P] - one(states)[batch.rejected_P]
    fit = losses.weighted_mean(losses.preference_loss(margins, batch.p_chosen_P), batch.weight_P)
    (fit + 0.01 * one.weight.square().sum()).backward()
    assert one.weight.norm() > 0.1
    assert one.weight.grad.norm() < 1e-4  # a convex objective is least where its gradient is zero


def test_states_of_many_are_those_of_each(tiny):
    some = [s for g in group(tiny, planted(5), max_tokens=64) for s in g.sequences]
    with torch.no_grad():
        each = torch.cat([reward_model.last_states(tiny, [s]) for s in some])
    found = reward_model.last_states_of(tiny, some, label="test")
    torch.testing.assert_close(found, each, atol=1e-4, rtol=1e-4)


def test_the_base_is_bit_unchanged_by_training(trained):  # property 13
    scorer, _, before, _ = trained
    after = scorer.lm.model.get_base_model().state_dict()
    for name, value in before.items():
        twin = after.get(name, after.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(value, twin), name


def test_the_normaliser_gives_mean_zero_and_deviation_one_and_changes_no_order(
    trained,
):  # property 22
    scorer, _, _, normal = trained
    values = np.array(reward_model.scores(scorer, normal, label="test"))
    raw = np.array(scorer.raw(normal, label="test"))
    assert values.mean() == pytest.approx(0, abs=1e-6)
    assert values.std() == pytest.approx(1, abs=1e-6)
    assert (np.argsort(values, kind="stable") == np.argsort(raw, kind="stable")).all()


def test_the_score_is_read_at_the_last_real_token_whatever_the_batch(trained):  # property 2
    scorer, _, _, normal = trained
    together = scorer.raw(normal, label="test")
    alone = [scorer.raw([answer], label="test")[0] for answer in normal[:6]]
    assert together[:6] == pytest.approx(alone, abs=1e-5)
    sequence = TokenSequence((5, 6), (7, 8))
    long = TokenSequence((5,) * 20, (7,) * 9)
    with torch.no_grad():
        short_alone = reward_model.last_states(scorer.lm, [sequence])
        padded = reward_model.last_states(scorer.lm, [sequence, long])[:1]
    torch.testing.assert_close(short_alone, padded, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_it_scores_the_same_in_fresh_processes(
    trained, tiny_folder, tmp_path
):  # property 17
    scorer, _, _, normal = trained
    expected = reward_model.scores(scorer, normal[:5], label="test")
    reward_model.save(scorer, tmp_path)
    code = f"""
import json
from pathlib import Path
from stages.lib import models, reward_model
from stages.lib.base import Base
from stages.lib.reward_model import Answer
lm = models.load(Path({str(tiny_folder)!r}), Base(quantisation="none", weights="rounded", dtype="float32"))
answers = [Answer(*a) for a in json.loads({json.dumps([[a.prompt, a.text, a.finish] for a in normal[:5]])!r})]
print(json.dumps(reward_model.scores(reward_model.load(lm, Path({str(tmp_path)!r}), name="reward"), answers, label="x")))
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert json.loads(runs[0]) == pytest.approx(expected, abs=1e-5)


def test_four_bits_keep_the_order_of_scores(trained, tiny_folder, tmp_path):  # property 18
    from scipy.stats import spearmanr

    from stages.lib.base import Base

    scorer, _, _, normal = trained
    reward_model.save(scorer, tmp_path)
    found = []
    for quantised in (True, False):
        lm = models.load(
            tiny_folder,
            Base(quantisation="nf4", weights="rounded", dtype="float32"),
            quantised=quantised,
        )
        found.append(reward_model.load(lm, tmp_path, name="reward").raw(normal, label="test"))
    assert spearmanr(*found).statistic > 0.8


def test_the_head_starts_small_and_stays_float32_under_bfloat16():
    head = Head(575, seed=0)
    # standard deviation 1 / sqrt(575 + 1) = 0.0417; a sample of 575 is within 10 %
    assert head.weight.std().item() == pytest.approx(1 / 24, rel=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.ones(2, 575, dtype=torch.bfloat16)).dtype == torch.float32
    assert torch.equal(Head(8, seed=1).weight, Head(8, seed=1).weight)
    assert not torch.equal(Head(8, seed=1).weight, Head(8, seed=2).weight)


def test_one_pass_over_shared_completions_equals_two_sequences_a_pair(tiny):
    """A prompt's three pairs in one group have the loss and gradient of three separate pairs."""
    three = [
        pair(1, prompt="P", chosen=" a", rejected=" b"), pair(2, prompt="P", chosen=" a", rejected=" c"),
        pair(3, prompt="P", chosen=" b", rejected=" c"),
    ]  # fmt: skip
    texts = {" a": "1", " b": "2", " c": "3"}
    three = [
        p.model_copy(update={"chosen_id": texts[p.chosen], "rejected_id": texts[p.rejected]})
        for p in three
    ]
    models.add_lora(tiny, rank=4, alpha=8, seed=0)
    module = reward_model.TrainableScorer(tiny, Head(64, seed=0))

    def gradient(batches):
        module.zero_grad()
        for batch in batches:
            scores = module(batch.sequences)
            loss = losses.preference_loss(
                scores[batch.chosen_P] - scores[batch.rejected_P], batch.p_chosen_P
            )
            loss.sum().backward()
        return torch.cat(
            [p.grad.flatten().clone() for p in module.parameters() if p.grad is not None]
        )

    together = collate(group(tiny, three, max_tokens=64))
    assert len(together.sequences) == 3
    apart = [collate(group(tiny, [p], max_tokens=64)) for p in three]
    torch.testing.assert_close(gradient([together]), gradient(apart), atol=1e-5, rtol=1e-4)


class Fixed:
    """A scorer with given scores by text."""

    normalise = Normaliser(0.0, 1.0)

    def __init__(self, table):
        self.table = table

    def raw(self, answers, *, label):
        return [self.table[a.text] for a in answers]


def test_accuracy_is_over_pairs_with_ties_half_and_over_prompts_beside():  # properties 38 and 41
    pairs = [
        pair(1, prompt="A", chosen="x", rejected="yy"), pair(2, prompt="A", chosen="x", rejected="zzz"),
        pair(3, prompt="A", chosen="yy", rejected="zzz"), pair(4, prompt="B", chosen="q", rejected="x"),
    ]  # fmt: skip
    # margins: x-yy = 1, x-zzz = 1, yy-zzz = 0 (tie), q-x = -1: (1 + 1 + 0.5 + 0) / 4 = 0.625
    # by prompt: A (1 + 1 + 0.5) / 3 = 0.8333, B 0: mean 0.4167
    # shorter: x<yy, x<zzz, yy<zzz right, q = x in length half: 3.5 / 4 = 0.875
    found = reward_quality.measure(
        Fixed({"x": 1.0, "yy": 0.0, "zzz": 0.0, "q": 0.0}), pairs, seed=0, resamples=200, bins=10
    )
    assert found["accuracy"]["value"] == pytest.approx(0.625)
    assert found["prompt_accuracy"]["value"] == pytest.approx((2.5 / 3) / 2)
    assert found["length_accuracy"]["value"] == pytest.approx(0.875)


def test_accuracy_stands_by_criterion_where_there_are_several():
    # x over yy by harmless (right), yy over x by helpful (wrong), q over x by helpful (right)
    table = {"x": 1.0, "yy": 0.0, "q": 2.0}
    pairs = [
        pair(1, prompt="A", chosen="x", rejected="yy"),
        pair(2, prompt="A", chosen="yy", rejected="x", criterion="helpful"),
        pair(3, prompt="B", chosen="q", rejected="x", criterion="helpful"),
    ]
    draws = {"seed": 0, "resamples": 200, "bins": 10}
    found = reward_quality.measure(Fixed(table), pairs, **draws)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    by = found["by_criterion"]
    assert {name: (own["value"], own["n"]) for name, own in by.items()} == {
        "harmless": (1.0, 1),
        "helpful": (0.5, 2),
    }
    assert "by_criterion" not in reward_quality.measure(Fixed(table), pairs[1:], **draws)


def test_two_criteria_may_order_the_same_two_completions_both_ways(tiny):
    there = pair(1, prompt="P", chosen=" a", rejected=" b")
    back = pair(1, prompt="P", chosen=" b", rejected=" a", criterion="helpful").model_copy(
        update={"id": "p1:helpful", "chosen_id": "r1", "rejected_id": "c1", "weight": 0.25}
    )
    (one,) = group(tiny, [there, back], max_tokens=64)
    batch = collate([one])
    assert len(batch.sequences) == 2  # each completion is encoded once
    # equally sure and wide, so by id
    assert (batch.chosen_P.tolist(), batch.rejected_P.tolist()) == ([0, 1], [1, 0])
    assert batch.weight_P.tolist() == [1.0, 0.25]


def test_a_calibrated_scorer_has_the_error_of_its_null_and_a_confident_one_more():  # property 41
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 0.98, 800)
    won = rng.random(800) < p
    logit = np.log(p / (1 - p))
    table, pairs = {}, []
    for n in range(800):
        winner, loser = (f"a{n}", f"b{n}") if won[n] else (f"b{n}", f"a{n}")
        table[f"a{n}"], table[f"b{n}"] = logit[n], 0.0
        pairs.append(pair(n, chosen=winner, rejected=loser))
    honest = reward_quality.measure(Fixed(table), pairs, seed=0, resamples=100, bins=10)
    loud = reward_quality.measure(
        Fixed({k: 5 * v for k, v in table.items()}), pairs, seed=0, resamples=100, bins=10
    )
    assert honest["ece"] < 2 * honest["ece_null"] < 0.1
    assert loud["ece"] > 2 * loud["ece_null"]


def test_a_model_that_scores_everything_alike_is_refused():
    with pytest.raises(
        ModelError, match="gives all 4 completions one score; it has learnt nothing"
    ):
        Normaliser.fit([0.5] * 4)


def test_the_normaliser_is_fitted_to_the_bases_answers_to_align_prompts(tmp_path):
    prompts = [
        Prompt(
            id=role, form="continuation", category="c", source="s", text=f"{role} text", role=role, cluster=role
        )
        for role in ("align", "reward")
    ]  # fmt: skip
    files.write_lines(tmp_path / "prompts/train.jsonl", prompts)
    for sampler in ("base", "round1"):
        answers = [
            Completion(
                id=f"{p.id}/{sampler}-{index}", prompt_id=p.id, sampler=sampler, index=index, finish="stop",
                text=f" {sampler} {p.id} {index}", tokens=3, logp=-1.0,
            )
            for p in prompts
            for index in range(3)
        ]  # fmt: skip
        files.write_lines(tmp_path / f"completions/{sampler}.jsonl", answers)
    samplers = {
        "base": {"model": "models/base", "adapter": "models/base"},
        "round1": {"model": "models/base", "adapter": "data/rounds/1"},
    }
    places = tmp_path / "completions", tmp_path / "prompts"
    answers = reward_training.baseline_answers(*places, samplers, limit=9)
    assert [a.text for a in answers] == [f" base align {index}" for index in range(3)]
    assert len(reward_training.baseline_answers(*places, samplers, limit=2)) == 2
    samplers["base"]["adapter"] = "data/rounds/0"
    with pytest.raises(Refusal, match="no sampler without an adapter has two of them"):
        reward_training.baseline_answers(*places, samplers, limit=9)


def test_a_folder_without_a_reward_model_is_refused(tiny, tmp_path):
    with pytest.raises(ModelError, match="holds no reward model"):
        reward_model.load(tiny, tmp_path, name="reward")


def test_a_classifiers_logit_is_the_reward(tiny, tiny_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = classifier(tmp_path / "cls", tiny_folder)
    answers = [Answer("p", f" text {n} of mine", "stop") for n in range(5)]
    made = reward_model.ClassifierReward.fit(
        folder, "nothate", better="high", max_tokens=32, normal=answers
    )
    (tmp_path / "reward").mkdir()
    made.save(tmp_path / "reward")
    loaded = reward_model.load(tiny, tmp_path / "reward", name="reward")
    words, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    with torch.no_grad():
        by_hand = [
            (lambda z: (z[0] - z[1]).item())(model(**words(a.text, return_tensors="pt")).logits[0])
            for a in answers
        ]
    assert loaded.raw(answers, label="test") == pytest.approx(by_hand, abs=1e-4)
    assert np.mean(reward_model.scores(loaded, answers, label="test")) == pytest.approx(0, abs=1e-6)
    opposite = reward_model.ClassifierReward.fit(
        folder, "nothate", better="low", max_tokens=32, normal=answers
    )
    assert opposite.raw(answers, label="test") == pytest.approx([-v for v in by_hand], abs=1e-4)


def test_a_class_that_a_classifier_does_not_have_is_refused(tiny_folder, tmp_path):
    from stages.lib.classifier import Classifier

    with pytest.raises(ModelError, match="no class 'toxic'; its classes are nothate, hate"):
        Classifier(classifier(tmp_path / "cls", tiny_folder), "toxic", max_tokens=32)


def test_no_pairs_to_learn_from_is_refused(tmp_path, tiny_folder, full_precision):
    from stages.lib import reward_training
    from stages.lib.runtime import files

    files.write_lines(tmp_path / "train.jsonl", planted(4, role="align"))
    files.write_lines(tmp_path / "test.jsonl", planted(4, role="test"))
    with pytest.raises(
        Refusal, match=r"no pairs of role reward; raise prompts.split.shares.reward"
    ):
        reward_training.train(PARAMS, task(tmp_path, tiny_folder, full_precision))


def task(folder, base_folder, base, **changes):
    """A training on the pairs in a folder, with its results there as well."""
    (folder / "out").mkdir(exist_ok=True)
    given = {
        "base": base, "seed": 0, "reads": base_folder, "starts_from": base_folder, "pairs": folder,
        "normal": [Answer(p.prompt, t, "length") for p in planted() for t in (p.chosen, p.rejected)],
        "out": folder / "out", "curves": folder / "c.csv",
    }  # fmt: skip
    return Task(**given | changes)


def test_the_state_that_is_scored_is_that_of_the_last_real_token(tiny):  # property 2
    # One text is padded on both sides: a shorter prompt, a shorter completion.
    given = [
        TokenSequence((5, 6, 7), (8, 9, tiny.eos_ids[0])),
        TokenSequence((5, 6, 7, 10, 11), (12, 13, 14, 15, 16)),
    ]
    found = reward_model.last_states(tiny, given)
    for state, one in zip(found, given, strict=True):
        alone = tiny.backbone(torch.tensor([one.ids])).last_hidden_state[0, -1]
        assert torch.allclose(state, alone, atol=1e-5)
