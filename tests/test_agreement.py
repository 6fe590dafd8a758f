import csv
import gzip
import itertools
import json
import os
from pathlib import Path

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, rankdata

from stages.lib.labels import agreement, consensus, skill
from stages.lib.labels.agreement import NotMeasurable
from stages.lib.records import Ranking

DATA = Path(__file__).parents[1] / os.environ.get("PLUMBLINE_DATA", "../shared/data")
OFTEN = {"resamples": 200, "seed": 1}
PRIOR = (4.0, 2.0)


def ranking(ranks, labeler="ann", prompt="p1", junk=(), shown=None):
    return Ranking(
        schema_version=1,
        kind="ranking",
        criterion="harmless",
        prompt_id=prompt,
        labeler=labeler,
        shown=shown or [*ranks, *junk],
        ranks=ranks,
        junk=dict.fromkeys(junk, "garbled"),
        revision=1,
    )


def competition(values):
    return [int(rank) for rank in rankdata(values, method="min")]


def own_clusters(rankings):
    return {r.prompt_id: r.prompt_id for r in rankings}


def table(rankings, clusters=None):
    judged = [j for r in rankings for j in consensus.judgements(r)]
    return agreement.table(judged, clusters or own_clusters(rankings))


def verdicts(votes_PL, names="abcdefgh"):
    """Rankings of two completions: prompt k, pair (c1, c2), verdict 1, 0 or -1 of each labeler."""
    ranks = {1: {"c1": 1, "c2": 2}, 0: {"c1": 1, "c2": 1}, -1: {"c1": 2, "c2": 1}}
    return [
        ranking({f"p{k}-{c}": r for c, r in ranks[int(v)].items()}, names[who], f"p{k}")
        for k, row in enumerate(votes_PL)
        for who, v in enumerate(row)
        if not np.isnan(v)
    ]


# Rates


def test_the_tie_rate_counts_pairs_of_ranked_completions_only():
    # ranked c1, c2, c3 make 3 pairs, of which c1 = c2 ties; pairs with junk c4 are no comparison
    t = table([ranking({"c1": 1, "c2": 1, "c3": 3}, junk=["c4"])])
    rate = agreement.tie_rate(t, "ann", **OFTEN)
    assert (rate.value, rate.n) == (pytest.approx(1 / 3), 3)


def test_the_junk_rate_counts_completions_shown():
    # c1, c2 and junk c3 of one prompt, c4 of another
    rate = agreement.junk_rate(np.array([3, 1]), np.array([1, 0]), ["p1", "p2"], **OFTEN)
    assert (rate.value, rate.n) == (0.25, 4)


def test_the_position_follow_rate_is_the_share_of_preferences_for_what_was_shown_earlier():
    # shown c2 c1 c3, ranked c1 < c2 < c3: c1 over c2 against the order, the other two with it
    t = table([ranking({"c1": 1, "c2": 2, "c3": 3}, shown=["c2", "c1", "c3"])])
    assert agreement.position_follow_rate(t, "ann", **OFTEN).value == pytest.approx(2 / 3)


def test_four_prompts_tell_a_labeler_who_submits_the_order_shown_from_one_who_reads():
    rng = np.random.default_rng(0)
    lines = []
    for who, k in itertools.product(range(100), range(4)):
        shown = [f"p{k}-c{c}" for c in rng.permutation(4)]
        quality = rng.permutation(4) + 1
        read = {cid: int(rank) for cid, rank in zip(shown, quality, strict=True)}
        follow = {cid: place for place, cid in enumerate(shown, start=1)}
        lines.append(ranking(read, f"reads{who}", f"p{k}", shown=shown))
        lines.append(ranking(follow, f"follows{who}", f"p{k}", shown=shown))
    t = table(lines)
    rate = {n: agreement.position_follow_rate(t, n, resamples=1, seed=1).value for n in t.labelers}
    readers = [rate[name] for name in rate if name.startswith("reads")]
    followers = [rate[name] for name in rate if name.startswith("follows")]
    # The area under the curve is the chance that a follower's rate is above a reader's.
    above = [(f > r) + 0.5 * (f == r) for f in followers for r in readers]
    assert np.mean(above) >= 0.99
    # 24 pairs: 0.5 with a standard deviation of 0.13 (pairs of a prompt depend on each other)
    assert np.mean(readers) == pytest.approx(0.5, abs=0.05)


