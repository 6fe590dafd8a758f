"""A tiny model for every test that needs one, and the folder of real data where it is at hand."""

import os
import time
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches a hub
ROOT = Path(__file__).parent.parent


GRAPH = (
    "tests/test_lineage.py",
    "tests/test_pipeline.py",
    "tests/test_sharing.py",
    "tests/test_faults.py",
)
"""Their tests share one workspace, which takes minutes to build."""


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that two processes end at about the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith(GRAPH))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each file to one process, and the files that share a workspace to the same one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "graph" if nodeid.startswith(GRAPH) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def nothing_kept(request, monkeypatch, tmp_path_factory):
    """Every test makes what it asks for: nothing is found that another one left."""
    from stages.lib.runtime import items

    place = tmp_path_factory.getbasetemp() / "items" / f"{id(request.node)}-{time.monotonic_ns()}"
    monkeypatch.setattr(items, "folder", lambda: place)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    from tiny_model import build

    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def full_precision():
    from stages.lib.base import Base

    return Base(quantisation="none", weights="rounded", dtype="float32")


@pytest.fixture
def tiny(tiny_folder, full_precision):
    """A fresh tiny model in float32, so that equalities are tight."""
    from stages.lib import models

    return models.load(tiny_folder, full_precision)


@pytest.fixture
def sft_task(tiny_folder, full_precision, tmp_path, monkeypatch):
    """A training on forty demonstrations that starts from the base."""
    from tiny_online import demonstration, write_neutral, write_prompts

    from stages.lib.algorithms.task import Task
    from stages.lib.runtime import files

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    files.write_lines(tmp_path / "demos.jsonl", [demonstration(n) for n in range(40)])
    (tmp_path / "sft").mkdir()
    texts = write_prompts(tmp_path / "prompts"), write_neutral(tmp_path / "neutral.jsonl")
    where = *texts, tmp_path / "sft", tmp_path / "sft.csv"
    return Task(full_precision, 1, tiny_folder, tiny_folder, tmp_path / "demos.jsonl", *where)


@pytest.fixture
def after_sft(sft_task, tmp_path):
    """A training on a reward model that starts from the policy which learned from them."""
    from dataclasses import replace

    from tiny_online import SFT, write_reward

    from stages.lib.algorithms import sft

    sft.train(SFT, sft_task)
    reward = write_reward(tmp_path / "reward", sft_task.base_folder, sft_task.base)
    (tmp_path / "out").mkdir()
    where = {"out": tmp_path / "out", "curves": tmp_path / "o.csv"}
    return replace(sft_task, starts_from=tmp_path / "sft", data=reward, **where)


@pytest.fixture(scope="session")
def graph(tmp_path_factory):
    """A workspace in which `dvc repro` has run once, and what it printed; leave it as it was."""
    from tiny_graph import shell, workspace

    folder = workspace(tmp_path_factory.mktemp("graph") / "plumbline")
    done = shell(folder, "dvc", "repro")
    shell(folder, "git", "add", "-A")
    shell(folder, "git", "commit", "-qm", "results")
    return folder, done.stdout


@pytest.fixture
def clean(graph):
    """That workspace, put back to the committed results after the test."""
    from tiny_graph import shell

    folder, _ = graph
    yield folder
    shell(folder, "git", "checkout", "-q", ".")
    shell(folder, "git", "clean", "-fdxq", "data", "models", "reports")
    shell(folder, "dvc", "checkout", "-q", "--force")


@pytest.fixture(scope="module")
def postgres():
    """Address of a real PostgreSQL that is empty at first."""
    import servers

    with servers.postgres() as address:
        yield address


@pytest.fixture(scope="session")
def bucket(tmp_path_factory):
    """Client of an S3 store with a bucket `plumbline`."""
    import servers

    with servers.bucket(tmp_path_factory.mktemp("s3")) as client:
        yield client


@pytest.fixture(scope="module")
def server(postgres, bucket, tmp_path_factory):
    """A real MLflow server on both."""
    import servers

    folder = tmp_path_factory.mktemp("server")
    with servers.running(servers.mlflow_server(postgres, bucket.meta.endpoint_url, folder)) as one:
        yield one


@pytest.fixture(scope="session")
def real_data():
    """Folder of public data; the test is skipped where it is absent."""
    folder = ROOT / os.environ.get("PLUMBLINE_DATA", "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"no public data at PLUMBLINE_DATA ({folder.name})")
    return folder
