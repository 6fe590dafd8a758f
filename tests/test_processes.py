"""Two processes on one machine give what one gives with twice the batch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parent / "two_processes.py"


def launch(count, model, out):
    out.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count),
        str(SCRIPT), str(model), str(out),
    ]  # fmt: skip
    paths = os.pathsep.join((str(SCRIPT.parents[1]), str(SCRIPT.parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return (
        [torch.load(p, weights_only=True) for p in sorted(out.glob("weights-*.pt"))],
        [json.loads(p.read_text()) for p in sorted(out.glob("rows-*.json"))],
    )


def test_two_processes_train_as_one_does_with_twice_the_batch(tiny_folder, tmp_path):
    (alone,), (expected,) = launch(1, tiny_folder, tmp_path / "one")
    both, rows = launch(2, tiny_folder, tmp_path / "two")
    assert len(both) == 2
    for key, weight in alone.items():
        assert torch.equal(both[0][key], both[1][key]), key
        assert torch.allclose(both[0][key], weight, atol=2e-5), key
    assert len(rows[0]) == len(expected) == 4
    for mine, other, one in zip(*rows, expected, strict=True):
        for name in one:
            assert mine[name] == other[name], name
            close = math.isclose(mine[name], one[name], rel_tol=1e-3, abs_tol=1e-4)
            assert close, (name, mine[name], one[name])
