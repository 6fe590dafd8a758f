import gzip
import itertools
import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stages.lib.labels import consensus
from stages.lib.labels.consensus import LabelError
from stages.lib.records import Completion, Prompt, Ranking

DATA = Path(__file__).parents[1] / os.environ.get("PLUMBLINE_DATA", "../shared/data")


def ranking(ranks, labeler="ann", prompt="p1", junk=(), **more):
    fields = {
        "schema_version": 1,
        "kind": "ranking",
        "criterion": "harmless",
        "prompt_id": prompt,
        "labeler": labeler,
        "shown": [*ranks, *junk],
        "ranks": ranks,
        "junk": dict.fromkeys(junk, "garbled"),
        "revision": 1,
    }
    return Ranking(**(fields | more))


def prompt(id="p1", role="align", cluster=None):
    return Prompt(
        id=id,
        form="continuation",
        category="insult",
        source="test",
        text=f"text of {id}",
        role=role,
        cluster=cluster or id,
    )


def completion(id, prompt="p1", sampler="base", text=None, finish="stop"):
    return Completion(
        id=id,
        prompt_id=prompt,
        sampler=sampler,
        index=0,
        text=f"text of {id}" if text is None else text,
        finish=finish,
        tokens=3,
        logp=-1.0,
    )


def combine(*rankings, how="soft", ties="drop", skills=()):
    judged = [j for r in rankings for j in consensus.judgements(r)]
    return consensus.combine(judged, criterion="harmless", how=how, ties=ties, skills=dict(skills))


def gate(candidates, *, prompts=(), completions=(), contradicted=(), mixed_samplers=False):
    return consensus.gate(
        candidates,
        prompts={p.id: p for p in prompts or [prompt()]},
        completions={c.id: c for c in completions},
        contradicted=contradicted,
        leaking=consensus.leaking_clusters(prompts),
        mixed_samplers=mixed_samplers,
    )


def rows(candidates, completions, judged):
    by_id = {c.id: c for c in completions}
    return [
        consensus.record(pair, prompt=prompt(pair.prompt_id), completions=by_id, judged=judged)
        for pair in candidates
    ]


# Judgements


def test_ranks_2_1_3_give_three_pairs_preferred_first():
    ranked = combine(ranking({"c1": 2, "c2": 1, "c3": 3}))
    pairs = rows(ranked, [completion(f"c{k}") for k in (1, 2, 3)], judged=3)
    assert [(p.chosen_id, p.rejected_id) for p in pairs] == [
        ("c2", "c1"),
        ("c1", "c3"),
        ("c2", "c3"),
    ]
    assert [p.p_chosen for p in pairs] == [1, 1, 1]
    # ranks differ by 1, 1 and 2; three completions make three pairs of weight 1/3
    assert [p.margin for p in pairs] == [1, 1, 2]
    assert [p.weight for p in pairs] == pytest.approx([1 / 3] * 3)


def ranks_of(pairs):
    """The inverse: competition ranks and junk, from all pairs of what one labeler was shown.

    A completion's rank is one more than the number of those preferred to it; a pair marked junk
    says only that its rejected completion is junk.
    """
    found = {cid for p in pairs for cid in (p.chosen_id, p.rejected_id)}
    junk = {p.rejected_id for p in pairs if p.junk}
    better = dict.fromkeys(found - junk, 1)
    for p in pairs:
        if not p.junk and p.p_chosen > 0.5:
            better[p.rejected_id] += 1
    return better, junk


def competition(values):
    return [1 + sum(other < value for other in values) for value in values]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 3))
def test_rankings_with_ties_and_junk_come_back_from_their_pairs(values, junk):
    given_ranks = {f"c{k}": rank for k, rank in enumerate(competition(values))}
    bad = [f"f{k}" for k in range(junk)]
    assume(len(given_ranks) > 1 or bad)  # one completion alone makes no pair
    stated = ranking(given_ranks, junk=bad)
    answers = [completion(cid) for cid in [*given_ranks, *bad]]
    pairs = rows(combine(stated, how="per_labeler", ties="half"), answers, judged=len(answers))
    # all pairs, but for those of two junk completions
    assert len(pairs) == math.comb(len(answers), 2) - math.comb(junk, 2)
    assert ranks_of(pairs) == (given_ranks, set(bad))


