"""Beginnings that name a group: which are asked, under which noise, and what is kept of answers."""

from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from synthetic_evaluations import EVALUATE
from test_identities import MINE, OWN, written
from tiny_model import moved_adapter

from stages import evaluate
from stages.lib import answering, identities, identity_questions, models, sampling, scorers
from stages.lib.identities import Group, IdentitiesError
from stages.lib.identity_questions import Naming
from stages.lib.order import by_hash
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, check
from stages.lib.sampling import Decoding
from stages.lib.tokens import encode_prompt

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)
WORDS = Path("data/sources/words.txt")


def naming(**changed):
    return Naming(**{"beginnings": 2, "samples": 2, "tokens": 8, **changed})


@pytest.fixture
def subject(tiny_folder, tiny, full_precision, tmp_path):
    moved_adapter(tiny, tmp_path / "dpo", std=0.3)
    files.write_json(tmp_path / "dpo/policy.json", {"algorithm": "dpo"})
    return answering.open_subject(tiny_folder, tmp_path / "dpo", full_precision)


def asked(subject, questions, seed=1, batch_tokens=10_000, **changed):
    return identity_questions.answer(
        subject, questions, naming(**changed), ALL, seed=seed, batch_tokens=batch_tokens
    )


def test_the_first_beginnings_by_hash_are_asked_with_every_group():
    given = identities.read(OWN)
    chosen = identity_questions.choose(OWN, naming(beginnings=3))
    first = sorted(given.beginnings, key=by_hash)[:3]
    assert {(q.filled.template, q.filled.group) for q in chosen} == {
        (b, g) for b in first for g in given.groups
    }
    assert len(chosen) == 3 * 34
    assert set(chosen) < set(identity_questions.choose(OWN, naming(beginnings=4)))
    assert identity_questions.choose(OWN, None) == []


def test_the_arithmetic_in_the_params_comment_is_that_of_its_values_and_of_the_groups():
    own = YAML(typ="safe").load(Path("params.yaml"))["evaluate"]["identities"]
    asked, groups = Naming(**own), len(identities.read(OWN).groups)
    answers = asked.beginnings * groups * asked.samples
    said = (
        f"# {asked.beginnings} beginnings x {groups} groups x {asked.samples} sample = "
        f"{answers} answers x {asked.tokens} tokens = {answers * asked.tokens:,} tokens: "
        f"{answers * asked.tokens / 400:.0f} s a policy"
    )
    assert said in Path("params.yaml").read_text()


def test_too_few_beginnings_or_groups_are_refused(tmp_path):
    message = r"^params.yaml: evaluate.identities.beginnings is 21, but data/sources/identities.yaml has 20; ask"
    with pytest.raises(Refusal, match=message):
        identity_questions.choose(OWN, naming(beginnings=21))
    lone = written(tmp_path, MINE + '  gate: "At the gate {a_person}"\n')
    with pytest.raises(
        Refusal, match=r"mine.yaml: groups: 1 beside those of dimension control; a gap"
    ):
        identity_questions.choose(lone, naming())
    with pytest.raises(IdentitiesError, match="no such file"):
        identity_questions.choose(tmp_path / "none.yaml", naming())


def test_the_groups_of_a_beginning_are_answered_under_the_same_noise(subject, monkeypatch):
    questions = identity_questions.choose(OWN, naming())
    keys = []
    true = sampling.row_key
    monkeypatch.setattr(sampling, "row_key", lambda *of: keys.append(of) or true(*of))
    asked(subject, questions)
    # (seed, beginning, index), each as often as there are groups
    assert {keys.count(key) for key in keys} == {34}
    assert set(keys) == {(1, q.filled.template, k) for q in questions for k in range(2)}


def test_two_groups_with_the_same_words_get_the_same_answers(subject):
    question = identity_questions.choose(OWN, naming())[0]
    twin = replace(question, filled=replace(question.filled, group="twin"))
    answered = asked(subject, [question, twin])
    assert [q for q, _, _ in answered] == [question, question, twin, twin]
    assert [d for _, d, _ in answered[:2]] == [d for _, d, _ in answered[2:]]


def test_each_answer_is_that_of_the_prompt_alone_and_stands_in_order(subject):
    questions = identity_questions.choose(OWN, naming())[:40:3]
    together = asked(subject, questions, batch_tokens=200)
    assert [(q.filled.template, q.filled.group, d.index) for q, d, _ in together] == [
        (q.filled.template, q.filled.group, k) for q in questions for k in range(2)
    ]
    for q, draw, text in together:
        request = sampling.Request(
            q.filled.template, encode_prompt(subject.policy, q.filled.text), 2
        )
        with models.adapter(subject.policy, subject.adapter):
            alone, _ = sampling.decode(subject.policy, [request], ALL, max_tokens=8, seed=1)
        assert alone[draw.index].ids == draw.ids
        assert sampling.text(subject.policy, draw) == text
    assert [t for _, _, t in asked(subject, questions)] == [t for _, _, t in together]
    assert [t for _, _, t in asked(subject, questions, seed=2)] != [t for _, _, t in together]


def test_the_adapter_answers_and_is_put_away_again(subject):
    questions = identity_questions.choose(OWN, naming())[:6]
    policy = asked(subject, questions)
    base = answering.Subject(subject.policy, subject.reference, None)
    assert [t for _, _, t in asked(base, questions)] != [t for _, _, t in policy]


def test_the_completion_alone_is_scored_and_its_own_naming_of_the_group_is_kept(subject):
    questions = identity_questions.choose(OWN, naming())
    deaf = next(q for q in questions if q.filled.group == "deaf")
    draw = sampling.Draw("x", 0, (1,), "length", 0.0)
    said = [" told the stupid deaf man off", " told the stupid man off"]
    rows = identity_questions.score(
        [(deaf, draw, text) for text in said], ["profanity_check", "words"], WORDS
    )
    assert [row.names_again for row in rows] == [True, False]
    for row in rows:
        assert row.scores == {
            name: round(scorers.scorer(name, WORDS)([row.text])[0], 6)
            for name in ("profanity_check", "words")
        }
        assert (row.beginning, row.group, row.dimension) == (
            deaf.filled.template,
            "deaf",
            "disability",
        )
        assert row.prompt == deaf.filled.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a Jewish person", True), ("Jewish people", True), ("was JEWISH.", True),
        ("a person", False), ("the people", False), ("Jewishness", False), ("", False),
    ],
)  # fmt: skip
def test_a_name_is_found_in_any_form_and_only_whole(text, found):
    group = Group(dimension="religion", a_person="a Jewish person", person="Jewish person", people="Jewish people")  # fmt: skip
    assert identity_questions.names_group(text, group) is found


def test_nothing_is_asked_where_params_say_null(subject):
    knobs = check({**EVALUATE, "identities": None, "resamples": 100}, evaluate.Evaluate, "e", ValueError)  # fmt: skip
    assert evaluate.ask_identities(knobs, subject, [], WORDS, seed=1) == []
