"""Labels of several people, kinds and places: what is read, what counts, what is refused."""

import pytest
from label_world import (
    LABELERS,
    World,
    by_people,
    completion,
    prompt,
    ranking,
    thumb,
    written,
)

from stages.lib.labels import reading
from stages.lib.labels.reading import Source
from stages.lib.records import Completion, Prompt, Ranking, Skip, Thumbs, latest
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

PEOPLE = LABELERS | {"people": {"kind": "people", "gold": None}}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def skip(labeler, number, shown, task="ranking", **more):
    row = by_people("skip", labeler, number, task=task, shown=shown, reason="unclear")
    return row | more


# Rankings


def test_several_people_of_one_file_vote_each_by_their_own_name(world):
    up, down = {0: 1, 1: 2, 2: 3}, {0: 3, 1: 2, 2: 1}
    world.write("rankings/people", [ranking("dan", 0, up), ranking("fay", 0, down)])
    world.run(labelers=PEOPLE)
    pair = next(p for p in world.pairs("train") if p.id == "p0#0:p0#2")
    # ann, bob, eve and dan against fay
    assert (pair.p_chosen, pair.labelers) == (0.8, ["ann", "bob", "dan", "eve", "fay"])
    who = world.report()["labelers"]
    assert {name: own["kind"] for name, own in who.items()} == {
        "ann": "lexicon", "bob": "lexicon", "dan": "people", "eve": "lexicon", "fay": "people",
    }  # fmt: skip


def test_a_run_without_people_gives_what_it_gives_without_their_entry(world):
    world.run()
    before = world.report(), world.pairs("train")
    world.write("rankings/people", [])
    world.run(labelers=PEOPLE)
    assert (world.report(), world.pairs("train")) == before


def test_a_person_who_is_called_like_an_entry_is_refused(world):
    for name in ("bob", "people"):
        world.write("rankings/people", [ranking(name, 0, {0: 1, 1: 2})])
        assert world.refusal(RecordError, labelers=PEOPLE) == (
            f"rankings/people.jsonl:1: labeler is '{name}', as an entry of labelers is called; a "
            "person needs a name of their own"
        )


def test_a_skip_takes_back_what_was_ranked_and_is_counted(world):
    ids = ["p0#0", "p0#1"]
    said = [ranking("dan", 0, {0: 2, 1: 1}), skip("dan", 0, ids, revision=2)]
    world.write("rankings/people", said)
    world.run(labelers=PEOPLE)
    assert all("dan" not in pair.labelers for pair in world.pairs("train"))
    assert world.report()["left_out"]["taken_back"] == {"dan": 1}
    world.write("rankings/people", [*said, ranking("dan", 0, {0: 2, 1: 1}, revision=3)])
    world.run(labelers=PEOPLE)
    assert any("dan" in pair.labelers for pair in world.pairs("train"))


# Thumbs


def test_thumbs_become_signals_by_majority(world):
    lines = [
        thumb("dan", 0, 0, True), thumb("fay", 0, 0, True), thumb("gus", 0, 0, False),
        thumb("dan", 3, 1, False), thumb("fay", 3, 1, True), thumb("gus", 3, 1, False),
        thumb("hal", 3, 1, False),
        thumb("dan", 4, 0, True), thumb("fay", 4, 0, False),  # one each: a tie
        thumb("gus", 0, 2, True, criterion="helpful"),
    ]  # fmt: skip
    world.write("rankings/people", lines)
    found = world.run(labelers=PEOPLE)
    one, other = world.signals()
    assert (one.id, one.up, one.share, one.votes) == ("p0#0:harmless", True, 2 / 3, 3)
    assert (one.labelers, one.text, one.prompt) == (
        ["dan", "fay", "gus"],
        "answer 0",
        "beginning 0",
    )
    assert (other.id, other.up, other.role) == ("p3#1:harmless", False, "validation")
    assert (other.share, other.votes) == (0.75, 4)
    report = world.report()
    assert report["signals"] == {"written": 2, "up": 1, "left_out": {"leak": 0, "tie": 1}}
    assert report["left_out"]["other_criterion"] == {"gus": 1}
    assert found["signals"] == 2
    assert report["labelers"]["dan"]["thumbs"] == 3


def test_of_two_thumbs_on_one_completion_the_higher_revision_counts(world):
    world.write(
        "rankings/people", [thumb("dan", 0, 0, False, revision=2), thumb("dan", 0, 0, True)]
    )
    world.run(labelers=PEOPLE)
    assert [(one.up, one.votes) for one in world.signals()] == [(False, 1)]
    assert world.report()["labelers"]["dan"]["thumbs"] == 1


