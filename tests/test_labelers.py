"""Labelers: scores to ranks, and word lists."""

import pytest

from stages.lib import scorers
from stages.lib.labelers import lexicon, ranks
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
        kind="lexicon", reads=WORDS, guide=WORDS, scorer=scorer, criterion="harmless", tie=0.05
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
        "guide": WORDS,
        "scorer": "profanity_check",
        "criterion": "harmless",
        "tie": 0.1,
    }
    with pytest.raises(
        Refusal, match="scorer must be 'vader_negative' or 'words', not 'profanity_check'"
    ):
        check(section, lexicon.Lexicon, "params.yaml: labelers.x")


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
