"""A new algorithm is a folder and an entry: the walk of CONTRIBUTING.md, with a toy one."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from graph import ROOT
from tiny_graded import COMMON, write_graded

from stages.lib.algorithms import registry
from stages.lib.algorithms.registry import Policy
from stages.lib.runtime.schema import Refusal, check

TOY = '''"""Lengthens: likes a completion the more, the more tokens it has."""

from typing import Literal

from stages.lib.algorithms import graded
from stages.lib.algorithms.graded import Matching
from stages.lib.algorithms.task import Task


class Longer(Matching):
    """An entry of `policies` that grows longer."""

    algorithm: Literal["longer"]


def train(policy: Longer, task: Task) -> dict[str, float]:
    """Align an adapter."""

    def objective(logps_GN, batch):
        import torch

        lengths = torch.tensor([len(s.completion) for s in batch.sequences]).view(logps_GN.shape)
        pull = (lengths - lengths.float().mean(1, keepdim=True)) * logps_GN
        return -pull.mean(1), {"kl_target": 0 * pull[:, 0], "effective": 0 * pull[:, 0]}

    return graded.fit(policy, task, objective, folder=task.data)
'''


def test_every_folder_is_an_algorithm_with_a_class_of_its_name():
    assert {"none", "sft", "dpo", "kto", "rloo", "ppo", "brain", "dpg"} <= set(registry.NAMES)
    for name in registry.NAMES:
        assert registry.knobs(name).__doc__
        assert callable(registry.module(name).train)


def test_an_algorithm_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Refusal) as refused:
        check({"algorithm": "grpo"}, Policy, "params.yaml: policies.x")
    assert str(refused.value).startswith(
        "params.yaml: policies.x.algorithm must be one of 'brain', "
    )
    assert str(refused.value).endswith(", not 'grpo'")


def test_reading_an_entry_imports_no_torch():
    """`make plan` and every other stage that reads a policy stays light."""
    code = "import sys, stages.lib.algorithms.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


WALK = """
import json, sys
from pathlib import Path
from stages.lib.algorithms import registry
from stages.lib.algorithms.task import Task
from stages.lib.base import Base
from stages.lib.runtime.schema import check

entry = check(json.loads(sys.argv[1]), registry.Policy, "params.yaml: policies.toy")
model, data, out = map(Path, sys.argv[2:])
out.mkdir()
base = Base(quantisation="none", weights="rounded", dtype="float32")
task = Task(base, 1, model, model, data, data, Path("none"), out, out / "curves.csv")
print(json.dumps(registry.train(entry, task)))
"""


def test_the_walk_of_contributing_ends_in_a_trained_policy(tiny_folder, tmp_path):
    """In a copy of stages/: a folder is added, and nothing that is there is changed."""
    own = tmp_path / "stages/lib/algorithms/longer"
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__py*"))
    own.mkdir()
    (own / "__init__.py").write_text(TOY)
    data = write_graded(tmp_path / "own", tiny_folder)
    entry = json.dumps(COMMON | {"algorithm": "longer"})
    done = subprocess.run(
        [sys.executable, "-c", WALK, entry, tiny_folder, data, tmp_path / "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"DVC_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 12
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
