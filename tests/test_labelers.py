"""Labelers: scores to ranks, the judge in both orders, people's files checked line by line."""

import json

import pytest
import torch

from stages.lib import likelihood, scorers
from stages.lib.labelers import judge, lexicon, people, ranks
from stages.lib.records import Completion, Prompt
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

WORDS = "data/sources/words.txt"


def prompt(number, role="align"):
    return Prompt(
        id=f"q{number}",
        form="continuation",
        category="insult",
        source="me",
        text=f"Story {number}:",
        role=role,
        cluster=f"q{number}",
    )


def completion(number, text, index=0):
    return Completion(
        id=f"q{number}/base-{index}",
        prompt_id=f"q{number}",
        sampler="base",
        index=index,
        text=text,
        finish="length",
        tokens=3,
        logp=-1.0,
    )


GIVEN = [
    completion(1, " you are a stupid idiot", 0),
    completion(1, " what a lovely day", 1),
    completion(1, " what a lovely morning", 2),
    completion(1, " damn", 3),
]


def test_competition_ranks_share_and_skip():
    # scores 3, 2, 2, 1: 1, 2, 2, 4
    assert ranks.competition({"a": 1, "b": 3, "c": 2, "d": 2}, tie=0.5) == {
        "a": 4,
        "b": 1,
        "c": 2,
        "d": 2,
    }
    assert ranks.competition({"a": 0.51, "b": 0.49}, tie=1.0) == {
        "a": 1,
        "b": 2,
    }  # rounds to 1 and 0
    assert ranks.competition({"a": 0.4, "b": 0.3}, tie=1.0) == {"a": 1, "b": 1}


@pytest.mark.parametrize("scorer", ["words", "vader_negative"])
def test_a_lexicon_ranks_less_harm_first(scorer, full_precision):
    labeler = lexicon.Lexicon(
        kind="lexicon", reads=WORDS, scorer=scorer, criterion="harmless", tie=0.05
    )
    (one,), _ = lexicon.rank(labeler, "words", full_precision, [prompt(1)], GIVEN)
    assert one.ranks["q1/base-1"] == one.ranks["q1/base-2"] == 1
    assert one.ranks["q1/base-0"] >= 3  # VADER finds the lone "damn" no better
    assert one.labeler == "words"


def test_words_are_weighed_by_hand():
    # "you are a stupid idiot": stupid* 2 + idiot* 2 = 4 per 10 words (5 words count as 10): 4
    # twenty words with one "damn" (1): 10 * 1 / 20 = 0.5
    from pathlib import Path

    words = scorers.scorer("words", Path(WORDS))
    assert words(
        ["you are a stupid idiot", "damn " + "fine " * 19, "classic assassins in Scunthorpe", ""]
    ) == [4.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fool\n", r"w.txt:1: must be 'word weight' or 'stem\* weight', not 'fool'"),
        ("# fine\nfool 1\nFool 2\n", r"w.txt:3: 'Fool' stands here a second time"),
    ],
)
def test_a_bad_word_list_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "w.txt").write_text(text)
    with pytest.raises(RecordError, match=message):
        scorers.read_words(tmp_path / "w.txt")


def test_the_independent_scorer_is_no_labeler():
    from stages.lib.runtime.schema import Refusal, check

    section = {
        "kind": "lexicon",
        "reads": WORDS,
        "scorer": "profanity_check",
        "criterion": "harmless",
        "tie": 0.1,
    }
    with pytest.raises(
        Refusal, match="scorer must be 'vader_negative' or 'words', not 'profanity_check'"
    ):
        check(section, lexicon.Lexicon, "params.yaml: labelers.x")


JUDGE = judge.Judge(
    kind="judge",
    reads="models/base",
    criterion="harmless",
    prompts=2,
    roles=["align"],
    tie=0.01,
    principles=["Be kind.", "Be brief."],
)


def test_both_orders_sum_to_one():  # property 46
    for f, b in ((0.9, 0.8), (0.5, 0.5), (0.2, 0.99)):
        assert judge.both_orders(f, b) + judge.both_orders(b, f) == pytest.approx(1)
    # a judge that always says (A) has no opinion: (0.9 + 1 - 0.9) / 2
    assert judge.both_orders(0.9, 0.9) == pytest.approx(0.5)


def test_the_judge_asks_every_pair_in_both_orders_by_one_principle(monkeypatch, full_precision):
    asked = []

    def says_the_shorter(folder, base, questions):
        asked.extend(questions)
        return [
            0.9
            if len(q.split("(A) ")[1].split("\n")[0]) < len(q.split("(B) ")[1].split("\n")[0])
            else 0.1
            for q in questions
        ]

    monkeypatch.setattr(judge, "answer_probabilities", says_the_shorter)
    (one,), own = judge.rank(JUDGE, "judge", full_precision, [prompt(1)], GIVEN)
    assert len(asked) == 12  # 6 pairs x 2 orders
    assert own == {"order_flip_rate": 0.0}
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        a, b = first.split("(A) ")[1].split("\n")[0], first.split("(B) ")[1].split("\n")[0]
        assert f"(A) {b}" in second
        assert f"(B) {a}" in second
        assert first.split("\n\n")[2] == second.split("\n\n")[2]  # the principle
    assert [k for k, _ in sorted(one.ranks.items(), key=lambda r: r[1])] == [
        "q1/base-3",
        "q1/base-1",
        "q1/base-2",
        "q1/base-0",
    ]


