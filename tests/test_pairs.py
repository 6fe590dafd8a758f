import inspect
import json
import math
import shutil
from pathlib import Path

import pytest
from label_world import (
    LABELERS,
    ROLES,
    SAMPLERS,
    World,
    outcome,
    prompt,
    ranking,
    read,
    settings,
)
from ruamel.yaml import YAML

from stages import pairs as stage
from stages.lib.labels.consensus import LabelError
from stages.lib.runtime import files, params
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# What comes out


def test_every_pair_of_every_prompt_is_written_once_in_the_split_of_its_prompt(world):
    found = world.run()
    # 6 training prompts, 2 and 2 for validation and test, each with 3 completions: 3 pairs
    assert {k: v for k, v in found.items() if k.startswith("pairs_")} == {
        "pairs_train": 18,
        "pairs_validation": 6,
        "pairs_test": 6,
    }
    assert {pair.role for pair in world.pairs("train")} == {"reward", "monitor", "align"}
    assert {pair.role for pair in world.pairs("test")} == {"test"}
    assert world.report()["pairs"]["roles"] == dict.fromkeys(ROLES, 6)


def test_no_prompt_and_no_cluster_is_in_two_splits(world):  # property 39
    world.run()
    for of in ("prompt_id", "cluster"):
        seen = [{getattr(p, of) for p in world.pairs(s)} for s in ("train", "validation", "test")]
        assert len(set.union(*seen)) == sum(map(len, seen)) == 10


def test_the_votes_become_p_chosen(world):
    world.run()
    by_id = {pair.id: pair for pair in world.pairs("train")}
    unanimous, split = by_id["p0#0:p0#1"], by_id["p0#1:p0#2"]
    assert (unanimous.p_chosen, unanimous.votes) == (1, 3)
    assert split.p_chosen == pytest.approx(2 / 3)
    assert (split.chosen_id, split.chosen, split.prompt) == ("p0#1", "answer 1", "beginning 0")
    assert split.weight == pytest.approx(1 / 3)


def test_pairs_are_sorted_by_prompt_and_id_and_the_weights_of_a_prompt_sum_to_one(world):
    world.run()
    written = world.pairs("train")
    assert written == sorted(written, key=lambda pair: (pair.prompt_id, pair.id))
    for prompt_id in {pair.prompt_id for pair in written}:
        assert math.fsum(p.weight for p in written if p.prompt_id == prompt_id) == pytest.approx(1)