@pytest.mark.parametrize("how", ["majority", "soft", "weighted"])
def test_a_planted_order_comes_back_from_labelers_who_err(how):
    # Nine labelers order five completions by a score of the planted place and noise, so that
    # neighbours are exchanged about one time in four; the consensus restores nearly every pair.
    rng = np.random.default_rng(4)
    lines = []
    for k, who in itertools.product(range(60), "abcdefghi"):
        order = np.argsort(np.arange(5) + rng.normal(0, 1.0, 5)).tolist()
        ranks = {f"p{k}-c{c}": place for place, c in enumerate(order, start=1)}
        lines.append(ranking(ranks, labeler=who, prompt=f"p{k}"))
    pairs = combine(*lines, how=how, skills=dict.fromkeys("abcdefghi", 0.8))
    back = np.mean([pair.p_first > 0.5 for pair in pairs])
    single = np.mean([j.verdict == 1 for line in lines for j in consensus.judgements(line)])
    assert len(pairs) == 600
    assert single < 0.92
    assert back > 0.95


def test_a_tie_is_a_judgement_of_its_own_and_never_an_order():
    assert [j.verdict for j in consensus.judgements(ranking({"c1": 1, "c2": 1}))] == [0]


def test_junk_is_below_everything_and_two_junk_completions_are_not_compared():
    judged = consensus.judgements(ranking({"c1": 2, "c3": 1}, junk=["c2", "c4"]))
    found = {(j.first, j.second): (j.verdict, j.junk) for j in judged}
    assert found == {
        ("c1", "c2"): (1, True),
        ("c1", "c3"): (-1, False),
        ("c1", "c4"): (1, True),
        ("c2", "c3"): (-1, True),
        ("c3", "c4"): (1, True),
    }  # and no ("c2", "c4")


def test_junk_stands_one_place_below_every_rank():
    assert consensus.places(ranking({"c1": 1, "c2": 1}, junk=["c3"])) == {"c1": 1, "c2": 1, "c3": 3}


def test_a_judgement_knows_which_of_the_two_was_seen_first():
    seen = ranking({"c1": 1, "c2": 2, "c3": 3}, shown=["c3", "c1", "c2"])
    assert [j.first_seen_first for j in consensus.judgements(seen)] == [True, False, False]


def test_scores_differ_only_where_both_completions_have_one():
    scored = ranking({"c1": 1, "c2": 2, "c3": 3}, scores={"c1": 0.5, "c2": 0.25})
    assert [j.score for j in consensus.judgements(scored)] == [0.25, None, None]


# Which lines count


def test_the_highest_revision_counts_wherever_it_stands():
    second = ranking({"c1": 2, "c2": 1}, revision=2)
    first = ranking({"c1": 1, "c2": 2}, revision=1)
    assert consensus.current([second, first]) == [second]
    assert consensus.current([first, second]) == [second]


def test_of_two_lines_of_one_revision_the_later_counts():
    one, other = ranking({"c1": 1, "c2": 2}), ranking({"c1": 2, "c2": 1})
    assert consensus.current([one, other]) == [other]


def test_labelers_and_criteria_each_keep_their_own_ranking():
    lines = [
        ranking({"c1": 1, "c2": 2}),
        ranking({"c1": 1, "c2": 2}, criterion="helpful"),
        ranking({"c1": 1, "c2": 2}, labeler="bob"),
    ]
    assert len(consensus.current(lines)) == 3


def test_two_lines_of_the_counting_revision_that_order_a_pair_both_ways_contradict():
    lines = [
        ranking({"c1": 1, "c2": 2, "c3": 3}, revision=2),
        ranking({"c1": 2, "c2": 1, "c3": 3}, revision=2),
    ]
    assert consensus.contradictions(lines) == {("ann", "c1", "c2")}


