"""People's files: what counts of their lines, and what is refused, by file and line."""

import json

import pytest

from stages.lib.labelers import people
from stages.lib.labels import consensus
from stages.lib.records import Completion, Prompt, latest
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

PROMPT = Prompt(
    id="q1", form="continuation", category="insult", source="test", text="He said", role="align",
    cluster="q1",
)  # fmt: skip
GIVEN = [
    Completion(
        id=f"q1/{sampler}-{index}", prompt_id="q1", sampler=sampler, index=index, text=f"text {index}",
        finish="stop", tokens=3, logp=-1.0,
    )
    for sampler in ("base", "round1")
    for index in range(2)
]  # fmt: skip


def line(**change):
    row = {
        "schema_version": 1, "kind": "ranking", "criterion": "harmless", "prompt_id": "q1", "labeler": "ann",
        "shown": ["q1/base-0", "q1/base-1"], "ranks": {"q1/base-0": 2, "q1/base-1": 1}, "junk": {},
        "ms_active": 900, "submitted": "2026-01-01T00:00:00Z", "revision": 1,
    }  # fmt: skip
    return row | change


def other(kind, *, drop=("shown", "ranks", "junk"), **change):
    return {k: v for k, v in line(kind=kind, **change).items() if k not in drop}


@pytest.fixture
def said(tmp_path):
    """Put lines into files of data/labels and return what `rank` makes of the folder."""
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "instructions.md").write_text("Rank.")
    entry = people.People(
        kind="people", reads=str(folder).lstrip("/"), guide="instructions.md", criterion="harmless", task="ranking",
        samplers=[], roles=["align"], categories=[], prompts=10, team=[], overlap=1, repeats=0.0, gold=None,
        tie_warning=0.2,
    )  # fmt: skip
    entry = entry.model_copy(
        update={"reads": str(folder), "guide": str(folder / "instructions.md")}
    )

    def _said(**by_name):
        for name, rows in by_name.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text)
        return people.rank(entry, "people", None, [PROMPT], GIVEN)

    return _said


def test_nobody_has_labeled_and_nothing_comes_of_it(said):
    labels, counts = said()
    assert labels == []
    assert set(counts.values()) == {0.0}


def test_every_revision_is_passed_on_and_the_highest_counts(said):
    tie = line(revision=2, ranks={"q1/base-0": 1, "q1/base-1": 1})
    labels, _ = said(ann=[tie, line()])
    assert [label.revision for label in labels] == [2, 1]
    (one,) = consensus.current(labels)
    assert one.ranks == {"q1/base-0": 1, "q1/base-1": 1}


def test_files_of_several_people_and_kinds_go_on_together(said):
    thumb = other("thumbs", completion_id="q1/base-0", up=True)
    text = other("demonstration", answer=" that he was sorry.", labeler="ben")
    labels, counts = said(ann=[line(), thumb], ben=[text])
    assert [(x.labeler, x.kind) for x in labels] == [
        ("ann", "ranking"), ("ann", "thumbs"), ("ben", "demonstration"),
    ]  # fmt: skip
    assert (counts["people"], counts["thumbs"], counts["demonstrations"]) == (2, 1, 1)


def test_a_later_rounds_ranking_of_a_prompt_leaves_the_earlier_one_standing(said):
    new = {"shown": ["q1/round1-0", "q1/round1-1"], "ranks": {"q1/round1-0": 1, "q1/round1-1": 2}}
    labels, _ = said(ann=[line(), line(**new)])
    assert len(consensus.current(labels)) == 2


def test_a_repeat_counts_for_no_pair(said):
    labels, _ = said(ann=[line(), line(repeat=True)])
    assert len(labels) == 2
    assert [label.repeat for label in consensus.current(labels)] == [False]


def test_a_skip_takes_back_what_was_said_before_and_a_later_label_takes_back_the_skip(said):
    skip = other("skip", drop=("ranks", "junk"), task="ranking", reason="unclear", revision=2)
    labels, counts = said(ann=[line(), skip])
    assert [label.kind for label in latest(labels)] == ["skip"]
    assert counts["skipped"] == 1
    labels, counts = said(ann=[line(), skip, line(revision=3)])
    assert [label.kind for label in latest(labels)] == ["ranking"]
    assert [label.revision for label in labels] == [1, 2, 3]
    assert counts["skipped"] == 0


def test_labels_made_under_other_instructions_are_counted(said, tmp_path):
    now = files.sha256(tmp_path / "labels/instructions.md")
    old = line(instructions_sha="0" * 64)
    thumb = other("thumbs", completion_id="q1/base-0", up=True, instructions_sha=now)
    assert said(ann=[old, thumb])[1]["other_instructions"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labeler": "bob"}, r"ann.jsonl:1: labeler is 'bob', in the file of ann$"),
        ({"prompt_id": "q7"}, r"ann.jsonl:1: is about prompt q7, which there is not$"),
        (
            {"shown": ["q1/base-9"], "ranks": {"q1/base-9": 1}},
            r"ann.jsonl:1: judges completion q1/base-9, which prompt q1 does not have \(q1/base-0, ",
        ),
        ({"ranks": {"q1/base-0": 1}}, r"ann.jsonl:1: neither ranks nor junks q1/base-1"),
        (
            {"ranks": {"q1/base-0": 2, "q1/base-1": 2}},
            r"ann.jsonl:1: ranks \[2, 2\] are no competition ranks",
        ),
        (
            {"ranks": {"q1/base-0": 0, "q1/base-1": 1}},
            r"ranks.q1/base-0 must be greater than or equal to 1, not 0",
        ),
        ({"junk": {"q1/base-0": "spam"}}, r"ann.jsonl:1: both ranks and junks q1/base-0"),
        ({"colour": "red"}, r"ann.jsonl:1: colour is not a parameter of Ranking"),
        ({"kind": "vote"}, r"ann.jsonl:1: kind"),
    ],
)
def test_a_persons_bad_line_is_refused_by_file_and_line(said, change, message):
    with pytest.raises(RecordError, match=message):
        said(ann=[line(**change)])


def test_one_revision_twice_is_refused(said):
    with pytest.raises(
        RecordError, match=r"ann.jsonl:2: revision 1 of prompt q1 stands at .*ann.jsonl:1 already"
    ):
        said(ann=[line(), line()])


def test_a_label_of_texts_that_have_changed_since_is_refused(said):
    seen = people.shown_sha("harmless", PROMPT, GIVEN[:2])
    assert seen == people.shown_sha("harmless", PROMPT, GIVEN[1::-1])
    assert len(said(ann=[line(task_sha=seen)])[0]) == 1
    redrawn = [GIVEN[0], GIVEN[1].model_copy(update={"text": "another text"})]
    with pytest.raises(RecordError, match=r"ann.jsonl:1: .* are other texts than the labeler saw"):
        said(ann=[line(task_sha=people.shown_sha("harmless", PROMPT, redrawn))])