def test_a_split_without_prompts_has_an_empty_file(world):
    for split in ("validation", "test"):
        files.write_lines(world.root / "prompts" / f"{split}.jsonl", [])
    for name in ("completions/base", *(f"rankings/{labeler}" for labeler in LABELERS)):
        rows = read(world.root / f"{name}.jsonl")
        world.write(name, [row for row in rows if int(row["prompt_id"][1:]) % 5 < 3])
    world.run()
    assert sorted(path.name for path in world.out.iterdir()) == [
        "demonstrations.jsonl",
        "signals.jsonl",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert (world.out / "test.jsonl").read_bytes() == b""


@pytest.mark.parametrize("consensus", ["per_labeler", "majority", "weighted", "soft"])
def test_the_order_of_labelers_and_of_lines_changes_no_byte(world, consensus):  # property 40
    world.run(consensus=consensus)
    before = outcome(world)
    for name in LABELERS:
        rows = read(world.root / "rankings" / f"{name}.jsonl")
        world.write(f"rankings/{name}", rows[::-1])
    world.run(consensus=consensus, labelers=dict(reversed(LABELERS.items())))
    assert outcome(world) == before


def test_another_seed_changes_intervals_and_no_pair(world):
    world.change("rankings/eve", 1, ranks={"p0#0": 3, "p0#1": 1, "p0#2": 2})
    world.run(seed=1)
    one = outcome(world)
    world.run(seed=2)
    other = outcome(world)
    assert one.pop("metrics") != other.pop("metrics")
    assert one == other


@pytest.mark.parametrize("consensus", ["majority", "weighted"])
def test_two_of_three_labelers_decide(world, consensus):
    world.run(consensus=consensus)
    pair = next(p for p in world.pairs("train") if p.id == "p0#1:p0#2")
    assert pair.chosen_id == "p0#1"
    assert pair.p_chosen == 1 if consensus == "majority" else 0.5 < pair.p_chosen < 1


def test_per_labeler_writes_a_pair_for_each_labeler(world):
    world.run(consensus="per_labeler")
    of_prompt = [p for p in world.pairs("train") if p.prompt_id == "p0"]
    assert len(of_prompt) == 9
    assert {p.votes for p in of_prompt} == {1}
    assert len({p.id for p in of_prompt}) == 9
    assert world.report()["pairs"]["judged"] == 90
    assert world.report()["pairs"]["left_out"] == {"junk": 0, "tie": 0, "unclear": 0}


def test_pairs_below_min_p_chosen_are_left_out_and_counted(world):
    found = world.run(min_p_chosen=0.7)
    # the pair of p_chosen 2/3 of each of ten prompts
    assert found["pairs_train"] == 12
    assert world.report()["pairs"]["left_out"] == {"junk": 0, "tie": 0, "unclear": 10}


def test_a_tie_is_dropped_or_kept_as_declared(world):
    for name in LABELERS:
        world.change(f"rankings/{name}", 1, ranks={"p0#0": 1, "p0#1": 1, "p0#2": 3})
    assert world.run(ties="drop")["pairs_train"] == 17
    report = world.report()["pairs"]
    assert report["left_out"]["tie"] == 1
    assert report["tie_rate"]["value"] == pytest.approx(1 / 30)
    assert world.run(ties="half")["pairs_train"] == 18
    tie = next(p for p in world.pairs("train") if p.id == "p0#0:p0#1")
    assert (tie.p_chosen, tie.votes) == (0.5, 3)


def test_junk_makes_pairs_only_where_declared(world):
    for name in LABELERS:
        world.change(
            f"rankings/{name}",
            1,
            ranks={"p0#0": 1},
            junk={"p0#1": "garbled", "p0#2": "off topic"},
        )
    world.run(junk_pairs=True)
    junk = [p for p in world.pairs("train") if p.prompt_id == "p0"]
    assert [(p.chosen_id, p.rejected_id, p.junk) for p in junk] == [
        ("p0#0", "p0#1", True),
        ("p0#0", "p0#2", True),
    ]
    assert world.report()["pairs"]["left_out"]["junk"] == 1  # junk against junk
    world.run(junk_pairs=False)
    assert not [p for p in world.pairs("train") if p.prompt_id == "p0"]
    assert world.report()["pairs"]["left_out"]["junk"] == 3
    assert world.report()["prompts"]["without_pairs"] == 1


def test_prompts_are_counted_by_what_became_of_them(world):
    for name in LABELERS:
        rows = read(world.root / "rankings" / f"{name}.jsonl")
        rows[0] = ranking(name, 0, {}, junk=[0, 1, 2])
        world.write(f"rankings/{name}", rows[:-1])  # nobody ranks p9
    world.run()
    counts = {"with_pairs": 8, "without_pairs": 0, "all_junk": 1, "unranked": 1}
    assert world.report()["prompts"] == counts
    assert world.quality()["labelers"]["ann"]["coverage"] == pytest.approx(0.9)


def test_every_pair_judged_is_written_removed_or_left_out(world):
    world.change("completions/base", 2, text="answer 0")  # p0#1 as p0#0
    world.change("rankings/ann", 2, ranks={"p1#0": 1, "p1#1": 1, "p1#2": 3})
    world.run(ties="half", min_p_chosen=0.7)
    counts = world.report()["pairs"]
    assert counts["removed"]["identical"] == 1
    assert counts["removed_ids"] == {"identical": ["p0#0:p0#1"]}
    assert counts["removed_share"] == pytest.approx(1 / 30)
    assert (
        counts["judged"]
        == 30
        == sum(counts["written"].values())
        + sum(counts["removed"].values())
        + sum(counts["left_out"].values())
    )


def test_a_higher_revision_replaces_a_ranking_and_the_change_is_counted(world):
    rows = read(world.root / "rankings" / "ann.jsonl")
    second = ranking("ann", 0, {0: 3, 1: 2, 2: 1}, revision=2)
    world.write("rankings/ann", [second, *rows])
    world.run(consensus="per_labeler")
    chosen = {p.chosen_id for p in world.pairs("train") if p.id == "p0#0:p0#2:ann"}
    assert chosen == {"p0#2"}
    assert world.quality()["labelers"]["ann"]["reversed_by_revision"] == 3


def test_a_record_that_contradicts_itself_loses_its_pairs(world):
    rows = read(world.root / "rankings" / "ann.jsonl")
    world.write("rankings/ann", [*rows, ranking("ann", 0, {0: 2, 1: 1, 2: 3})])
    world.run(max_rejected=0.1)
    assert world.report()["pairs"]["removed_ids"] == {"contradiction": ["p0#0:p0#1"]}


# The report


def test_the_report_holds_every_figure_or_the_reason_why_not(world):
    world.run()
    report = world.report()
    assert set(report) == {
        "criteria", "demonstrations", "flagged", "labelers", "left_out", "pairs", "prompts", "signals",
        "sources",
    }  # fmt: skip
    found = report["criteria"]["harmless"]
    assert set(found) == {"agreement", "elo", "labelers", "vote_skills", "weight"}
    # ann and bob agree on 30 of 30 pairs, each agrees with eve on 20 of 30
    assert found["agreement"]["raw"]["value"] == pytest.approx(70 / 90)
    assert found["agreement"]["between"]["ann:eve"]["opposite"] == 10
    assert report["labelers"]["ann"] == {
        "kind": "lexicon", "vote": "counts", "rankings": 10, "thumbs": 0, "demonstrations": 0,
    }  # fmt: skip
    assert found["labelers"]["ann"]["skill"]["value"] > found["labelers"]["eve"]["skill"]["value"]
    assert found["elo"]["all"]["refused"].startswith("a rating compares samplers")


def test_every_leaf_of_the_report_is_a_number_or_text_or_a_list_of_ids(world):
    # `dvc metrics show` prints numbers and text, and passes lists over; NaN is no JSON.
    def leaves(value):
        return (
            [x for v in value.values() for x in leaves(v)] if isinstance(value, dict) else [value]
        )

    world.run()
    text = world.metrics.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert all(isinstance(leaf, int | float | str | list) for leaf in leaves(json.loads(text)))


def test_one_labeler_gives_pairs_and_reasons_in_place_of_agreement(world):
    for name in ("bob", "eve"):
        (world.root / "rankings" / f"{name}.jsonl").unlink()
    found = world.run(labelers={"ann": {"kind": "lexicon"}})
    assert found["pairs_train"] == 18
    assert "alpha_nominal" not in found
    assert "refused" in world.quality()["agreement"]["raw"]


def two_samplers(world):
    rows = read(world.root / "completions" / "base.jsonl")
    world.write("completions/base", [row for row in rows if row["index"] < 2])
    world.write("completions/other", [r | {"sampler": "other"} for r in rows if r["index"] == 2])
    return SAMPLERS | {"other": {"model": "models/other"}}


def test_two_samplers_have_ratings(world):
    # p#2 is of `other`. It loses to p#0 by all three and to p#1 by two labelers.
    samplers = two_samplers(world)
    world.run(samplers=samplers, mixed_samplers=True)
    rated = world.quality()["elo"]["all"]
    # 10 prompts x 2 pairs x 3 labelers; 50 wins to 10, 400 log10 5 = 279.6
    assert rated["comparisons"] == 60
    lead = rated["ratings"]["base"]["value"] - rated["ratings"]["other"]["value"]
    assert lead == pytest.approx(279.59, abs=0.01)


# Refusals


def test_an_undeclared_mix_of_samplers_is_refused(world):
    message = world.refusal(LabelError, samplers=two_samplers(world))
    assert message == (
        "the gate removes 20 of 30 pairs (mixed_samplers 20, first p0#0:p0#2), more than the share "
        "0.05 that pairs.max_rejected allows; pairs.mixed_samplers: true declares mixing"
    )


def test_near_duplicate_prompts_across_splits_are_refused(world):  # property 39
    rows = read(world.root / "prompts" / "test.jsonl")
    files.write_lines(
        world.root / "prompts" / "test.jsonl", [rows[0] | {"cluster": "p0"}, *rows[1:]]
    )
    assert world.refusal(LabelError).startswith("the gate removes 6 of 30 pairs (leak 6, first")


def test_a_ranking_of_a_completion_the_prompt_does_not_have_is_refused(world):
    world.write("rankings/ann", [ranking("ann", 0, {0: 1, 9: 2})])
    assert world.refusal(RecordError) == (
        "rankings/ann.jsonl:1: judges completion p0#9, which prompt p0 does not have "
        "(p0#0, p0#1, p0#2)"
    )


def test_a_ranking_of_another_prompts_completion_is_refused(world):
    row = ranking("ann", 0, {0: 1, 1: 2})
    world.write("rankings/ann", [row | {"prompt_id": "p1"}])
    assert world.refusal(RecordError) == (
        "rankings/ann.jsonl:1: judges completion p0#0, which prompt p1 does not have "
        "(p1#0, p1#1, p1#2)"
    )


def test_a_ranking_of_an_unknown_prompt_is_refused(world):
    world.write("rankings/ann", [ranking("ann", 77, {0: 1, 1: 2})])
    assert world.refusal(RecordError) == (
        "rankings/ann.jsonl:1: is about prompt p77, which there is not"
    )


def test_a_ranking_in_another_labelers_file_is_refused(world):
    world.change("rankings/ann", 4, labeler="bob")
    assert world.refusal(RecordError) == (
        "rankings/ann.jsonl:4: is by labeler bob, in the file of ann"
    )


def test_a_corrupt_ranking_is_refused_by_file_line_and_field(world):
    world.change("rankings/ann", 4, revision=0)
    assert world.refusal(RecordError) == (
        "rankings/ann.jsonl:4: revision must be greater than or equal to 1, not 0"
    )


def test_a_file_left_by_an_earlier_configuration_is_refused(world):
    shutil.copy(world.root / "rankings" / "ann.jsonl", world.root / "rankings" / "old.jsonl")
    assert world.refusal(RecordError) == (
        "rankings/old.jsonl: params.yaml has no labelers.old; delete what an earlier configuration "
        "left, or add the entry (it has ann, bob, eve)"
    )
    (world.root / "rankings" / "old.jsonl").unlink()
    world.write("completions/gone", [])
    assert world.refusal(RecordError).startswith(
        "completions/gone.jsonl: params.yaml has no samplers.gone"
    )


def test_files_that_are_no_labels_do_not_matter(world):
    (world.root / "rankings" / ".gitignore").write_text("/ann.jsonl\n")
    (world.root / "rankings" / ".ann.jsonl.77.partial").write_text("half")
    assert world.run()["pairs_train"] == 18


def test_a_missing_file_is_refused_with_the_command_that_makes_it(world):
    labelers = LABELERS | {"judge": {"kind": "judge"}}
    assert world.refusal(RecordError, labelers=labelers) == (
        "rankings/judge.jsonl: no such file, and params.yaml has labelers.judge; "
        "`dvc repro rank@judge` makes it"
    )


def test_completions_are_checked_against_file_prompt_and_each_other(world):
    world.change("completions/base", 5, sampler="other")
    assert world.refusal(RecordError) == (
        "completions/base.jsonl:5: is by sampler other, in the file of base"
    )
    world.change("completions/base", 5, sampler="base", prompt_id="p77")
    assert world.refusal(RecordError) == (
        "completions/base.jsonl:5: completion p1#1 answers prompt p77, which there is not"
    )
    world.change("completions/base", 5, prompt_id="p1", id="p0#0")
    assert world.refusal(RecordError) == (
        "completions/base.jsonl:5: completion p0#0 occurs twice; ids must differ"
    )


def test_a_prompt_in_two_splits_or_in_the_wrong_one_is_refused(world):  # property 39
    path = world.root / "prompts" / "test.jsonl"
    rows = read(path)
    files.write_lines(path, [*rows, prompt(0, "test")])
    assert world.refusal(RecordError) == (
        "prompts/test.jsonl:3: prompt p0 occurs twice; ids must differ"
    )
    files.write_lines(path, [*rows, prompt(77, "align")])
    assert world.refusal(RecordError) == (
        "prompts/test.jsonl:3: prompt p77 has role align, which belongs in train.jsonl"
    )


def test_labels_from_which_no_pair_is_left_are_refused(world):
    for name in LABELERS:
        rows = [ranking(name, k, {0: 1, 1: 1, 2: 1}) for k in range(10)]
        world.write(f"rankings/{name}", rows)
    assert world.refusal(LabelError) == (
        "no pair is left to learn from: tie 30 of 30 pairs shown; pairs.ties, pairs.min_p_chosen "
        "and pairs.junk_pairs decide what is left out"
    )


def test_labels_that_compare_nothing_are_refused(world):
    for name in LABELERS:
        world.write(f"rankings/{name}", [ranking(name, k, {0: 1}) for k in range(10)])
    assert world.refusal(LabelError) == (
        "none of 30 rankings compares two completions; a pair needs two of one prompt, not both "
        "junk"
    )


def test_a_labeler_without_a_kind_is_refused(world):
    labelers = LABELERS | {"eve": {"scorer": "words"}}
    assert world.refusal(ParamError, labelers=labelers).startswith(
        "params.yaml: labelers.eve.kind is missing"
    )


def test_a_refused_run_leaves_the_earlier_pairs_as_they_were(world):
    world.run()
    before = outcome(world)
    world.change("rankings/ann", 4, labeler="bob")
    with pytest.raises(RecordError):
        world.run()
    assert outcome(world) == before
    assert not list(world.root.glob(".*partial"))


def test_a_prior_that_calls_labelers_more_often_wrong_is_refused():
    with pytest.raises(ValueError, match="must credit more right than wrong verdicts"):
        settings(skill_prior=[2.0, 2.0])


# Files that speak of each other


def test_params_yaml_has_the_section_that_the_stage_takes():
    assert isinstance(params.load("pairs", stage.Pairs, ROOT / "params.yaml"), stage.Pairs)


def test_dvc_yaml_gives_the_stage_its_arguments_and_params_in_order():
    entry = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["pairs"]
    signature = inspect.signature(stage.run).parameters.values()
    sections = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD]
    arguments = [p.name for p in signature if p.kind is p.KEYWORD_ONLY]
    assert {key.split(".")[-1] for key in entry["params"]} == set(sections)
    assert [Path(a).stem for a in entry["cmd"].split()[3:]] == [
        {"out": "pairs", "metrics": "labels"}.get(name, name) for name in arguments
    ]
