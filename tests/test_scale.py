"""Memory of the stages as their inputs grow, which tests/bench_scale.py measures, and docs/scale.md."""

from pathlib import Path

import bench_scale
import pytest
import scale_model

FEW, MANY = 2_000, 8_000


@pytest.mark.parametrize(("stage", "bytes_a_row"), [("rank", 1200), ("pairs", 5000)])
def test_a_stage_holds_a_few_prompts_at_a_time(stage, bytes_a_row, tmp_path):
    # Read at once a completion, its share of labels and of pairs take 2,400 bytes (rank) and
    # 13,600 (pairs); gone through by prompt, the figures of the labelers alone grow.
    used = {}
    for rows in (FEW, MANY):
        (one,) = bench_scale.measured(rows, [stage], tmp_path / str(rows))
        used[rows] = one["mib"] * 2**20
    assert (used[MANY] - used[FEW]) / (MANY - FEW) < bytes_a_row


def test_the_table_of_the_document_is_the_one_that_the_model_prints():
    document = Path(__file__).parents[1].joinpath("docs/scale.md").read_text(encoding="utf-8")
    shown = document.split("<!-- table -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == scale_model.table()


def test_a_stage_costs_what_its_formula_says():
    # 1,000 prompts x (12 + 4 x 24) = 108,000 tokens; x 2 x 135e6 = 2.916e13 operations
    assert scale_model.tokens("sample", 1000) == 108_000
    assert scale_model.operations("sample", 1000, 135e6) == pytest.approx(2.916e13)
    # at 0.21e12 a second: 138.9 s
    cores = scale_model.CORES
    assert scale_model.seconds("sample", 1000, 135e6, cores) == pytest.approx(138.86, abs=0.01)
    # 37 % of the prompts, twice: 79,920 tokens, at 6 N a token
    assert scale_model.operations("align@dpo", 1000, 1.0) == pytest.approx(6 * 79_920)
    # 235 + 4 x 246 + 2 x 690 + 6 x .875 x 746 = 6,515.5
    assert scale_model.disk(1) == pytest.approx(6515.5)
    assert scale_model.kv_bytes(30, 3, 64) == 23_040


def test_costs_grow_with_prompts_and_with_parameters():
    cores, gpu = scale_model.CORES, scale_model.GPU
    for stage in ("sample", *scale_model.LEARNED):
        one = scale_model.seconds(stage, 1000, 1e9, cores)
        assert scale_model.seconds(stage, 2000, 1e9, cores) == pytest.approx(2 * one)
        assert scale_model.seconds(stage, 1000, 2e9, cores) == pytest.approx(2 * one)
        assert scale_model.seconds(stage, 1000, 1e9, gpu) < one
