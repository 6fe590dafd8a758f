"""Models that score answers: what they are asked, what becomes of it, and the card they leave."""

import json
import math
from pathlib import Path

import pytest
import torch
from synthetic_evaluations import row, write_lines
from tiny_model import classifier as tiny_classifier

from stages import score
from stages.lib import scores
from stages.lib.classifier import Classifier
from stages.lib.constitution import ConstitutionError
from stages.lib.labelers import questions
from stages.lib.model_scorers import classifier, judge, preference
from stages.lib.models import ModelError
from stages.lib.records import Evaluated
from stages.lib.runtime.files import RecordError, read_lines
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import Refusal, check
from stages.lib.snapshots import Snapshot

GUIDE = """
- {id: clear, criterion: helpful, choose: Choose the clearer., critique: "Why?", revise: Do.}
- {id: whole, criterion: helpful, choose: Choose the fuller., critique: "Why?", revise: Do.}
- {id: calm, criterion: harmless, choose: Choose the calmer., critique: "Why?", revise: Do.}
"""
ENTRIES = {
    "preference": {
        "kind": "preference", "reads": "model", "guide": "guide.yaml", "criterion": "helpful",
        "set": "benign", "prompts": None, "form": "plain", "batch_tokens": 1000,
    },
    "judge": {
        "kind": "judge", "reads": "model", "guide": "model", "sets": ["toxic"], "form": "plain",
        "batch_tokens": 1000,
    },
    "classifier": {
        "kind": "classifier", "reads": "classifier", "guide": "classifier", "label": "hate",
        "sets": ["toxic"], "max_tokens": 8, "batch_tokens": 32,
    },
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a constitution."""
    (tmp_path / "guide.yaml").write_text(GUIDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(kind, /, **change):
    return check(ENTRIES[kind] | change, score.Scorer, "params.yaml: scorers.mine", ParamError)


def answer(prompt, text, of="benign", index=0, **changed):
    return Evaluated(**row(prompt, index, set=of, text=text, **changed))


def on_the_way(prompt, text, step, of="toxic"):
    return Snapshot(**row(prompt, 0, set=of, text=text), step=step)


def answering(monkeypatch, p_of):
    """Let `p_of(question)` stand for the model; return the questions that were asked."""
    asked = []

    def probabilities(folder, base, groups, **rest):
        some = [text for group in groups for text in group]
        asked.extend(some)
        return [p_of(text) for text in some]

    monkeypatch.setattr(questions, "probabilities", probabilities)
    return asked


def preferring(scorer, answers, base=None, baseline="baseline"):
    said = preference.score(scorer, base, answers, baseline)
    return {(one.policy, one.prompt_id, one.index): one.score for one in said.scores}, said


# --- a judge of preference ---


def test_a_preference_equals_the_value_worked_by_hand(here, monkeypatch):
    # as (A) the policy's answer gets .7, as (B) 1 - .4: (.7 + .6) / 2 = .65
    asked = answering(monkeypatch, lambda text: 0.7 if "(A) mine" in text else 0.4)
    way = on_the_way("p1", "half mine", step=3, of="benign")  # the last answers alone are compared
    answers = {"baseline": [answer("p1", "theirs")], "dpo": [answer("p1", "mine"), way]}
    found, said = preferring(entry("preference"), answers)
    assert found == {("dpo", "p1", 0): 0.65}
    assert len(asked) == 2
    assert "text of p1" in asked[0]
    assert said.measures["order_flip_rate"] == 0  # .7 and .6 are both for the policy's
    assert said.measures["position_preference"] == pytest.approx(0.55)  # (.7 + .4) / 2


def test_exchanging_policy_and_baseline_gives_one_minus_it(here, tiny_folder, full_precision):
    texts = [("a tall tree", "no"), ("go away", "come in, do"), ("yes", "yes indeed, of course")]
    both = {
        name: [answer(f"p{n}", pair[of]) for n, pair in enumerate(texts)]
        for of, name in enumerate(("one", "other"))
    }
    scorer = entry("preference").model_copy(update={"reads": str(tiny_folder)})
    forward, _ = preferring(scorer, both, full_precision, baseline="one")
    backward, _ = preferring(scorer, both, full_precision, baseline="other")
    assert len(forward) == 3
    for (_, prompt, index), p in forward.items():
        assert p != 0.5
        assert p == pytest.approx(1 - backward["one", prompt, index], abs=2e-6)


def test_equal_texts_are_one_half_without_being_asked(here, monkeypatch):
    asked = answering(monkeypatch, lambda text: 0.9)
    answers = {
        "baseline": [answer("p1", "the same"), answer("p2", "theirs")],
        "dpo": [answer("p1", " the same\n"), answer("p2", "mine")],
    }
    found, said = preferring(entry("preference"), answers)
    assert found == {("dpo", "p1", 0): 0.5, ("dpo", "p2", 0): 0.5}  # p2: (.9 + 1 - .9) / 2
    assert len(asked) == 2
    assert said.texts == 1
    assert said.measures["order_flip_rate"] == 1


def test_where_all_texts_are_equal_no_model_is_asked(here, monkeypatch):
    asked = answering(monkeypatch, lambda text: math.nan)
    answers = {name: [answer("p1", "the same")] for name in ("baseline", "dpo")}
    assert preferring(entry("preference"), answers)[0] == {("dpo", "p1", 0): 0.5}
    assert asked == []


def test_every_policy_is_compared_by_the_same_principle_of_the_criterion(here, monkeypatch):
    asked = answering(monkeypatch, lambda text: 0.5)
    names = [f"p{n}" for n in range(20)]
    answers = {
        who: [answer(name, f"{who} {name}") for name in names] for who in ("baseline", "dpo", "ppo")
    }
    preferring(entry("preference"), answers)
    by = {name: {q.split("\n\n")[2] for q in asked if q.split("text of ")[1].startswith(f"{name}\n")} for name in names}  # fmt: skip
    assert all(len(principles) == 1 for principles in by.values())
    assert set.union(*by.values()) == {"Choose the clearer.", "Choose the fuller."}


def test_the_first_prompts_by_hash_of_the_set_bound_the_cost(here, monkeypatch):
    answering(monkeypatch, lambda text: 0.5)
    few = [f"p{n}" for n in range(6)]
    answers = lambda names: {  # noqa: E731
        who: [*(answer(name, who) for name in names), answer("q", who, of="toxic")]
        for who in ("baseline", "dpo")
    }
    found, _ = preferring(entry("preference", prompts=4), answers(few))
    more, _ = preferring(entry("preference", prompts=4), answers(few[::-1]))
    assert found.keys() == more.keys()
    assert len(found) == 4
    with pytest.raises(
        Refusal, match=r"7 prompts of set benign are asked for, of which 6 are eval"
    ):
        preferring(entry("preference", prompts=7), answers(few))


def test_a_criterion_without_principles_and_an_answer_without_its_like_are_refused(here):
    answers = {
        "baseline": [answer("p1", "a")],
        "dpo": [answer("p1", "b"), answer("p1", "c", index=1)],
    }
    with pytest.raises(ConstitutionError, match="no principle has the criterion brave"):
        preferring(entry("preference", criterion="brave"), answers)
    with pytest.raises(RecordError, match=r"completion 1 of prompt p1 is evaluated for dpo, not"):
        preferring(entry("preference"), answers)


# --- a judge of harm ---


def test_harm_equals_the_value_worked_by_hand(monkeypatch):
    # with harm as (A) .6, with harm as (B) .1: (.6 + 1 - .1) / 2 = .75
    asked = answering(monkeypatch, lambda text: 0.6 if "(A) It does harm." in text else 0.1)
    answers = {"dpo": [answer("p1", "a tree", of="toxic"), answer("p2", "a tree", of="toxic")]}
    said = judge.score(entry("judge"), None, answers, "baseline")
    assert [one.score for one in said.scores] == [0.75, 0.75]
    assert len(asked) == 2  # equal texts are asked about once
    assert not any("text of p1" in text for text in asked)  # the answer alone


def test_exchanging_harm_and_no_harm_gives_one_minus_it(monkeypatch, tiny_folder, full_precision):
    answers = {"dpo": [answer("p1", "go away", of="toxic"), answer("p2", "come in", of="toxic")]}
    scorer = entry("judge").model_copy(update={"reads": str(tiny_folder)})
    one = judge.score(scorer, full_precision, answers, "baseline").scores
    monkeypatch.setattr(judge, "HARMFUL", judge.HARMLESS)
    monkeypatch.setattr(judge, "HARMLESS", "It does harm.")
    other = judge.score(scorer, full_precision, answers, "baseline").scores
    for a, b in zip(one, other, strict=True):
        assert a.score != 0.5
        assert a.score == pytest.approx(1 - b.score, abs=2e-6)


# --- a classifier ---


def test_a_probability_is_the_softmax_of_its_class(tiny_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_classifier(tmp_path / "cls", tiny_folder)
    texts = ["go away", "come in and sit down", "a"]
    found = Classifier(folder, "hate", max_tokens=32).probabilities(texts, batch=2)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        by_hand = [
            model(**words(text, return_tensors="pt")).logits.softmax(-1)[0, 1].item()
            for text in texts
        ]
    assert found == pytest.approx(by_hand, abs=1e-5)
    other = Classifier(folder, "nothate", max_tokens=32).probabilities(texts, batch=3)
    assert [a + b for a, b in zip(found, other, strict=True)] == pytest.approx([1, 1, 1])


def test_classes_that_do_not_exclude_each_other_are_read_one_by_one(tiny_folder, tmp_path):
    several = {"problem_type": "multi_label_classification"}
    folder = tiny_classifier(tmp_path / "cls", tiny_folder, **several)
    model = Classifier(folder, "hate", max_tokens=32)
    with torch.no_grad():
        z = model.model(**model.tokenizer(["go away"], return_tensors="pt")).logits[0, 1].item()
    # the logistic function of its own logit, whatever the other class has
    assert model.probabilities(["go away"], batch=1) == pytest.approx([1 / (1 + math.exp(-z))])


def test_long_answers_are_cut_and_counted_and_states_on_the_way_are_scored(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny_classifier(tmp_path / "classifier", tiny_folder)
    long = "one two three four five six seven eight nine ten"
    rows = [answer("p1", long, of="toxic"), answer("p2", "short", of="toxic"), answer("q", "no")]
    answers = {"baseline": rows, "dpo": [*rows, on_the_way("p1", "go away", step=3)]}
    said = classifier.score(entry("classifier"), None, answers, "baseline")
    assert (said.cut, said.texts) == (1, 3)
    assert [(one.policy, one.prompt_id, one.step) for one in said.scores] == [
        ("baseline", "p1", None), ("baseline", "p2", None),
        ("dpo", "p1", None), ("dpo", "p2", None), ("dpo", "p1", 3),
    ]  # fmt: skip
    assert said.scores[0].score == said.scores[2].score
    with pytest.raises(ModelError, match="no class 'toxic'; its classes are nothate, hate"):
        classifier.score(entry("classifier", label="toxic"), None, answers, "baseline")


# --- the stage ---


def evaluated(folder, **policies):
    for name, rows in policies.items():
        last = [one for one in rows if not isinstance(one, Snapshot)]
        write_lines(
            folder / f"evaluations/{name}/answers.jsonl", [one.model_dump() for one in last]
        )
        way = [one.model_dump() for one in rows if isinstance(one, Snapshot)]
        write_lines(folder / f"evaluations/{name}/snapshots.jsonl", way)


def brought(folder, **source):
    card = {
        "source": {"source": "local", "path": "mine", **source},
        "version": None,
        "licence": "MIT",
    }
    (folder / "identity.json").write_text(
        json.dumps({**card, "files": {"model.safetensors": "ab"}})
    )


def run(scorer, folder, policies=("baseline", "dpo"), baseline="baseline"):
    return score.run(
        scorer, None, dict.fromkeys(policies), baseline, name="mine", reads=Path(scorer.reads),
        guide=Path(scorer.guide), evaluations=folder / "evaluations", out=folder / "scores/mine",
    )  # fmt: skip


def test_the_stage_writes_a_score_of_every_answer_and_a_card(here, tiny_folder):
    tiny_classifier(here / "classifier", tiny_folder)
    brought(here / "classifier")
    rows = [answer("p1", "go away", of="toxic"), answer("q", "yes")]
    evaluated(here, baseline=rows, dpo=[*rows, on_the_way("p1", "come in", step=3)])
    found = run(entry("classifier"), here)
    assert found["scores"] == 3
    assert {"baseline/mean", "dpo/mean", "cut"} <= found.keys()
    table = read_lines(here / "scores/mine/scores.jsonl", scores.Score)
    assert [one.key for one in table] == [
        ("baseline", None, "toxic", "p1", 0), ("dpo", None, "toxic", "p1", 0),
        ("dpo", 3, "toxic", "p1", 0),
    ]  # fmt: skip
    card = scores.read_card(here / "scores/mine")
    assert (card.kind, card.model, card.licence) == ("classifier", "mine", "MIT")
    assert card.revision.startswith("sha256 ")
    assert card.asks == "class 'hate'"
    assert card.reads == "the answer alone, cut at its end after 8 tokens"
    assert (card.texts, card.cut, card.sets) == (2, 0, ["toxic"])


def test_a_hub_models_card_names_repository_and_commit(here, monkeypatch):
    answering(monkeypatch, lambda text: 0.5)
    (here / "model").mkdir()
    brought(here / "model", repository="owner/judge")
    card = json.loads((here / "model/identity.json").read_text()) | {"version": "0a1b2c"}
    del card["source"]["path"]
    (here / "model/identity.json").write_text(json.dumps(card))
    evaluated(here, baseline=[answer("p1", "a", of="toxic")], dpo=[answer("p1", "b", of="toxic")])
    run(entry("judge"), here)
    card = scores.read_card(here / "scores/mine")
    assert (card.model, card.revision) == ("owner/judge", "0a1b2c")


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"sets": ["toxid"]}, {}, r"scorers.mine: no answer belongs to set 'toxid'; there are ben"),
        ({}, {"baseline": "base"}, r"report.baseline is 'base', which is no entry of policies"),
        (
            {},
            {"policies": ("baseline", "ppo")},
            r"evaluations/dpo: params.yaml has no policies.dpo",
        ),
        ({}, {"policies": ("baseline", "dpo", "ppo")}, r"`dvc repro evaluate@ppo` makes it"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_model_is_loaded(here, change, given, message):
    rows = [answer("p1", "a", of="toxic"), answer("q", "b")]
    evaluated(here, baseline=rows, dpo=rows)
    with pytest.raises(Refusal, match=message):
        run(entry("judge", **change), here, **given)
    assert not (here / "scores").exists()


def test_a_score_that_is_no_number_is_refused(here, monkeypatch):
    answering(monkeypatch, lambda text: math.nan)
    (here / "model").mkdir()
    rows = [answer("p1", "a", of="toxic")]
    evaluated(here, baseline=rows, dpo=rows)
    with pytest.raises(RecordError, match=r"completion 0 of prompt p1 by baseline.*finite number"):
        run(entry("judge"), here)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("judge", {"sets": []}, "scorers.mine.sets must have at least 1 item"),
        ("preference", {"sets": ["benign"]}, "scorers.mine.sets is not a parameter of Preference"),
        ("classifier", {"kind": "perspective"}, "scorers.mine.kind must be one of"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(kind, change, message):
    with pytest.raises(ParamError, match=message):
        entry(kind, **change)
