"""Memory of the stages as their inputs grow; tests/bench_scale.py measures more of it."""

import bench_scale
import pytest

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