def test_four_prompts_tell_a_labeler_who_nearly_submits_the_order_shown():
    # Two neighbours of the shown order exchanged on every prompt: five of six pairs follow it.
    rng = np.random.default_rng(1)
    rates = {"reads": [], "follows": []}
    for _ in range(300):
        read = [rng.permutation(4) for _ in range(4)]
        swap = [np.argsort(np.arange(4) + 1.5 * (np.arange(4) == rng.integers(3))) for _ in read]
        for name, orders in (("reads", read), ("follows", swap)):
            pairs = [a < b for order in orders for a, b in itertools.combinations(order, 2)]
            rates[name].append(np.mean(pairs))
    above = [(f > r) + 0.5 * (f == r) for f in rates["follows"] for r in rates["reads"]]
    assert rates["follows"] == pytest.approx([5 / 6] * 300)
    assert np.mean(above) >= 0.98


def test_rates_that_nothing_determines_are_refused_with_the_reason():
    t = table([ranking({"c1": 1, "c2": 1}), ranking({"c1": 1}, "bob", junk=["c2"])])
    with pytest.raises(NotMeasurable, match=r"^ann prefers no completion to another$"):
        agreement.position_follow_rate(t, "ann", **OFTEN)
    with pytest.raises(NotMeasurable, match=r"^bob ranks no two completions of one prompt$"):
        agreement.tie_rate(t, "bob", **OFTEN)
    assert agreement.figure(lambda: agreement.tie_rate(t, "bob", **OFTEN)) == {
        "refused": "bob ranks no two completions of one prompt"
    }


# Agreement


def test_raw_agreement_leaves_ties_out_and_counts_them():
    lines = [
        ranking({"c1": 1, "c2": 2, "c3": 3}, "ann"),
        ranking({"c1": 1, "c2": 2, "c3": 2}, "bob"),  # c2 = c3
        ranking({"c1": 2, "c2": 1, "c3": 2}, "eve"),  # c1 = c3
    ]
    overall, between = agreement.raw_agreement(table(lines), **OFTEN)
    # ann:bob c1c2 + c1c3 +;  ann:eve c1c2 - c2c3 +;  bob:eve c1c2 -
    assert between["ann:bob"]["value"] == 1
    assert between["ann:eve"]["value"] == 0.5
    assert between["bob:eve"]["value"] == 0
    assert (overall.value, overall.n) == (pytest.approx(3 / 5), 5)
    counts = ("alike", "opposite", "tied_by_one", "tied_by_both")
    assert [between["bob:eve"][name] for name in counts] == [0, 1, 2, 0]


def test_two_labelers_without_a_strict_pair_in_common_keep_their_counts():
    lines = [
        ranking({"c1": 1, "c2": 1}, "ann"),
        ranking({"c1": 1, "c2": 2}, "bob"),
        ranking({"c1": 1, "c2": 2}, "eve"),
    ]
    _, between = agreement.raw_agreement(table(lines), **OFTEN)
    assert between["ann:bob"] == {
        "refused": "every pair is tied by one of the labelers",
        "alike": 0,
        "opposite": 0,
        "tied_by_one": 1,
        "tied_by_both": 0,
        "clusters": 0,
    }


def test_agreement_of_one_labeler_is_refused():
    with pytest.raises(NotMeasurable, match=r"^no pair is judged by two labelers$"):
        agreement.raw_agreement(table([ranking({"c1": 1, "c2": 2})]), **OFTEN)