def test_a_completion_whose_prompt_has_a_twin_in_another_split_gives_no_signal(world):
    path = world.root / "prompts" / "test.jsonl"
    rows = [row.model_dump() for row in files.read_lines(path, Prompt)]
    files.write_lines(path, [rows[0] | {"cluster": "p0"}, *rows[1:]])
    world.write("rankings/people", [thumb("dan", 0, 0, True), thumb("dan", 1, 0, True)])
    world.run(labelers=PEOPLE, max_rejected=0.5)
    assert [one.prompt_id for one in world.signals()] == ["p1"]
    assert world.report()["signals"]["left_out"]["leak"] == 1


def test_thumbs_alone_are_something_to_learn_from(world):
    (world.root / "rankings").rename(world.root / "old")
    world.write("rankings/people", [thumb("dan", 0, 0, True)])
    found = world.run(labelers={"people": PEOPLE["people"]}, consensus="weighted")
    assert (found["signals"], found["pairs_train"]) == (1, 0)


# Written answers


def test_an_answer_to_a_training_prompt_becomes_a_demonstration_and_no_other(world):
    path = world.root / "prompts" / "train.jsonl"
    chat = [{"role": "user", "content": "Say it."}]
    rows = [row.model_dump() for row in files.read_lines(path, Prompt)]
    files.write_lines(path, [rows[0] | {"form": "chat", "text": None, "messages": chat}, *rows[1:]])
    lines = [
        written(who, number, f" said {who}.") for who in ("dan", "fay") for number in (0, 3, 4)
    ]
    world.write("rankings/people", lines)
    found = world.run(labelers=PEOPLE)
    one, other = world.demonstrations()  # p3 is a validation prompt, p4 a test prompt
    assert (one.id, other.id) == ("p0:dan:harmless", "p0:fay:harmless")
    assert (one.form, one.text, one.answer) == ("chat", None, " said dan.")
    assert [message.model_dump() for message in one.messages] == chat
    counts = world.report()["demonstrations"]
    assert counts == {"written": 2, "left_out": {"leak": 0, "test": 2, "validation": 2}}
    assert found["demonstrations"] == 2


def test_an_answer_written_again_replaces_the_first(world):
    lines = [written("dan", 0, " at first."), written("dan", 0, " at last.", revision=2)]
    world.write("rankings/people", lines)
    world.run(labelers=PEOPLE)
    assert [one.answer for one in world.demonstrations()] == [" at last."]


# Several places


def place(number, labeler, kind, *, folder="set"):
    """A place of one prompt with two completions and one ranking."""
    name = f"{folder}/{number}.jsonl"
    row = ranking(labeler, number, {0: 1, 1: 2})
    return Source(
        [(f"{name}:1", Prompt(**prompt(number, "align")))],
        [(f"{name}:{k + 2}", Completion(**completion(number, k))) for k in range(2)],
        [(f"{name}:4", Ranking(**row))],
        {labeler: kind},
        {"crowd": {labeler}},
    )


def test_places_are_joined_with_all_that_they_give():
    everything = reading.Everything([place(1, "w1", "crowd"), place(2, "w2", "crowd")])
    (given,) = everything
    assert list(given.prompts) == ["p1", "p2"]
    assert len(given.completions) == 4
    assert [label.labeler for label in given.labels] == ["w1", "w2"]
    assert everything.groups == {"crowd": {"w1", "w2"}}


def test_an_id_that_two_places_give_is_refused():
    with pytest.raises(
        RecordError, match=r"^b/1.jsonl:1: prompt p1 occurs twice; ids must differ$"
    ):
        reading.Everything([place(1, "w1", "crowd"), place(1, "w2", "crowd", folder="b")])


def test_a_labeler_who_is_two_things_is_refused():
    with pytest.raises(
        RecordError, match=r"^labeler w1 is crowd in one place and people in another"
    ):
        reading.Everything([place(1, "w1", "crowd"), place(2, "w1", "people")])


def test_the_latest_word_on_each_task_counts_and_repeats_do_not():
    base = ranking("dan", 0, {0: 1, 1: 2})
    lines = [
        Ranking(**base), Ranking(**base | {"revision": 2}), Ranking(**base | {"repeat": True}),
        Thumbs(**thumb("dan", 0, 0, True)),
    ]  # fmt: skip
    assert latest(lines) == [lines[1], lines[3]]


def test_only_the_task_that_was_skipped_is_taken_back():
    ids = ["p1#0", "p1#1"]
    one = place(1, "w1", "crowd")
    thumbs = Thumbs(**thumb("w1", 1, 0, True))
    taken = Skip(**skip("w1", 1, ids, revision=2))
    (given,) = reading.Everything(
        [Source(one.prompts, one.completions, [*one.labels, ("x:1", thumbs), ("x:2", taken)], one.kinds, {})]
    )  # fmt: skip
    assert given.labels == [thumbs]
    assert given.taken_back == {"w1": 1}