def test_a_change_of_mind_is_counted_and_is_no_contradiction():
    lines = [
        ranking({"c1": 1, "c2": 2, "c3": 3}, revision=1),
        ranking({"c1": 3, "c2": 2, "c3": 1}, revision=2),
        ranking({"c1": 2, "c2": 2, "c3": 1}, revision=3),
    ]
    # 1 to 2 turns all three pairs round; 2 to 3 only makes a tie of one
    assert consensus.contradictions(lines) == set()
    assert consensus.reversals(lines) == {"ann": 3}


def test_a_ranking_asked_a_second_time_counts_apart_from_the_first():
    first, again = ranking({"c1": 1, "c2": 2}), ranking({"c1": 2, "c2": 1}, repeat=True)
    assert consensus.current([first, again]) == [first]
    assert consensus.current([first, again], repeat=True) == [again]
    assert consensus.contradictions([first, again]) == set()


def test_a_pair_that_a_later_round_shows_again_has_one_judgement_the_later_one():
    # ann ranks c1 and c2 alone, then all four: the pair c1, c2 is judged twice and turned round
    early = ranking({"c1": 1, "c2": 2}, submitted="2026-01-01T00:00:00Z")
    late = ranking({"c1": 4, "c2": 3, "c3": 1, "c4": 2}, submitted="2026-02-01T00:00:00Z")
    for order in ([early, late], [late, early]):
        judged, gave_way = consensus.judged_once(order)
        assert len(judged) == 6
        verdicts = {(j.first, j.second): j.verdict for j in judged}
        assert verdicts["c1", "c2"] == -1
        assert gave_way == {"ann": 1}


# Consensus


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("majority", 1.0),
        ("soft", 2 / 3),
        # log-odds of skills 0.8, 0.8 and 0.8 are log 4 each: log 4 + log 4 - log 4 = log 4
        ("weighted", 0.8),
    ],
)
def test_two_votes_against_one_give_the_value_worked_by_hand(how, expected):
    votes = [("ann", 1), ("bob", 1), ("eve", -1)]
    skills = {"ann": 0.8, "bob": 0.8, "eve": 0.8}
    assert consensus.probability(votes, how=how, skills=skills) == pytest.approx(expected)


def test_one_skilled_labeler_outweighs_two_poor_ones():
    # log-odds 9 : 1 against (1.5 : 1)^2 = 2.25 : 1, so 4 : 1 for the skilled one
    votes = [("ann", 1), ("bob", -1), ("eve", -1)]
    skills = {"ann": 0.9, "bob": 0.6, "eve": 0.6}
    assert consensus.probability(votes, how="weighted", skills=skills) == pytest.approx(0.8)


VOTES = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([-1, 0, 1])), max_size=9)
HOW = st.sampled_from(["majority", "soft", "weighted"])
SKILLS = {"a": 0.95, "b": 0.7, "c": 0.55, "d": 0.4}


@given(VOTES, HOW)
def test_swapping_the_two_completions_gives_the_complement(votes, how):  # property 46
    swapped = [(who, -verdict) for who, verdict in votes]
    total = consensus.probability(votes, how=how, skills=SKILLS) + consensus.probability(
        swapped, how=how, skills=SKILLS
    )
    assert total == pytest.approx(1)


@given(VOTES, HOW, st.randoms())
def test_the_order_of_labelers_does_not_matter(votes, how, random):  # property 40
    shuffled = random.sample(votes, len(votes))
    before = consensus.probability(votes, how=how, skills=SKILLS)
    assert consensus.probability(shuffled, how=how, skills=SKILLS) == before


def test_balanced_votes_of_equal_skills_are_an_exact_tie():
    votes = [(who, v) for who, v in zip("abcdef", (1, 1, 1, -1, -1, -1), strict=True)]
    skills = dict.fromkeys("abcdef", 0.8123456789)
    assert consensus.probability(votes, how="weighted", skills=skills) == 0.5
    skills["a"] = math.nextafter(0.8123456789, 1)  # the last bit of an estimate decides nothing
    assert consensus.probability(votes, how="weighted", skills=skills) == 0.5