def test_alpha_is_the_value_worked_by_hand():
    # Two labelers, 16 pairs, four times ++ ++ +- --.  Coincidences o(+,+) = 16, o(-,-) = 8,
    # o(+,-) = o(-,+) = 4; n+ = 20, n- = 12, n = 32: observed 8, expected 2 * 20 * 12 / 31 = 480/31,
    # alpha = 1 - 8 * 31 / 480
    ratings = np.tile(np.array([[1.0, 1, 1, -1], [1, 1, -1, -1]]), 4)
    clusters = [str(k) for k in range(16)]
    found = agreement.alpha(ratings, clusters, distance="nominal", **OFTEN)
    assert (found.value, found.n) == (pytest.approx(1 - 8 * 31 / 480), 16)
    assert found.low < found.value < found.high


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=3, max_size=12),
    st.sampled_from(["nominal", "ordinal"]),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_alpha_of_resampled_units_equals_the_library_on_those_units(rows, distance, times):
    ratings_LU = np.array(rows, dtype=np.float64).T
    ratings_LU[ratings_LU == 4] = np.nan  # not judged
    drawn_LU = np.repeat(ratings_LU, times[: len(rows)], axis=1)
    drawn_LU = drawn_LU[:, (~np.isnan(drawn_LU)).sum(0) >= 2]
    values = np.unique(drawn_LU[~np.isnan(drawn_LU)])
    if len(values) < 2:
        return
    counts_UV = np.stack([(ratings_LU == v).sum(0) for v in values], axis=1)
    usable = counts_UV.sum(1) >= 2
    summed = np.tensordot(
        np.array(times[: len(rows)], dtype=np.float64)[usable],
        agreement.coincidences(counts_UV[usable]),
        axes=1,
    )
    expected = evalica.alpha(pd.DataFrame(drawn_LU), distance).alpha
    assert agreement.alpha_of(summed[None], distance=distance)[0] == pytest.approx(expected)


def test_alpha_without_overlap_or_without_variation_is_refused():
    apart = np.array([[1.0, np.nan], [np.nan, 1.0]])
    with pytest.raises(NotMeasurable, match=r"^no unit is judged by two labelers$"):
        agreement.alpha(apart, ["a", "b"], distance="nominal", **OFTEN)
    with pytest.raises(NotMeasurable, match="every judgement is the same"):
        agreement.alpha(np.ones((2, 2)), ["a", "b"], distance="nominal", **OFTEN)
    # of two prompts a resample holds but one half of the time
    with pytest.raises(NotMeasurable, match="so the interval has no end; more prompts would do"):
        agreement.alpha(np.eye(2)[[0, 0]], ["a", "b"], distance="nominal", **OFTEN)


def test_leave_one_out_tau_equals_scipy_on_ranks_and_the_others_mean_rank():
    rng = np.random.default_rng(3)
    lines = [
        ranking(
            dict(zip(["c1", "c2", "c3", "c4"], competition(rng.integers(0, 4, 4)), strict=True)),
            labeler,
            f"p{k}",
        )
        for k in range(30)
        for labeler in ("ann", "bob", "eve")
    ]
    t = table(lines)
    for labeler in t.labelers:
        taus = []
        for k in range(30):
            ranks = {r.labeler: list(r.ranks.values()) for r in lines if r.prompt_id == f"p{k}"}
            own = ranks.pop(labeler)
            taus.append(kendalltau(own, np.mean(list(ranks.values()), axis=0)).statistic)
        found = agreement.kendall(t, labeler, **OFTEN)
        assert found.value == pytest.approx(np.nanmean(taus))
        assert found.n == np.isfinite(taus).sum()


def test_tau_needs_another_labeler():
    with pytest.raises(NotMeasurable, match=r"^no prompt is ordered both by ann and by another"):
        agreement.kendall(table([ranking({"c1": 1, "c2": 2})]), "ann", **OFTEN)


# Skill


