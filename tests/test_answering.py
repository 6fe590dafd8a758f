"""A policy's answers, and how far each is from its reference, against plain forward passes."""

import shutil

import pytest
import torch
from synthetic_evaluations import EVALUATE
from tiny_model import moved_adapter

from stages import evaluate
from stages.lib import answering, likelihood, models, sampling
from stages.lib.base import Base
from stages.lib.records import Prompt
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, check
from stages.lib.sampling import Decoding, Request
from stages.lib.tokens import TokenSequence, encode_prompt

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)
PROMPTS = [
    Prompt(
        id=f"p{n}", cluster=f"p{n}", category="insult" if n % 2 else "neutral", role="test", form="continuation",
        source="t", text=text,
    )
    for n, text in enumerate(["He said", "The old dog went", "She", "He said that", "A long story of"])
]  # fmt: skip


@pytest.fixture
def policies(tiny, tmp_path):
    """Folders of three policies: the base, the base as fetched, and an adapter on the base."""
    moved_adapter(tiny, tmp_path / "dpo", std=0.3)
    files.write_json(tmp_path / "dpo/policy.json", {"algorithm": "dpo"})
    for name, quantised in (("baseline", True), ("unquantised", False)):
        card = {"algorithm": "none", "quantised": quantised}
        files.write_json(tmp_path / name / "policy.json", card)
    return tmp_path


def answers(subject, prompts=PROMPTS, batch_tokens=10_000, samples=3, tokens=10, seed=1):
    return answering.answer(
        subject, prompts, "toxic", ALL, samples=samples, tokens=tokens, seed=seed, batch_tokens=batch_tokens,
    )  # fmt: skip


def plain_logps(lm, sequence):
    """Log-probabilities of every next token at the completion's positions, by one plain pass."""
    with torch.no_grad():
        logps = lm.model(input_ids=torch.tensor([sequence.ids])).logits.log_softmax(-1)[0].double()
    return logps[len(sequence.prompt) - 1 : len(sequence) - 1]


def test_drift_is_that_of_plain_forward_passes(tiny_folder, full_precision, policies):
    subject = answering.open_subject(tiny_folder, policies / "dpo", full_precision)
    lm = subject.policy
    assert not subject.is_reference
    requests = [Request(p.id, encode_prompt(lm, p.body()), 3) for p in PROMPTS]
    with models.adapter(lm, "policy"):
        draws, at = sampling.decode(lm, requests, ALL, max_tokens=10, seed=1, states=True)
    prompts = {r.prompt_id: r.ids for r in requests}
    sequences = [TokenSequence(prompts[d.prompt_id], d.ids) for d in draws]
    found = answering.drift(subject, sequences, at, temperature=1.0)
    for sequence, drift in zip(sequences, found, strict=True):
        with models.adapter(lm, None):
            p = plain_logps(lm, sequence)
        with models.adapter(lm, "policy"):
            pi = plain_logps(lm, sequence)
        drawn = torch.arange(len(sequence.completion)), torch.tensor(sequence.completion)
        assert drift.nll == pytest.approx(-p[drawn].sum().item(), rel=1e-4)
        assert drift.k1 == pytest.approx((pi - p)[drawn].sum().item(), abs=2e-3)
        assert drift.exact == pytest.approx((pi.exp() * (pi - p)).sum().item(), rel=1e-3)
        assert drift.exact > 0.1
    expected = [
        (d.prompt_id, d.index, sampling.text(lm, d), drift.nll)
        for d, drift in zip(draws, found, strict=True)
    ]
    assert [
        (a.prompt.id, a.index, a.text, pytest.approx(a.drift.nll, rel=1e-4))
        for a in answers(subject, samples=3, tokens=10)
    ] == sorted(expected)


def test_the_base_is_its_own_reference(tiny_folder, full_precision, policies):  # property 9
    subject = answering.open_subject(tiny_folder, policies / "baseline", full_precision)
    assert subject.is_reference
    for one in answers(subject):
        assert (one.drift.k1, one.drift.k3, one.drift.exact) == (0, 0, 0)
        assert one.drift.nll > 0


def test_the_unquantised_base_is_compared_with_the_quantised_one(tiny_folder, policies):
    nf4 = Base(quantisation="nf4", weights="rounded", dtype="float32")
    subject = answering.open_subject(tiny_folder, policies / "unquantised", nf4)
    assert subject.policy is not subject.reference
    assert sum(one.drift.exact for one in answers(subject)) > 0.01
    as_fetched = Base(quantisation="none", weights="rounded", dtype="float32")
    same = answering.open_subject(tiny_folder, policies / "unquantised", as_fetched)
    assert same.is_reference  # nothing was quantised, so nothing differs


