"""Several criteria: kept apart or made one verdict, by weights, and what they trade off."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_world import LABELERS, World, outcome, ranking, read, settings

from stages.lib.labels import criteria
from stages.lib.labels.consensus import Candidate
from stages.lib.labels.pairing import Ballot

WEIGHTS = {"harmless": 3.0, "helpful": 1.0}
DOWN = {0: 3, 1: 2, 2: 1}


@pytest.fixture
def world(tmp_path):
    """On p0 … p4 ann also ranks by helpful, the other way round than by harmless."""
    made = World(tmp_path)
    more = [ranking("ann", k, DOWN, criterion="helpful") for k in range(5)]
    made.write("rankings/ann", [*read(tmp_path / "rankings/ann.jsonl"), *more])
    return made


def candidate(
    criterion, p_first, *, margin=1.0, votes=1, junk=False, labelers=("ann",), id="c1:c2"
):
    return Candidate(
        id=id, criterion=criterion, prompt_id="p1", first="c1", second="c2", p_first=p_first, margin=margin,
        labelers=list(labelers), votes=votes, junk=junk, share=1.0,
    )  # fmt: skip


def ballot(*candidates, criterion=None):
    name = criterion or candidates[0].criterion
    return Ballot(name, list(candidates), set(), {"p1": {"c1", "c2"}}, {("c1", "c2", "")}, [])


def verdict(*candidates, weights=WEIGHTS):
    (one,) = criteria.together([ballot(c) for c in candidates], weights).candidates
    return one


# Apart


def test_apart_each_criterion_makes_pairs_that_name_it_and_weigh_its_share(world):
    world.run(criteria=WEIGHTS, combine="apart")
    written = world.pairs("train")
    assert written == sorted(written, key=lambda pair: (pair.prompt_id, pair.id))
    of_prompt = {p.id: p for p in world.pairs("train") if p.prompt_id == "p0"}
    assert set(of_prompt) == {
        f"p0#{a}:p0#{b}:{name}" for a, b in ((0, 1), (0, 2), (1, 2)) for name in WEIGHTS
    }
    one, other = of_prompt["p0#0:p0#1:harmless"], of_prompt["p0#0:p0#1:helpful"]
    assert (one.criterion, one.chosen_id, one.votes) == ("harmless", "p0#0", 3)
    assert (other.criterion, other.chosen_id, other.votes) == ("helpful", "p0#1", 1)
    # 3/4 and 1/4, each over the three pairs of three completions
    assert (one.weight, other.weight) == pytest.approx((0.75 / 3, 0.25 / 3))
    sums = dict.fromkeys(("p0", "p5"), 0.0)
    for pair in world.pairs("train"):
        if pair.prompt_id in sums:
            sums[pair.prompt_id] += pair.weight
    # both criteria judge p0; harmless alone judges p5
    assert sums == pytest.approx({"p0": 1.0, "p5": 0.75})
    assert world.report()["pairs"]["criteria"] == {"harmless": 30, "helpful": 15}


def test_the_pairs_of_a_criterion_are_those_of_a_run_on_it_alone(world):
    def seen(pairs):
        told = {"id", "weight"}
        return [(p.model_dump(exclude=told), pytest.approx(p.weight)) for p in pairs]

    world.run(criteria={"harmless": 1.0})
    alone = world.pairs("train")
    world.run(criteria=WEIGHTS, combine="apart")
    beside = [p for p in world.pairs("train") if p.criterion == "harmless"]
    assert seen(alone) == [
        (p.model_dump(exclude={"id", "weight"}), p.weight / 0.75) for p in beside
    ]


def test_the_figures_of_a_criterion_are_those_of_a_run_on_it_alone(world):
    world.run(criteria={"helpful": 1.0})
    alone = world.quality("helpful")
    world.run(criteria=WEIGHTS)
    beside = world.quality("helpful")
    assert (beside.pop("weight"), alone.pop("weight")) == (0.25, 1.0)
    assert beside == alone


# Together


def test_together_a_pair_has_one_verdict_the_weighted_mean(world):
    world.run(criteria=WEIGHTS, combine="together")
    by_id = {p.id: p for p in world.pairs("train")}
    pair = by_id["p0#0:p0#1"]
    # harmless 1 by three votes, helpful 0 by one: (3 * 1 + 1 * 0) / 4
    assert (pair.criterion, pair.chosen_id, pair.p_chosen) == ("together", "p0#0", 0.75)
    assert (pair.votes, pair.labelers) == (4, ["ann", "bob", "eve"])
    assert pair.weight == pytest.approx(1 / 3)
    # harmless 2/3, helpful 0: (3 * 2/3 + 0) / 4 is a tie, and ties are dropped
    assert "p0#1:p0#2" not in by_id
    # helpful says nothing of p5, so harmless decides alone
    assert by_id["p5#1:p5#2"].p_chosen == pytest.approx(2 / 3)
    assert world.report()["pairs"]["left_out"]["tie"] == 5


def test_together_each_labelers_own_verdicts_are_joined_where_verdicts_stay_apart(world):
    world.run(
        criteria={"harmless": 1.0, "helpful": 3.0}, combine="together", consensus="per_labeler"
    )
    by_id = {p.id: p for p in world.pairs("train")}
    # ann: (1 * 1 + 3 * 0) / 4 = 1/4; bob has ranked by harmless alone
    ann, bob = by_id["p0#0:p0#1:ann"], by_id["p0#0:p0#1:bob"]
    assert (ann.chosen_id, ann.p_chosen) == ("p0#1", 0.75)
    assert (bob.chosen_id, bob.p_chosen) == ("p0#0", 1.0)


def test_a_criterion_under_which_all_abstain_says_nothing_and_a_split_vote_is_a_half():
    silent, split = (
        candidate("helpful", 0.5, votes=0, labelers=()),
        candidate("helpful", 0.5, votes=2),
    )
    sure = candidate("harmless", 1.0)
    assert verdict(sure, silent).p_first == 1.0
    assert verdict(sure, split).p_first == (3 * 1 + 1 * 0.5) / 4
    assert (verdict(silent).p_first, verdict(silent).votes) == (0.5, 0)


def test_weights_that_cancel_make_an_exact_tie():
    # 0.1 + 0.2 is not quite 0.3
    found = verdict(
        candidate("a", 1.0), candidate("b", 1.0), candidate("c", 0.0),
        weights={"a": 0.1, "b": 0.2, "c": 0.3},
    )  # fmt: skip
    assert found.p_first == 0.5


def test_a_verdict_is_junk_where_half_of_what_speaks_for_the_winner_is_no_more():
    junk, good = candidate("harmless", 1.0, junk=True), candidate("helpful", 1.0)
    assert verdict(junk, good).junk  # 3 of 4
    assert not verdict(replace(junk, junk=False), replace(good, junk=True)).junk  # 1 of 4
    assert verdict(junk, replace(good, p_first=0.0)).junk  # helpful speaks for the other
    assert not verdict(
        replace(good, p_first=0.9),
        replace(junk, p_first=0.0),
        weights={"helpful": 9, "harmless": 1},
    ).junk


P = st.floats(0, 1)


@given(st.lists(P, min_size=2, max_size=4), st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_exchanging_the_two_completions_gives_the_complement(chances, weights):
    names = "abcd"[: len(chances)]
    by_name = dict(zip(names, weights, strict=False))
    there = verdict(*map(candidate, names, chances), weights=by_name).p_first
    back = verdict(*map(candidate, names, [1 - p for p in chances]), weights=by_name).p_first
    assert there + back == pytest.approx(1)
    assert min(chances) - 1e-9 <= there <= max(chances) + 1e-9
    twice = {name: 2 * weight for name, weight in by_name.items()}
    assert verdict(*map(candidate, names, chances), weights=twice).p_first == pytest.approx(there)


# Both


@pytest.mark.parametrize("consensus", ["per_labeler", "majority", "weighted", "soft"])
def test_of_one_criterion_it_makes_no_difference_how_several_would_be_combined(world, consensus):
    found = []
    for weight, combine in ((1.0, "apart"), (1.0, "together"), (0.3, "together")):
        world.run(criteria={"harmless": weight}, combine=combine, consensus=consensus)
        found.append(outcome(world))
    assert found[0] == found[1] == found[2]
    pair = next(p for p in world.pairs("train") if p.prompt_id == "p0")
    assert (pair.criterion, pair.id.count("harmless")) == ("harmless", 0)


@pytest.mark.parametrize("combine", ["apart", "together"])
def test_neither_the_order_of_criteria_nor_of_labelers_changes_a_byte(world, combine):
    world.run(criteria=WEIGHTS, combine=combine, consensus="weighted")
    before = outcome(world)
    for name in LABELERS:
        rows = read(world.root / "rankings" / f"{name}.jsonl")
        world.write(f"rankings/{name}", rows[::-1])
    turned = dict(reversed(LABELERS.items()))
    weights = dict(reversed(WEIGHTS.items()))
    world.run(criteria=weights, combine=combine, consensus="weighted", labelers=turned)
    assert outcome(world) == before


def test_a_contradiction_on_one_criterion_spares_the_other_where_they_stay_apart(world):
    rows = read(world.root / "rankings" / "ann.jsonl")
    again = ranking("ann", 0, {0: 3, 1: 1, 2: 2}, criterion="helpful")  # 1 and 2 turned round
    world.write("rankings/ann", [*rows, again])
    world.run(criteria=WEIGHTS, combine="apart", max_rejected=0.1)
    assert world.report()["pairs"]["removed_ids"] == {"contradiction": ["p0#1:p0#2:helpful"]}
    world.run(criteria=WEIGHTS, combine="together", max_rejected=0.1)
    assert world.report()["pairs"]["removed_ids"] == {"contradiction": ["p0#1:p0#2"]}


def test_the_headline_names_the_criterion_where_there_are_several(world):
    found = world.run(criteria=WEIGHTS)
    assert found["harmless/agreement"] == pytest.approx(70 / 90)
    assert "helpful/ann/tie_rate" in found
    assert "agreement" not in found


def test_a_criterion_called_as_all_are_together_is_refused():
    with pytest.raises(ValueError, match="criteria holds 'together', which is what pairs that"):
        settings(criteria={"together": 1.0})


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        settings(criteria={"harmless": 0.0})


# The trade-off


def test_the_trade_off_counts_where_two_criteria_go_together_and_which_one_prevails(world):
    world.run(criteria=WEIGHTS)
    (couple, found), *none = world.report()["trade_off"].items()
    assert (couple, none, found["pairs"]) == ("harmless:helpful", [], 15)
    # ann's helpful is the reverse of harmless on all 15 pairs of p0 … p4
    assert (found["conflict"]["value"], found["alike"]["value"], found["tie"]["value"]) == (1, 0, 0)
    # 3 : 1 takes the two unanimous pairs of each prompt; the third is 2/3 of 3/4, a tie
    taken = {side: own["value"] for side, own in found["taken"].items()}
    assert taken == pytest.approx({"harmless": 2 / 3, "helpful": 0, "neither": 1 / 3})


def trade_off(ballots, weights):
    made = criteria.TradeOff(weights)
    made.add(ballots, {"p1": 0})
    return made.figures(resamples=20, seed=1)["a:b"]


def test_shares_of_the_trade_off_are_of_the_pairs_judged_under_both():
    alike, tie, conflict, alone = (f"c{k}:d{k}" for k in range(4))
    one = ballot(
        candidate("a", 1.0, id=alike), candidate("a", 0.5, id=tie), candidate("a", 0.9, id=conflict),
        candidate("a", 1.0, id=alone), criterion="a",
    )  # fmt: skip
    other = ballot(
        candidate("b", 0.8, id=alike), candidate("b", 1.0, id=tie), candidate("b", 0.0, id=conflict),
        criterion="b",
    )  # fmt: skip
    weights = {"a": 1.0, "b": 1.0}
    found = trade_off([other, one], weights)
    assert found["pairs"] == 3
    for name in ("alike", "conflict", "tie"):
        assert found[name]["value"] == pytest.approx(1 / 3)
    # (0.9 + 0) / 2 = 0.45 is b's side
    assert {side: own["value"] for side, own in found["taken"].items()} == {
        "a": 0,
        "b": 1,
        "neither": 0,
    }


def test_criteria_that_share_no_pair_have_a_reason_and_no_share():
    found = trade_off([ballot(candidate("a", 1.0)), ballot(criterion="b")], {"a": 1, "b": 1})
    assert found["alike"] == {"refused": "no pair is judged under both a and b"}
    assert found["taken"]["a"] == {"refused": "a and b are in conflict on no pair"}


def test_one_criterion_has_no_trade_off(world):
    world.run()
    assert "trade_off" not in world.report()