def planted(skills, pairs, seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([-1, 1], pairs)
    right = rng.random((pairs, len(skills))) < np.array(skills)
    return np.where(right, truth[:, None], -truth[:, None])


def test_skill_is_recovered_within_five_hundredths_at_750_judgements_each():
    skills = [0.9, 0.8, 0.7, 0.6]
    for seed in range(3):
        t = table(verdicts(planted(skills, 750, seed)))
        found = skill.skills(t, prior=PRIOR)
        assert list(found.values()) == pytest.approx(skills, abs=0.05)


def test_skill_solves_its_own_equations():
    # Unanimous a, b, c on 10 pairs have one skill s. With prior (4, 2) and odds r = s / (1 - s):
    # q = r^3 / (1 + r^3) is the chance that the verdict is right, and s = (4 + 10 q) / 16.
    s = skill.skills(table(verdicts(np.ones((10, 3)))), prior=PRIOR)["a"]
    odds = (s / (1 - s)) ** 3
    assert s == pytest.approx((4 + 10 * odds / (1 + odds)) / 16, abs=1e-5)


def test_skill_does_not_depend_on_the_order_of_labelers_or_of_the_two_completions():  # property 40
    votes = planted([0.9, 0.7, 0.6], 80, seed=5)
    found = skill.skills(table(verdicts(votes)), prior=PRIOR)
    reordered = skill.skills(table(verdicts(votes[:, ::-1], names="cba")), prior=PRIOR)
    mirrored = skill.skills(table(verdicts(-votes)), prior=PRIOR)
    assert reordered == pytest.approx(found)
    assert mirrored == pytest.approx(found)


def test_three_labelers_make_at_most_thirteen_patterns_of_votes():
    # 3^3 rows of 1, 0, -1 without the empty one, a row and its mirror image being one
    every = np.array(list(itertools.product([1, 0, -1], repeat=3)), dtype=float)
    patterns, weights_RP = skill._patterns(table(verdicts(every)), np.ones((1, 27)))
    assert len(patterns) == 13
    assert weights_RP.tolist() == [[2.0] * 13]


def test_ties_say_nothing_of_skill():
    votes = planted([0.9, 0.7, 0.6], 80, seed=6).astype(float)
    with_ties = np.vstack([votes, np.zeros((40, 3))])
    assert skill.skills(table(verdicts(with_ties)), prior=PRIOR) == pytest.approx(
        skill.skills(table(verdicts(votes)), prior=PRIOR)
    )


def test_labelers_who_tie_everything_keep_the_mean_of_the_prior():
    found = skill.skills(table(verdicts(np.zeros((5, 2)))), prior=PRIOR)
    assert found == pytest.approx({"a": 4 / 6, "b": 4 / 6})


def test_two_labelers_of_thousands_of_verdicts_have_weights_though_they_settle_slowly():
    # They share few pairs and hardly agree on them, so the prior alone separates their skills.
    votes = np.full((2300, 2), np.nan)
    votes[:, 0] = 1
    votes[:146, 1] = np.where(np.arange(146) < 75, 1, -1)
    t = table(verdicts(votes))
    found = skill.skills(t, prior=PRIOR)
    assert 0.5 < found["b"] < found["a"] < 1
    with pytest.raises(NotMeasurable, match=r"^the skills have not settled after 100 iterations$"):
        skill.dawid_skene(*skill._patterns(t, np.ones((1, 2300))), prior=PRIOR, limit=100)


def test_skill_is_not_told_where_no_three_labelers_share_pairs():
    votes = planted([0.9, 0.8, 0.7, 0.6], 60, seed=7).astype(float)
    votes[:, 3] = np.nan  # d judges other prompts, with a alone
    apart = np.full((30, 4), np.nan)
    apart[:, [0, 3]] = planted([0.9, 0.6], 30, seed=8)
    t = table(verdicts(np.vstack([votes, apart])))
    found = skill.skill_estimates(t, prior=PRIOR, **OFTEN)
    assert found["a"].low < found["a"].value < found["a"].high
    assert found["a"].n == 90
    assert str(found["d"]) == "d judges no pairs in common with two others who share pairs"


# Intervals


def test_intervals_of_agreement_cover_the_truth_about_as_often_as_they_say():
    # A prompt's difficulty is shared by its six pairs, so pairs are not independent: agreement is
    # 0.95 on half of the prompts and 0.5 on the others, 0.725 overall.
    rng = np.random.default_rng(11)
    covered = {"clustered": 0, "independent": 0}
    for _ in range(200):
        share = rng.choice([0.95, 0.5], 60)
        alike = rng.random((60, 6)) < share[:, None]
        found = [(1, 1 if same else -1, f"p{p}") for (p, _), same in np.ndenumerate(alike)]
        clustered = agreement.share_alike(agreement.found(found), 200, 1)
        independent = agreement.share_alike(
            agreement.found([(a, b, str(k)) for k, (a, b, _) in enumerate(found)]), 200, 1
        )
        covered["clustered"] += clustered.low <= 0.725 <= clustered.high
        covered["independent"] += independent.low <= 0.725 <= independent.high
    # binomial standard deviation at 0.95 and 200 runs: 0.015
    assert covered["clustered"] / 200 > 0.90
    assert covered["clustered"] > covered["independent"]


def test_the_interval_of_alpha_covers_the_truth_about_as_often_as_it_says():
    # One labeler's verdict is a fair coin, the other repeats it with probability 0.8, so observed
    # disagreement is 0.2 of expected 0.5: alpha = 0.6.
    rng = np.random.default_rng(12)
    covered = 0
    for _ in range(100):
        first = rng.integers(0, 2, 150).astype(float)
        second = np.where(rng.random(150) < 0.8, first, 1 - first)
        found = agreement.alpha(
            np.stack([first, second]),
            [str(k) for k in range(150)],
            distance="nominal",
            **OFTEN,
        )
        covered += found.low <= 0.6 <= found.high
    # binomial standard deviation at 0.95 and 100 runs: 0.022
    assert 0.88 <= covered / 100 <= 1


# Real labels


def test_pandalm_annotators_reach_the_alpha_expected():
    path = DATA / "pandalm-testset" / "testset-v1.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as content:
        items = json.load(content)
    verdict = {0: 0, 1: 1, 2: -1}
    votes = np.array([[verdict[item[f"annotator{k}"]] for k in (1, 2, 3)] for item in items])
    t = table(verdicts(votes.astype(float)))
    ratings, clusters = agreement.verdict_ratings(t)
    found = agreement.alpha(ratings, clusters, distance="nominal", **OFTEN)
    assert found.value == pytest.approx(0.864, abs=5e-4)
    assert found.low < 0.864 < found.high
    overall, between = agreement.raw_agreement(t, **OFTEN)
    assert 0.9 < overall.value < 1
    assert set(between) == {"a:b", "a:c", "b:c"}


def test_llmfao_crowd_reaches_the_alpha_expected_with_ties():
    path = DATA / "llmfao-crowd" / "crowd-comparisons.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as content:
        votes = list(csv.DictReader(content))
    ranks = {"left": (1, 2), "right": (2, 1), "tie": (1, 1)}
    lines, clusters = [], {}
    for vote in votes:
        item = f"i{vote['id']}"
        left, right = ranks[vote["winner"]]
        lines.append(ranking({f"{item}-1": left, f"{item}-2": right}, f"w{vote['worker']}", item))
        clusters[item] = f"prompt{vote['prompt']}"
    t = table(lines, clusters)
    ratings, unit_clusters = agreement.verdict_ratings(t)
    found = agreement.alpha(ratings, unit_clusters, distance="nominal", **OFTEN)
    assert found.value == pytest.approx(0.291, abs=5e-4)
    assert found.n == 2139 - sum(1 for n in np.bincount(t.pair_J) if n == 1)
    skills = skill.skills(t, prior=PRIOR)
    assert len(skills) == 124
    # the crowd is better than chance, and no worker is beyond doubt
    assert 0.6 < np.median(list(skills.values())) < 0.95
