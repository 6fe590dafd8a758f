"""Which states of a training are kept, and that nothing half-written is."""

import pytest

from stages.lib import keeper, snapshots


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (8, 3, [2, 4, 6]),
        (10, 3, [2, 5, 8]),  # 2.5, 5 and 7.5, halves to even
        (2, 3, [1]),  # 0.5, 1, 1.5: one step lies between start and end
        (1, 3, []),
        (8, 0, []),
    ],
)
def test_the_steps_part_a_training_evenly(total, count, expected):
    assert keeper.steps(total, count) == expected


def test_what_a_kill_left_half_written_is_not_handed_over(tmp_path):
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "out"
    out.mkdir()
    for name in ("000002", "000004", ".000006.77.partial"):
        (checkpoints / "snapshots" / name).mkdir(parents=True)
        (checkpoints / "snapshots" / name / "adapter_config.json").write_text(name)
    keeper.Keeper(None, checkpoints, 3).hand_over(out)
    assert snapshots.kept(out) == {2: out / "snapshots/000002", 4: out / "snapshots/000004"}
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == ["000002", "000004"]
    assert (out / "snapshots/000004/adapter_config.json").read_text() == "000004"
    # A kill from here on makes the stage anew, from a checkpoint behind these steps.
    assert list(snapshots.kept(checkpoints)) == [2, 4]


def test_a_policy_of_which_nothing_was_kept_gets_no_folder(tmp_path):
    keeper.Keeper(None, tmp_path, 3).hand_over(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert snapshots.kept(tmp_path) == {}