def test_the_judge_takes_the_first_prompts_by_hash_of_its_roles(monkeypatch, full_precision):
    monkeypatch.setattr(
        judge, "answer_probabilities", lambda folder, base, questions: [0.5] * len(questions)
    )
    given = [completion(n, f" {word}", i) for n in range(9) for i, word in enumerate(("a", "b"))]
    prompts = [prompt(n, role="align" if n < 6 else "test") for n in range(9)]
    first, own = judge.rank(JUDGE, "judge", full_precision, prompts, given)
    assert own == {"order_flip_rate": 1.0}  # (B) in both orders, whatever stands there
    assert len(first) == 2
    assert all(int(one.prompt_id[1:]) < 6 for one in first)
    assert (first, own) == judge.rank(JUDGE, "judge", full_precision, prompts[::-1], given[::-1])


def test_the_judges_probability_is_the_models_log_odds(tiny, tiny_folder, full_precision):
    questions = ["Which?\n(A) x\n(B) y\nThe answer is:", "Another?\nThe answer is:"]
    found = judge.answer_probabilities(tiny_folder, full_precision, questions)
    from stages.lib.tokens import TokenSequence

    for question, p in zip(questions, found, strict=True):
        ids = tuple(tiny.tokenizer(question).input_ids)
        pair = [
            TokenSequence(ids, tuple(tiny.tokenizer(a, add_special_tokens=False).input_ids))
            for a in judge.ANSWERS
        ]
        with torch.no_grad():
            a, b = likelihood.sequence_logps(tiny, pair).tolist()
        assert p == pytest.approx(1 / (1 + torch.exp(torch.tensor(b - a)).item()), abs=1e-4)


def label(**change):
    row = {
        "schema_version": 1, "kind": "ranking", "criterion": "harmless", "prompt_id": "q1", "labeler": "ann",
        "shown": ["q1/base-0", "q1/base-1"], "ranks": {"q1/base-0": 2, "q1/base-1": 1}, "junk": {}, "scores": None,
        "confidence": None, "note": None, "ms_active": 900, "submitted": "2026-01-01T00:00:00Z",
        "instructions_sha": None, "task_sha": None, "revision": 1,
    }  # fmt: skip
    return row | change


def by_ann(tmp_path, *rows, base=None):
    (tmp_path / "ann.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labeler = people.People(kind="people", reads="x", criterion="harmless").model_copy(
        update={"reads": str(tmp_path / "ann.jsonl")}
    )
    return people.rank(labeler, "ann", base, [prompt(1)], GIVEN)[0]


def test_of_a_persons_revisions_the_highest_counts(tmp_path):
    later = label(revision=2, ranks={"q1/base-0": 1, "q1/base-1": 1})
    (one,) = by_ann(tmp_path, later, label())
    assert one.ranks == {"q1/base-0": 1, "q1/base-1": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labeler": "bob"},
            r"ann.jsonl:1: labeler is 'bob', but params.yaml names this file's labeler 'ann'",
        ),
        ({"prompt_id": "q7"}, r"ann.jsonl:1: ranks prompt q7, which has no completions"),
        (
            {"shown": ["q1/base-9"], "ranks": {"q1/base-9": 1}},
            r"ann.jsonl:1: ranks completion q1/base-9, which prompt q1 does not have",
        ),
        ({"ranks": {"q1/base-0": 1}}, r"ann.jsonl:1: neither ranks nor junks q1/base-1"),
        (
            {"ranks": {"q1/base-0": 2, "q1/base-1": 2}},
            r"ann.jsonl:1: ranks \[2, 2\] are no competition ranks",
        ),
        (
            {"ranks": {"q1/base-0": 0, "q1/base-1": 1}},
            r"ann.jsonl:1: ranks.q1/base-0 must be greater than or equal to 1, not 0",
        ),
        ({"junk": {"q1/base-0": "spam"}}, r"ann.jsonl:1: both ranks and junks q1/base-0"),
        ({"colour": "red"}, r"ann.jsonl:1: colour is not a parameter of Ranking"),
    ],
)
def test_a_persons_bad_line_is_refused_by_file_and_line(tmp_path, change, message):
    with pytest.raises(RecordError, match=message):
        by_ann(tmp_path, label(**change))


def test_one_revision_twice_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"ann.jsonl:2: prompt q1 has revision 1 twice"):
        by_ann(tmp_path, label(), label())


def test_a_file_of_no_entry_is_refused_and_so_is_a_missing_one(tmp_path):
    files.write_lines(tmp_path / "base.jsonl", GIVEN)
    assert files.read_entries(tmp_path, ["base"], Completion, section="samplers") == GIVEN
    with pytest.raises(
        RecordError, match=r"base.jsonl: params.yaml has no samplers.base; delete what"
    ):
        files.read_entries(tmp_path, [], Completion, section="samplers")
    with pytest.raises(
        RecordError,
        match=r"other.jsonl: no such file, and params.yaml has samplers.other; `dvc repro sample@other`",
    ):
        files.read_entries(tmp_path, ["base", "other"], Completion, section="samplers")
