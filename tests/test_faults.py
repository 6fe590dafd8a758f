"""The short form of tests/faults.py: one fault of each kind that takes seconds, in a graph of its own."""

import random
import shutil

import faults
import pytest
from tiny_graph import STAGES, locked, shell, workspace

pytestmark = pytest.mark.slow

SHORT = {
    "kill": "pairs", "full disk": "prompts", "read-only cache": "prompts", "clock": "pairs",
    "corrupt object": "prompts", "two at once": "prompts", "truncated model": "rank@judge",
}  # fmt: skip


@pytest.fixture(scope="module")
def shaken(tmp_path_factory):
    """A workspace in which every stage has run; the shared one must not be shaken."""
    folder = workspace(tmp_path_factory.mktemp("faults") / "plumbline")
    shell(folder, "dvc", "repro")
    return folder


@pytest.mark.parametrize("kind", SHORT)
def test_a_fault_costs_a_run_and_nothing_else(shaken, kind):
    if kind in ("full disk", "read-only cache") and not shutil.which("unshare"):
        pytest.skip("needs unshare (Debian: util-linux)")
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
