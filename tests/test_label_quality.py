"""The figures of each labeler, and people beside models."""

import pytest
from label_world import LABELERS, World, outcome, ranking, read

PEOPLE = LABELERS | {"people": {"kind": "people", "gold": None}}
UP, DOWN = {0: 1, 1: 2, 2: 3}, {0: 3, 1: 2, 2: 1}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def figures(world, *lines, labelers=PEOPLE, **changed):
    world.write("rankings/people", lines)
    world.run(labelers=labelers, **changed)
    return world.quality()


# Self-consistency


def test_self_consistency_is_of_the_pairs_that_a_labeler_orders_twice(world):
    found = figures(
        world,
        ranking("dan", 0, UP), ranking("dan", 1, UP), ranking("dan", 2, UP),
        ranking("dan", 0, {0: 1, 1: 3, 2: 2}, repeat=True),  # the last two turned round
        ranking("dan", 1, {0: 1, 1: 1, 2: 3}, repeat=True),  # the first two tied
    )["labelers"]["dan"]["self_consistency"]  # fmt: skip
    # p0: 2 of 3; p1: 2 of 2 without the tie; p2 was not asked again
    assert (found["value"], found["n"]) == (0.8, 5)
    counts = ("alike", "opposite", "tied_by_one", "tied_by_both")
    assert [found[name] for name in counts] == [4, 1, 1, 0]


def test_a_repeat_makes_no_pair_and_moves_no_other_figure(world):
    before_figures = figures(world, ranking("dan", 0, UP))
    before = outcome(world)
    after = figures(world, ranking("dan", 0, UP), ranking("dan", 0, DOWN, repeat=True))
    now = outcome(world)
    assert {k: v for k, v in now.items() if k != "metrics"} == {
        k: v for k, v in before.items() if k != "metrics"
    }
    assert after["labelers"]["dan"].pop("self_consistency")["value"] == 0
    assert before_figures["labelers"]["dan"].pop("self_consistency") == {
        "refused": "dan ranks nothing a second time"
    }
    assert after == before_figures


def test_of_two_repeats_the_higher_revision_counts(world):
    lines = [ranking("dan", 0, UP), ranking("dan", 0, UP, repeat=True, revision=2)]
    found = figures(world, *lines, ranking("dan", 0, DOWN, repeat=True))
    assert found["labelers"]["dan"]["self_consistency"]["value"] == 1


# Position


def test_the_position_that_was_shown_is_read_of_people_alone(world):
    shown = {"shown": ["p0#2", "p0#0", "p0#1"]}
    found = figures(world, ranking("dan", 0, {2: 1, 0: 2, 1: 3}, **shown))["labelers"]
    assert found["dan"]["position_follow_rate"]["value"] == 1
    assert found["ann"]["position_follow_rate"] == {
        "refused": "ann is no person: nothing was shown to it in a shuffled order"
    }


# People beside models


def test_people_are_read_beside_each_model_and_each_kind(world):
    found = figures(world, ranking("dan", 0, UP), ranking("fay", 0, DOWN), ranking("fay", 1, UP))
    beside = found["agreement"]["people"]
    assert set(beside) == {"ann", "bob", "eve"}
    # ann with dan 3 of 3 on p0, with fay 0 of 3 on p0 and 3 of 3 on p1
    assert (beside["ann"]["value"], beside["ann"]["n"]) == (pytest.approx(6 / 9), 9)
    # eve turns the last two round: 2, 1 and 2 of 3
    assert (beside["eve"]["value"], beside["eve"]["n"]) == (pytest.approx(5 / 9), 9)
    assert beside["eve"]["low"] <= 5 / 9 <= beside["eve"]["high"]
    kinds = found["agreement"]["kinds"]
    assert set(kinds) == {"lexicon:lexicon", "lexicon:people", "people:people"}
    assert kinds["lexicon:people"]["n"] == 27
    assert kinds["people:people"]["value"] == 0
    assert found["agreement"]["between"]["ann:fay"]["alike"] == 3


def test_without_people_no_model_is_read_beside_them(world):
    world.run()
    assert world.quality()["agreement"]["people"] == {}


def test_the_ranks_of_two_sets_of_completions_are_not_compared(world):
    # dan ranks two of three completions, so his ranks are of another set than ann's
    world.run()
    before = world.quality()["agreement"]["alpha_ordinal"]
    found = figures(world, ranking("dan", 0, {1: 1, 2: 2}))["agreement"]
    assert found["alpha_ordinal"] == before
    assert found["between"]["ann:dan"]["n"] == 1


# Later rounds


def test_a_pair_that_is_shown_in_a_later_round_again_is_one_vote(world):
    first = ranking("dan", 0, {0: 2, 1: 1}, submitted="2026-01-01T00:00:00Z")
    later = ranking("dan", 0, UP, submitted="2026-02-01T00:00:00Z")
    found = figures(world, first, later)
    assert found["labelers"]["dan"]["judged_again"] == 1
    pair = next(p for p in world.pairs("train") if p.id == "p0#0:p0#1")
    assert (pair.p_chosen, pair.votes) == (1.0, 4)  # dan's later word, once


def test_metrics_of_a_labeler_carry_their_name_without_signs_that_mlflow_refuses(world):
    rows = read(world.root / "rankings" / "eve.jsonl")
    world.write("rankings/people", [row | {"labeler": "w#1"} for row in rows])
    found = world.run(labelers=PEOPLE)
    assert found["w_1/tie_rate"] == 0
    assert not any("#" in name for name in found)
    assert found["ann/skill"] == world.quality()["labelers"]["ann"]["skill"]["value"]
