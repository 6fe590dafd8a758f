"""The short form of tests/faults.py: one fault of each kind that takes seconds."""

import random
import shutil
import subprocess

import faults
import pytest
from tiny_graph import STAGES, locked

SHORT = {
    "kill": "pairs", "full disk": "prompts", "read-only cache": "prompts", "clock": "pairs",
    "corrupt object": "prompts", "two at once": "prompts", "truncated model": "rank@judge",
}  # fmt: skip


@pytest.fixture(scope="module")
def shaken(graph, tmp_path_factory):
    """A copy of the workspace that tests share: that one must not be shaken."""
    folder = tmp_path_factory.mktemp("faults") / "plumbline"
    shutil.copytree(graph[0], folder, symlinks=True)
    return folder


def may_mount(folder):
    """Whether this user may mount something in a namespace of its own."""
    if not shutil.which("unshare"):
        return False
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", SHORT)
def test_a_fault_costs_a_run_and_nothing_else(shaken, kind):
    if kind in ("full disk", "read-only cache") and not may_mount(shaken.parent):
        pytest.skip("needs `unshare -rm` (Debian: util-linux), and leave to mount")
    graph = faults.Graph(shaken, dict.fromkeys(STAGES, 4.0))
    made = faults.attempt(graph, kind, SHORT[kind], random.Random(3))
    assert made.faults == []
    assert made.hit or kind in ("kill", "two at once"), made.said


def test_what_a_fault_spoils_is_noticed(shaken):
    """The checks see an object that is gone, one that is another, and an output of other content."""
    graph = faults.Graph(shaken, {})
    assert list(graph.broken("prompts")) == []
    (out,) = (o for o in locked(graph.lock)["prompts"]["outs"] if o["path"] == "data/prompts")
    path = list(graph._objects(out["md5"]))[-1]
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content + b" ")
    assert [one.split(": ")[1] for one in graph.broken("prompts")] == [
        f"{path.name} is not what its name says"
    ]
    path.unlink()
    assert [one.split(": ")[1] for one in graph.broken("prompts")] == [
        f"{path.name} is not in the cache"
    ]
    path.write_bytes(content)
    path.chmod(0o444)