ANN, BOB, EVE = (
    ranking({"c1": 1, "c2": 2}, labeler="ann"),
    ranking({"c1": 1, "c2": 1}, labeler="bob"),
    ranking({"c1": 1, "c2": 1}, labeler="eve"),
)


def test_a_labeler_who_ties_abstains_under_drop():
    (pair,) = combine(ANN, BOB, EVE, ties="drop")
    assert (pair.p_first, pair.labelers) == (1.0, ["ann"])


def test_a_labeler_who_ties_gives_half_a_vote_to_each_side_under_half():
    # (1 + 1/2 + 1/2) / 3 votes
    (pair,) = combine(ANN, BOB, EVE, ties="half")
    assert pair.p_first == pytest.approx(2 / 3)
    assert pair.labelers == ["ann", "bob", "eve"]


def test_a_pair_that_everyone_ties_is_dropped_or_kept_at_one_half():
    (dropped,) = combine(BOB, EVE, ties="drop")
    assert consensus.select([dropped], ties="drop", min_p_chosen=0.5) == (
        [],
        {"tie": 1, "unclear": 0},
    )
    (kept,) = combine(BOB, EVE, ties="half")
    assert consensus.select([kept], ties="half", min_p_chosen=0.5)[0] == [kept]
    (row,) = rows([kept], [completion("c1"), completion("c2")], judged=2)
    assert (row.p_chosen, row.votes, row.margin) == (0.5, 2, 0)


def test_a_split_vote_is_a_tie_as_well():
    against = ranking({"c1": 2, "c2": 1}, labeler="eve")
    (pair,) = combine(ANN, against)
    assert pair.p_first == 0.5
    assert consensus.select([pair], ties="drop", min_p_chosen=0.5)[1]["tie"] == 1


def test_neither_completion_of_a_tie_is_first_by_rule():
    ties = [
        pair
        for k in range(200)
        for pair in combine(ranking({f"c{k}a": 1, f"c{k}b": 1}), ties="half")
    ]
    answers = [completion(f"c{k}{end}") for k in range(200) for end in "ab"]
    first = sum(row.chosen_id < row.rejected_id for row in rows(ties, answers, judged=2))
    # 200 fair coins: 100 with a standard deviation of 7
    assert 70 < first < 130


def test_per_labeler_keeps_every_verdict_even_where_they_differ():
    found = combine(ANN, ranking({"c1": 2, "c2": 1}, labeler="eve"), how="per_labeler")
    assert [(p.id, p.p_first) for p in found] == [("c1:c2:ann", 1.0), ("c1:c2:eve", 0.0)]


def test_pairs_less_sure_than_asked_are_left_out_and_counted():
    third = ranking({"c1": 2, "c2": 1}, labeler="eve")
    second = ranking({"c1": 1, "c2": 2}, labeler="bob")
    (pair,) = combine(ANN, second, third)  # 2 of 3 votes
    assert consensus.select([pair], ties="drop", min_p_chosen=0.6)[0] == [pair]
    assert consensus.select([pair], ties="drop", min_p_chosen=0.7) == ([], {"tie": 0, "unclear": 1})


def test_the_margin_is_the_mean_score_difference_among_labelers_with_scores():
    lexicon = ranking({"c1": 2, "c2": 1}, labeler="words", scores={"c1": -1.5, "c2": -0.5})
    judge = ranking({"c1": 2, "c2": 1}, labeler="judge", scores={"c1": 0.2, "c2": 0.8})
    ann = ranking({"c1": 2, "c2": 1}, labeler="ann")
    answers = [completion("c1"), completion("c2")]
    (row,) = rows(combine(lexicon, judge, ann), answers, judged=2)
    # chosen c2: (1.0 + 0.6) / 2; without scores, ranks 2 - 1
    assert (row.chosen_id, row.margin) == ("c2", pytest.approx(0.8))
    assert rows(combine(ann), answers, judged=2)[0].margin == 1


