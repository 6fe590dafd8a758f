"""Whose labels make pairs: those named, on what is asked, and never an answer key's."""

import pytest
from label_world import LABELERS, World, outcome, ranking, read, thumb, written

from stages.lib.labels.consensus import LabelError

PEOPLE = LABELERS | {"people": {"kind": "people", "gold": None}}
KEY = LABELERS | {"people": {"kind": "people", "gold": "sue"}}
UP, DOWN = {0: 1, 1: 2, 2: 3}, {0: 3, 1: 2, 2: 1}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def made(world):
    """What is learned from, byte by byte."""
    return {name: text for name, text in outcome(world).items() if name != "metrics"}


# By name


@pytest.mark.parametrize("consensus", ["per_labeler", "majority", "weighted", "soft"])
def test_the_pairs_of_one_named_labeler_are_those_of_a_world_without_the_others(world, consensus):
    world.run(consensus=consensus, only=["eve"])
    named = made(world)
    for name in ("ann", "bob"):
        (world.root / f"rankings/{name}.jsonl").unlink()
    world.run(consensus=consensus, labelers={"eve": LABELERS["eve"]})
    assert made(world) == named


def test_who_is_not_named_is_counted_and_stays_in_the_figures(world):
    world.run()
    everybody = world.quality()
    world.run(only=["eve"])
    report = world.report()
    assert report["left_out"]["not_named"] == {"ann": 10, "bob": 10}
    assert report["labelers"]["ann"]["vote"] == "none: not named in pairs.labelers"
    assert report["labelers"]["eve"]["vote"] == "counts"
    assert world.quality()["agreement"] == everybody["agreement"]
    assert world.quality()["labelers"] == everybody["labelers"]


def test_the_name_of_an_entry_of_people_stands_for_all_of_them(world):
    world.write("rankings/people", [ranking("dan", 0, UP), ranking("fay", 1, DOWN)])
    world.run(labelers=PEOPLE, only=["people"])
    by_entry = made(world)
    assert {pair.prompt_id for pair in world.pairs("train")} == {"p0", "p1"}
    world.run(labelers=PEOPLE, only=["fay", "dan"])
    assert made(world) == by_entry


def test_a_name_that_is_nobodys_is_refused_with_those_there_are(world):
    world.write("rankings/people", [ranking("dan", 0, UP)])
    assert world.refusal(LabelError, labelers=PEOPLE, only=["zoe"]) == (
        "pairs.labelers names zoe, which is nobody; there are ann, bob, dan, eve, people"
    )


def test_naming_people_of_whom_none_has_labeled_is_refused(world):
    world.write("rankings/people", [])
    assert world.refusal(LabelError, labelers=PEOPLE, only=["people"]) == (
        "none of 0 rankings compares two completions; a pair needs two of one prompt, not both "
        "junk; 30 labels are left out as not_named"
    )


# By criterion


def test_labels_of_another_criterion_are_left_out_and_counted(world):
    rows = read(world.root / "rankings" / "eve.jsonl")
    world.write("rankings/eve", [row | {"criterion": "helpful"} for row in rows])
    assert world.run()["agreement"] == 1
    report = world.report()
    assert report["left_out"]["other_criterion"] == {"eve": 10}
    assert report["labelers"]["eve"]["vote"] == "none: no label on what is asked"
    assert set(world.quality()["labelers"]) == {"ann", "bob"}


def test_a_criterion_that_no_label_states_is_refused(world):
    assert world.refusal(LabelError, criteria={"honest": 1.0}) == (
        "no label states the criterion honest; they state harmless"
    )
    for name in LABELERS:
        world.write(f"rankings/{name}", [])
    assert world.refusal(LabelError).endswith("criterion harmless; they state none at all")


# The answer key


def test_an_answer_key_has_no_vote_and_moves_no_figure_of_the_others(world):
    world.write("rankings/people", [ranking("dan", k, DOWN) for k in range(10)])
    world.run(labelers=KEY)
    before, figures = made(world), world.quality()
    key = [ranking("sue", k, DOWN) for k in range(10)]
    lines = [*key, *(ranking("dan", k, DOWN) for k in range(10)), thumb("sue", 0, 0, True)]
    world.write("rankings/people", lines)
    world.run(labelers=KEY)
    assert made(world) == before
    assert world.signals() == []
    now = world.quality()
    assert (now["agreement"], now["elo"]) == (figures["agreement"], figures["elo"])
    for name, own in figures["labelers"].items():
        moved = {key for key, found in own.items() if now["labelers"][name][key] != found}
        assert moved == {"gold"}
    assert world.report()["left_out"]["answer_key"] == {"sue": 11}
    assert world.report()["labelers"]["sue"]["vote"] == "none: answer key"


def test_everybody_is_measured_against_the_answer_key(world):
    # the key on p0: 0 over 1 over 2; ann and bob say the same, eve turns the last two round
    world.write("rankings/people", [ranking("sue", 0, UP), ranking("sue", 1, {0: 1, 1: 1, 2: 3})])
    world.run(labelers=KEY)
    own = world.quality()["labelers"]
    # ann: 3 pairs of p0 and 2 of p1, whose pair 0:1 the key ties
    assert (own["ann"]["gold"]["value"], own["ann"]["gold"]["n"]) == (1, 5)
    assert own["ann"]["gold"]["tied_by_one"] == 1
    # eve turns the last two round: 2 of 3, and 1 of 2
    assert (own["eve"]["gold"]["value"], own["eve"]["gold"]["opposite"]) == (0.6, 2)
    reason = {"refused": "sue ranks for the answer key, which the others are measured by"}
    assert own["sue"]["gold"] == own["sue"]["skill"] == own["sue"]["kendall"] == reason
    assert own["sue"]["tie_rate"]["value"] == pytest.approx(1 / 6)


def test_without_an_answer_key_the_figure_says_so(world):
    world.run()
    found = world.quality()["labelers"]["ann"]["gold"]
    assert found == {"refused": "no entry of labelers names an answer key (`gold`)"}
    world.write("rankings/people", [])
    world.run(labelers=KEY)
    found = world.quality()["labelers"]["ann"]["gold"]
    assert found == {"refused": "ann judges no pair that sue judges"}


def test_what_an_answer_key_wrote_is_an_answer_like_others(world):
    world.write("rankings/people", [written("sue", 0, " yes.")])
    world.run(labelers=KEY)
    assert [one.id for one in world.demonstrations()] == ["p0:sue:harmless"]


def test_naming_the_answer_key_as_a_voter_is_refused(world):
    world.write("rankings/people", [ranking("sue", 0, UP)])
    assert world.refusal(LabelError, labelers=KEY, only=["sue"]) == (
        "pairs.labelers names sue, who ranks for the answer key and has no vote; leave the name "
        "out here, or set the entry's gold to null"
    )