def test_answers_stand_by_prompt_and_index_and_do_not_depend_on_the_others(
    tiny_folder, full_precision, policies
):
    subject = answering.open_subject(tiny_folder, policies / "dpo", full_precision)
    together = answers(subject)
    assert [(a.prompt.id, a.index) for a in together] == [
        (p.id, i) for p in PROMPTS for i in range(3)
    ]
    alone = [a for p in PROMPTS for a in answers(subject, [p], samples=2)]
    few = [a for a in together if a.index < 2]
    assert [(a.prompt.id, a.index, a.text) for a in alone] == [
        (a.prompt.id, a.index, a.text) for a in few
    ]
    assert [a.text for a in answers(subject, seed=2)] != [a.text for a in together]


def test_a_folder_without_a_policy_is_refused(tiny_folder, full_precision, tmp_path):
    with pytest.raises(RecordError, match=r"policy.json: no such file"):
        answering.open_subject(tiny_folder, tmp_path, full_precision)


def test_a_set_is_the_first_prompts_by_hash_and_too_few_are_refused():
    one = evaluate.PromptSet(categories=["neutral"], prompts=2, samples=1, tokens=1)
    chosen = evaluate.choose(PROMPTS, "calm", one, "test")
    assert evaluate.choose(PROMPTS[::-1], "calm", one, "test") == chosen
    assert [p.category for p in chosen] == ["neutral"] * 2
    everyone = evaluate.choose(PROMPTS, "calm", one.model_copy(update={"prompts": 3}), "test")
    assert everyone[:2] == chosen  # more prompts move none
    with pytest.raises(Refusal, match=r"evaluate.sets.calm.prompts is 4, but split test has 3 "):
        evaluate.choose(PROMPTS, "calm", one.model_copy(update={"prompts": 4}), "test")


def test_snapshots_are_asked_some_of_the_first_set_just_as_the_last_state_is(
    tiny_folder, full_precision, policies
):
    for step in (2, 10):
        shutil.copytree(policies / "baseline", policies / f"dpo/snapshots/{step:06}")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(policies / "dpo" / name, policies / f"dpo/snapshots/{step:06}")
    sets = {
        "first": {"categories": ["insult", "neutral"], "prompts": 4, "samples": 3, "tokens": 6},
        "other": {"categories": ["neutral"], "prompts": 2, "samples": 1, "tokens": 6},
    }
    knobs = check(
        {**EVALUATE, "sets": sets, "snapshots": {"prompts": 2, "samples": 2}, "resamples": 100},
        evaluate.Evaluate, "evaluate", ValueError,
    )  # fmt: skip
    chosen = {
        key: evaluate.choose(PROMPTS, key, one, knobs.split) for key, one in knobs.sets.items()
    }
    subject = answering.open_subject(tiny_folder, policies / "dpo", full_precision)
    last = evaluate.ask(knobs, subject, chosen, seed=1)
    assert len(last) == 4 * 3 + 2
    found = evaluate.ask_snapshots(knobs, subject, policies / "dpo", chosen, seed=1)
    assert list(found) == [2, 10]
    some = [a for a in last if a.set == "first" and a.prompt in chosen["first"][:2] and a.index < 2]
    for own in found.values():
        # the same adapter under the same random numbers says the same, at the same distance
        assert [(a.prompt.id, a.index, a.text) for a in own] == [
            (a.prompt.id, a.index, a.text) for a in some
        ]
        assert [a.drift.exact for a in own] == pytest.approx([a.drift.exact for a in some])
        assert own[0].drift.exact > 0
    assert evaluate.ask_snapshots(knobs, subject, policies / "baseline", chosen, seed=1) == {}


def test_every_answers_log_probability_adds_up_to_its_drift(tiny_folder, full_precision, policies):
    subject = answering.open_subject(tiny_folder, policies / "baseline", full_precision)
    (one, *_) = answers(subject, PROMPTS[:1], samples=1, tokens=1)
    ids = encode_prompt(subject.policy, PROMPTS[0].body())
    every = [TokenSequence(ids, (t,)) for t in range(len(subject.policy.tokenizer))]
    logps = likelihood.all_logps(subject.policy, every, batch_tokens=5000, label="test")
    assert logps.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert (logps + one.drift.nll).abs().min() < 1e-4
