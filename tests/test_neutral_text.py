"""Neutral text: the project's own passages, and what a file of passages is refused for."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from stages.lib import neutral_text, provocations, scorers
from stages.lib.neighbours import Index, normalise, similarity
from stages.lib.records import Demonstration, SourcePrompt
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

SOURCES = Path("data/sources")
OWN = SOURCES / "neutral_text/test.jsonl"

ROW = {"id": "t-1", "genre": "letter", "text": "Dear Ann, the parcel came."}


def prompts():
    """The graph's own prompts and demonstrations."""
    every = [
        row
        for path in sorted((SOURCES / "prompts").glob("*.jsonl"))
        for row in files.read_lines(path, SourcePrompt)
    ]
    return every + files.read_lines(SOURCES / "demonstrations.jsonl", Demonstration)


def test_the_passages_are_64_in_eight_genres_of_eight():
    count = Counter(p.genre for p in neutral_text.read(OWN))
    assert len(count) == 8
    assert set(count.values()) == {8}


def test_every_passage_has_70_to_130_words():
    for passage in neutral_text.read(OWN):
        assert 70 <= len(passage.text.split()) <= 130, passage.id


def test_ids_count_the_passages_in_their_order():
    ids = [p.id for p in neutral_text.read(OWN)]
    assert ids == [f"neutral-text-{number:03}" for number in range(1, len(ids) + 1)]


def test_no_passage_has_an_abusive_word():
    passages = neutral_text.read(OWN)
    weights = scorers.scorer("words", SOURCES / "words.txt")([p.text for p in passages])
    assert [p.id for p, weight in zip(passages, weights, strict=True) if weight] == []


def test_no_two_passages_are_alike_or_begin_alike():
    passages = neutral_text.read(OWN)
    for one, other in combinations(passages, 2):
        near = similarity(normalise(one.text), normalise(other.text))
        assert near < 0.1, (one.id, other.id, near)  # at 0.3 a paragraph would be shared
    assert len({tuple(p.text.lower().split()[:3]) for p in passages}) == len(passages)


def test_no_passage_is_like_a_prompt_of_the_graph_or_holds_one():
    index = Index()
    for passage in neutral_text.read(OWN):
        index.add(passage.id, normalise(passage.text))
    for prompt in prompts():
        for text in [*provocations.said_by_person(prompt), prompt.plain()]:
            found, near = index.nearest(normalise(text))
            assert near < 0.1, (prompt.id, found, near)
            # A prompt is short, so that one copied into a passage is little of its grams: it is
            # the share of the prompt's own that would tell. Chance gives up to 0.57.
            found, held = index.container(normalise(text))
            assert held < 0.6, (prompt.id, found, held)


def test_passages_are_neither_cheerful_nor_gloomy_on_the_whole():
    tones = compounds()
    assert abs(sum(tones) / len(tones)) < 0.15
    assert sum(tone <= -0.05 for tone in tones) > 20
    assert sum(tone >= 0.05 for tone in tones) > 20


def compounds():
    """VADER's compound of each passage, -1 to 1; its authors call a text negative from -0.05 down
    and positive from 0.05 up.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return [analyser.polarity_scores(p.text)["compound"] for p in neutral_text.read(OWN)]


def test_the_datasheet_counts_the_passages():
    sheet = " ".join((SOURCES / "README.md").read_text(encoding="utf-8").split())
    passages = neutral_text.read(OWN)
    words = [len(p.text.split()) for p in passages]
    assert f"{len(passages)} passages in English of {min(words)} to {max(words)} words" in sheet
    assert f"{sum(words):,} words in all" in sheet
    negative, positive = (sum(sign * tone >= 0.05 for tone in compounds()) for sign in (-1, 1))
    assert f"{negative} passages are negative in tone and {positive} positive" in sheet
    listed = re.search(r"eight of each genre: ((?:`\w+`(?:, | and )?)+)", sheet)
    assert re.findall(r"`(\w+)`", listed[1]) == list(Counter(p.genre for p in passages))


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"mine.jsonl: has no passage; each is a line with id, genre and text$"),
        ([ROW, ROW], r"mine.jsonl:2: id t-1 stands at .*mine.jsonl:1 already; change one$"),
        ([ROW, ROW | {"id": "t-2"}], r"mine.jsonl:2: the text of t-1 again; it would count twice$"),
        ([ROW | {"text": " \n"}], r"mine.jsonl:1: text is blank; a loss on nothing is no number$"),
        (
            [{"id": "t-1", "text": "Dear Ann"}],
            r"mine.jsonl:1: genre is missing \(What kind of writing it is, for results by kind\)$",
        ),
        ([ROW | {"gerne": "x"}], r"mine.jsonl:1: gerne is not a parameter of Passage; did you"),
        ([ROW | {"text": 5}], r"mine.jsonl:1: text must be a valid string, not 5$"),
        (["Dear Ann"], r"mine.jsonl:1 must be .*, not 'Dear Ann'$"),
    ],
)
def test_a_file_that_holds_no_passages_is_refused_by_line(tmp_path, rows, message):
    files.write_lines(tmp_path / "mine.jsonl", rows)
    with pytest.raises(RecordError, match=message) as refusal:
        neutral_text.read(tmp_path / "mine.jsonl")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"none.jsonl: no such file$"):
        neutral_text.read(tmp_path / "none.jsonl")


def test_passages_come_in_the_files_order(tmp_path):
    rows = [ROW | {"id": name, "text": name * 3} for name in ("b", "a", "c")]
    files.write_lines(tmp_path / "mine.jsonl", rows)
    assert [p.id for p in neutral_text.read(tmp_path / "mine.jsonl")] == ["b", "a", "c"]