def test_a_pair_is_marked_junk_where_half_of_its_votes_say_no_more():
    judged = ranking({"c1": 1, "c2": 2}, labeler="ann")
    junked = ranking({"c1": 1}, junk=["c2"], labeler="bob")
    assert combine(judged, junked)[0].junk
    assert not combine(judged, ranking({"c1": 1, "c2": 2}, labeler="eve"), junked)[0].junk


# Gate


def test_a_pair_of_one_text_and_finish_is_removed_as_identical():  # property 39
    same = [completion("c1", text="so"), completion("c2", text="so")]
    passed, removed = gate(combine(ANN), completions=same)
    assert passed == []
    assert removed == {
        "identical": ["c1:c2"],
        "contradiction": [],
        "leak": [],
        "mixed_samplers": [],
    }
    cut = [completion("c1", text="so"), completion("c2", text="so", finish="length")]
    assert gate(combine(ANN), completions=cut)[0] == combine(ANN)


def test_a_pair_that_a_voting_labeler_orders_both_ways_is_removed():
    answers = [completion("c1"), completion("c2")]
    both_ways = {("ann", "c1", "c2")}
    removed = gate(combine(ANN, BOB), completions=answers, contradicted=both_ways)[1]
    assert removed["contradiction"] == ["c1:c2"]


def test_a_contradiction_removes_no_other_labelers_pair_where_verdicts_stay_apart():
    answers = [completion("c1"), completion("c2")]
    eve = ranking({"c1": 1, "c2": 2}, labeler="eve")
    passed, removed = gate(
        combine(ANN, eve, how="per_labeler"),
        completions=answers,
        contradicted={("ann", "c1", "c2")},
    )
    assert [pair.id for pair in passed] == ["c1:c2:eve"]
    assert removed["contradiction"] == ["c1:c2:ann"]


def test_prompts_whose_near_duplicates_lie_in_another_split_lose_their_pairs():  # property 39
    near = [prompt("p1", "align", "k"), prompt("p2", "test", "k"), prompt("p3", "reward", "m")]
    assert consensus.leaking_clusters(near) == {"k"}
    answers = [completion("c1"), completion("c2")]
    assert gate(combine(ANN), prompts=near, completions=answers)[1]["leak"] == ["c1:c2"]


def test_near_duplicates_within_one_split_are_no_leak():
    near = [prompt("p1", "align", "k"), prompt("p2", "reward", "k")]
    assert consensus.leaking_clusters(near) == set()


def test_a_mix_of_samplers_passes_only_where_it_is_declared():
    answers = [completion("c1"), completion("c2", sampler="other")]
    assert gate(combine(ANN), completions=answers)[1]["mixed_samplers"] == ["c1:c2"]
    assert gate(combine(ANN), completions=answers, mixed_samplers=True)[0] == combine(ANN)


def test_a_pair_with_several_faults_is_counted_once():
    answers = [completion("c1", text="so"), completion("c2", text="so", sampler="other")]
    removed = gate(combine(ANN), completions=answers)[1]
    assert {reason: len(ids) for reason, ids in removed.items()} == {
        "identical": 1,
        "contradiction": 0,
        "leak": 0,
        "mixed_samplers": 0,
    }


def test_a_gate_that_removes_more_than_its_share_refuses_with_the_reasons():
    removed = {
        "identical": ["c1:c2"],
        "contradiction": [],
        "leak": [],
        "mixed_samplers": ["c1:c3", "c1:c4"],
    }
    with pytest.raises(LabelError) as refusal:
        consensus.refuse_above(removed, 10, 0.05)
    assert str(refusal.value) == (
        "the gate removes 3 of 10 pairs (identical 1, first c1:c2; mixed_samplers 2, first c1:c3), "
        "more than the share 0.05 that pairs.max_rejected allows; pairs.mixed_samplers: true "
        "declares mixing"
    )
    consensus.refuse_above(removed, 10, 0.3)


# Real rankings


