"""Neutral text: the project's own passages, and what a file of passages is refused for."""

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
OWN = SOURCES / "neutral_text"
EACH = {"train": (6, 16), "validation": (8, 4), "test": (8, 8)}
"""Genres, and passages of each."""

ROW = {"id": "t-1", "genre": "letter", "text": "Dear Ann, the parcel came."}


def prompts():
    """The graph's own prompts and demonstrations."""
    every = [
        row
        for path in sorted((SOURCES / "prompts").glob("*.jsonl"))
        for row in files.read_lines(path, SourcePrompt)
    ]
    return every + files.read_lines(SOURCES / "demonstrations.jsonl", Demonstration)


def own(*splits):
    """The project's passages, of all splits where none is named."""
    return [p for split in splits or EACH for p in neutral_text.read(OWN / f"{split}.jsonl")]


@pytest.mark.parametrize("split", EACH)
def test_every_genre_has_as_many_passages(split):
    count = Counter(p.genre for p in own(split))
    assert (len(count), set(count.values())) == (EACH[split][0], {EACH[split][1]})


def test_two_genres_of_the_test_are_in_no_passage_that_a_policy_is_held_to():
    held = {p.genre for p in own("train")}
    assert {p.genre for p in own("test")} - held == {"letter", "essay"}
    assert held < {p.genre for p in own("validation")}


def test_every_passage_has_70_to_130_words():
    for passage in own():
        assert 70 <= len(passage.text.split()) <= 130, passage.id


@pytest.mark.parametrize(
    ("split", "name"), [("train", "train"), ("validation", "validation"), ("test", "text")]
)
def test_ids_count_the_passages_in_their_order(split, name):
    ids = [p.id for p in own(split)]
    assert ids == [f"neutral-{name}-{number:03}" for number in range(1, len(ids) + 1)]


def test_no_passage_has_an_abusive_word():
    passages = own()
    weights = scorers.scorer("words", SOURCES / "words.txt")([p.text for p in passages])
    assert [p.id for p, weight in zip(passages, weights, strict=True) if weight] == []


def test_no_two_passages_are_alike_or_begin_alike():
    passages = own()
    for one, other in combinations(passages, 2):
        near = similarity(normalise(one.text), normalise(other.text))
        assert near < 0.1, (one.id, other.id, near)  # at 0.3 a paragraph would be shared
    assert len({tuple(p.text.lower().split()[:3]) for p in passages}) == len(passages)


def test_no_passage_is_like_a_prompt_of_the_graph_or_holds_one():
    index = Index()
    for passage in own():
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
    for split in EACH:
        found = compounds(split)
        assert abs(sum(found) / len(found)) < 0.15
        assert min(tones(split)) > len(found) / 4


def compounds(*splits):
    """VADER's compound of each passage, -1 to 1; its authors call a text negative from -0.05 down
    and positive from 0.05 up.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return [analyser.polarity_scores(p.text)["compound"] for p in own(*splits)]


def tones(*splits):
    """How many passages are negative in tone, and how many positive."""
    return [sum(sign * tone >= 0.05 for tone in compounds(*splits)) for sign in (-1, 1)]


def test_the_datasheet_counts_the_passages():
    sheet = " ".join((SOURCES / "README.md").read_text(encoding="utf-8").split())
    for split, (_, each) in EACH.items():
        found = own(split)
        words = sum(len(p.text.split()) for p in found)
        assert f"| `{split}.jsonl` | {len(found)}, {each} of each of" in sheet
        assert f"| {words:,} |" in sheet
    every = [len(p.text.split()) for p in own()]
    assert f"A passage has {min(every)} to {max(every)} words" in sheet
    negative, positive = tones("test")
    assert f"{negative} of the test passages are negative in tone and {positive} positive" in sheet
    negative, positive = tones("train", "validation")
    assert f"of the other 128 it is {negative} and {positive}" in sheet


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
