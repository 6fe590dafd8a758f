"""Labelers beyond a threshold are named, and left out where params say so: never silently."""

import pytest
from label_world import LABELERS, UNASKED, World, outcome, ranking

from stages.lib.labels import flags
from stages.lib.labels.consensus import LabelError
from stages.lib.labels.flags import BOUNDS, Quality

KEY = LABELERS | {"people": {"kind": "people", "gold": "sue"}}


def figures(**given):
    """Figures of one labeler, ann; what is not given was refused."""
    refused = {"refused": "not measured"}
    own = dict.fromkeys(BOUNDS, refused) | {
        name: dict(zip(("value", "low", "high", "n"), numbers, strict=True))
        for name, numbers in given.items()
    }
    return {"harmless": {"labelers": {"ann": {**own, "prompts": 40}}}}


def asked(**given):
    return Quality(**(UNASKED | given))


def test_a_figure_is_flagged_beyond_its_threshold_and_not_at_it():
    found = figures(skill=(0.6, 0.5, 0.7, 80), tie_rate=(0.8, 0.7, 0.9, 80))
    assert flags.flags(asked(min_skill=0.6, max_tie_rate=0.8), found) == []
    both = flags.flags(asked(min_skill=0.61, max_tie_rate=0.79), found)
    assert [(flag.figure, flag.value, flag.threshold) for flag in both] == [
        ("skill", 0.6, 0.61),
        ("tie_rate", 0.8, 0.79),
    ]
    assert (both[0].low, both[0].high, both[0].n) == (0.5, 0.7, 80)


@pytest.mark.parametrize(("name", "parameter"), BOUNDS.items())
def test_every_threshold_is_asked_of_its_own_figure_and_null_asks_nothing(name, parameter):
    found = figures(**{name: (0.5, 0.4, 0.6, 10)})
    beyond, within = (0.55, 0.45) if parameter.startswith("min") else (0.45, 0.55)
    (flag,) = flags.flags(asked(**{parameter: beyond}), found)
    assert (flag.labeler, flag.criterion, flag.figure) == ("ann", "harmless", name)
    assert flags.flags(asked(**{parameter: within}), found) == []
    assert flags.flags(asked(), found) == []


def test_only_a_whole_interval_beyond_the_threshold_leaves_out():
    wholly, partly = figures(skill=(0.5, 0.4, 0.59, 80)), figures(skill=(0.5, 0.4, 0.6, 80))
    out = asked(min_skill=0.6, leave_out=True)
    assert flags.left_out(flags.flags(out, wholly)) == {"harmless": {"ann"}}
    assert flags.left_out(flags.flags(out, partly)) == {}
    assert flags.left_out(flags.flags(asked(min_skill=0.6), wholly)) == {}
    above = figures(tie_rate=(0.9, 0.85, 0.95, 80))
    assert flags.left_out(flags.flags(asked(max_tie_rate=0.8, leave_out=True), above))
    assert not flags.left_out(flags.flags(asked(max_tie_rate=0.86, leave_out=True), above))


def test_a_figure_that_was_refused_flags_nobody():
    every = {name: (1.0 if name.startswith("min") else 0.0) for name in BOUNDS.values()}
    assert flags.flags(asked(**every), figures()) == []


def test_a_figure_of_few_prompts_is_held_against_nobody():
    found = figures(skill=(0.2, 0.2, 0.2, 3), gold=(0.0, 0.0, 0.0, 3))
    found["harmless"]["labelers"]["ann"]["gold"]["clusters"] = 3  # of the 40 that ann ranked
    given = {"min_skill": 0.6, "min_gold": 0.6, "leave_out": True}
    assert len(flags.flags(asked(**given, min_prompts=3), found)) == 2
    assert [flag.figure for flag in flags.flags(asked(**given, min_prompts=4), found)] == ["skill"]
    assert flags.flags(asked(**given, min_prompts=41), found) == []


# In the stage


@pytest.fixture
def world(tmp_path):
    """Its answer key says 0 over 1 over 2 of every prompt: eve has two of three pairs right."""
    made = World(tmp_path)
    made.write("rankings/people", [ranking("sue", k, {0: 1, 1: 2, 2: 3}) for k in range(10)])
    return made


def test_who_is_flagged_is_named_everywhere_and_votes_all_the_same(world, capsys):
    world.run(labelers=KEY)
    before = {name: text for name, text in outcome(world).items() if name != "metrics"}
    assert capsys.readouterr().err == ""
    found = world.run(labelers=KEY, quality={"min_gold": 0.7})
    assert {n: t for n, t in outcome(world).items() if n != "metrics"} == before
    assert capsys.readouterr().err == (
        "pairs.quality: 1 labeler beyond a threshold: eve (harmless): gold 0.67 [0.67, 0.67] below "
        "0.7; whoever is not left out still votes\n"
    )
    (flag,) = world.report()["flagged"]
    assert (flag["labeler"], flag["figure"], flag["threshold"], flag["left_out"]) == (
        "eve", "gold", 0.7, False,
    )  # fmt: skip
    assert flag["value"] == flag["low"] == flag["high"] == pytest.approx(2 / 3)
    assert (found["flagged"], found["flagged_left_out"]) == (1, 0)


def test_who_is_left_out_has_no_vote_and_is_named_and_counted(world, capsys):
    found = world.run(labelers=KEY, quality={"min_gold": 0.7, "leave_out": True})
    now = {name: text for name, text in outcome(world).items() if name != "metrics"}
    assert capsys.readouterr().err.endswith("gold 0.67 [0.67, 0.67] below 0.7, left out\n")
    report = world.report()
    assert report["left_out"]["low_quality"] == {"eve": 10}
    assert report["labelers"]["eve"]["vote"] == "none on harmless: low quality"
    assert "eve" in world.quality()["labelers"]  # her figures stay
    assert found["flagged_left_out"] == 1
    world.run(labelers=KEY, only=["ann", "bob"])
    assert now == {name: text for name, text in outcome(world).items() if name != "metrics"}


def test_a_threshold_that_leaves_nobody_is_refused(world):
    for name in LABELERS:
        world.write(f"rankings/{name}", [ranking(name, k, {0: 3, 1: 2, 2: 1}) for k in range(10)])
    message = world.refusal(LabelError, labelers=KEY, quality={"min_gold": 0.7, "leave_out": True})
    assert message == (
        "none of 0 rankings compares two completions; a pair needs two of one prompt, not both "
        "junk; 10 labels are left out as answer_key; 30 labels are left out as low_quality"
    )