def test_openassistant_ranks_of_sibling_replies_come_back_from_their_pairs():
    path = DATA / "oasst-en100" / "en_100_tree.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        stack = [json.loads(line)["prompt"] for line in lines]
    total = sets = 0
    while stack:
        message = stack.pop()
        replies = message.get("replies") or []
        stack += replies
        if len(replies) > 1 and all(reply.get("rank") is not None for reply in replies):
            ranks = {reply["message_id"]: reply["rank"] + 1 for reply in replies}
            answers = [completion(r["message_id"], text=r["text"]) for r in replies]
            passed, removed = gate(combine(ranking(ranks)), completions=answers)
            assert not any(removed.values())
            pairs = rows(passed, answers, judged=len(replies))
            lost = {cid: 1 + sum(p.rejected_id == cid for p in pairs) for cid in ranks}
            assert lost == ranks
            sets, total = sets + 1, total + len(pairs)
    # 57 sets of 2 replies, 116 of 3, 27 of 4, 3 of 5, 6 of 6, 1 of 8, 1 of 9:
    # 57 + 348 + 162 + 30 + 90 + 28 + 36 = 751 pairs
    assert (sets, total) == (211, 751)


def test_fine_grained_qa_preferences_survive_the_way_through_rankings():
    path = DATA / "finegrained-qa-feedback" / "dev_feedback.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as content:
        questions = json.load(content)
    counts = Counter()
    for question in questions:
        # For each two of four answers: 1 names the first, 2 the second, 0 neither.
        couples = list(itertools.combinations(["c1", "c2", "c3", "c4"], 2))
        stated = dict(zip(couples, question["preference"], strict=True))
        better = dict.fromkeys(["c1", "c2", "c3", "c4"], 0)
        for (first, second), verdict in stated.items():
            better[second] += verdict == 1
            better[first] += verdict == 2
        expected = {pair: {1: 1, 2: -1, 0: 0}[verdict] for pair, verdict in stated.items()}
        if any(
            (better[b] > better[a]) - (better[b] < better[a]) != v for (a, b), v in expected.items()
        ):
            counts["intransitive"] += 1  # such as c1 = c2, c2 = c4, c4 over c1: no ranking says so
            continue
        judged = consensus.judgements(ranking({cid: 1 + above for cid, above in better.items()}))
        assert {(j.first, j.second): j.verdict for j in judged} == expected
        counts.update("strict" if j.verdict else "tied" for j in judged)
    # (500 - 22) questions * 6 pairs = 2868 = 2544 + 324
    assert counts == {"intransitive": 22, "strict": 2544, "tied": 324}


def test_a_judges_soft_labels_reach_the_pairs_under_soft_and_nowhere_else():
    # the judge holds b over a with .7, and its ranks say so; the list of words says a over b
    judge = ranking({"a": 2, "b": 1}, labeler="judge", preferences=[
        {"first": "b", "second": "a", "p_first": 0.7},
    ])  # fmt: skip
    words = ranking({"a": 1, "b": 2}, labeler="words")
    judged = [j for one in (judge, words) for j in consensus.judgements(one)]

    def p_first(how, some):
        skills = {"judge": 0.8, "words": 0.8}
        (pair,) = consensus.combine(some, criterion="harmless", how=how, ties="drop", skills=skills)
        return pair.p_first

    # alone: 1 - .7 = .3 for a; with the words' 1: (.3 + 1) / 2 = .65
    assert p_first("soft", judged[:1]) == pytest.approx(0.3)
    assert p_first("soft", judged) == pytest.approx(0.65)
    assert p_first("majority", judged) == 0.5
    assert p_first("weighted", judged[:1]) == pytest.approx(0.2)


def test_a_judge_that_ties_two_and_leans_to_one_has_a_vote_under_soft():
    leaning = ranking({"a": 1, "b": 1}, labeler="judge", preferences=[
        {"first": "a", "second": "b", "p_first": 0.51},
    ])  # fmt: skip
    some = consensus.judgements(leaning)
    found = {
        how: consensus.combine(
            some, criterion="harmless", how=how, ties="drop", skills={"judge": 0.8}
        )[0]
        for how in ("soft", "majority")
    }
    assert found["soft"].p_first == pytest.approx(0.51)
    assert found["soft"].votes == 1
    assert (found["majority"].p_first, found["majority"].votes) == (0.5, 0)
