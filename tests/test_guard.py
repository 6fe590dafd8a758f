"""Edits during a run, runs of dead processes, attempts: on a small graph with real DVC and MLflow."""

import json
import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny_graph import ROOT, environment, shell, work_off_queue

STAGE = """
import sys, time
from pathlib import Path
from stages.lib.runtime import entry
from stages.lib.runtime.schema import Strict

class Toy(Strict):
    n: int
    wait: bool

def run(toy: Toy, *, data: Path, out: Path) -> dict[str, float]:
    if toy.wait:
        (Path("..") / "started").touch()
        while not (Path("..") / "go").exists():
            time.sleep(0.05)
    out.write_text(data.read_text() * toy.n)
    return {"n": float(toy.n)}

if __name__ == "__main__":
    entry.main(run, "toy", record="{stage}.json")
"""
GRAPH = """
stages:
  toy:
    cmd: python toy.py data.txt out.txt
    deps: [toy.py, data.txt, folder]
    params: [toy]
    outs: [out.txt, toy.json]
"""


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    (folder / "folder").mkdir(parents=True)
    (folder / "toy.py").write_text(textwrap.dedent(STAGE))
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "params.yaml").write_text("toy: {n: 2, wait: true}\nother: 1\n")
    (folder / "data.txt").write_text("ab")
    (folder / "folder/a.txt").write_text("a")
    (folder / ".dvcignore").write_text("__pycache__\n")
    (folder / "stages").symlink_to(ROOT / "stages")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        shell(folder, *command)
    return folder


def start(repo):
    """Start `dvc repro` and return once its stage runs."""
    (repo.parent / "started").unlink(missing_ok=True)
    (repo.parent / "go").unlink(missing_ok=True)
    running = subprocess.Popen(
        ["dvc", "repro"], cwd=repo, env=environment(repo), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    for _ in range(600):
        if (repo.parent / "started").exists() or running.poll() is not None:
            break
        time.sleep(0.05)
    assert (repo.parent / "started").exists(), running.communicate()
    return running


def end(repo, running):
    (repo.parent / "go").touch()
    output, errors = running.communicate(timeout=60)
    return running.returncode, output, errors


def runs(repo, store=None):
    from mlflow import MlflowClient

    client = MlflowClient(store or f"sqlite:///{repo}/mlflow.db")
    experiment = client.get_experiment_by_name("plumbline").experiment_id
    return sorted(client.search_runs([experiment]), key=lambda r: r.info.start_time)


def edit_params(repo):
    (repo / "params.yaml").write_text("toy: {n: 3, wait: true}\nother: 1\n")


def edit_data(repo):
    (repo / "data.txt").write_text("abc")


def edit_code(repo):
    (repo / "toy.py").write_text((repo / "toy.py").read_text() + "\n# a thought\n")


def add_file(repo):
    (repo / "folder/b.txt").write_text("b")


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (edit_params, "params.yaml: toy"),
        (edit_data, "data.txt"),
        (edit_code, "toy.py"),
        (add_file, "folder/b.txt"),
    ],
)
def test_an_edit_during_a_stage_is_refused_and_leaves_no_trace(repo, edit, where):
    running = start(repo)
    edit(repo)
    status, _, errors = end(repo, running)
    assert status != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("EditedError")]
    assert line == (
        f"EditedError: {where} changed while stage toy ran; its results belong to neither state "
        "and are not kept; run `dvc repro` again"
    )
    assert not (repo / "dvc.lock").exists()
    assert not list((repo / ".dvc/cache/runs").glob("*/*/*"))
    assert [r.info.status for r in runs(repo)] == [
        "FAILED",
        "FAILED",
    ]  # the pipeline run and its stage
    # Run again, the edited state gets its own result.
    done = shell(repo, "dvc", "repro")
    assert "Running stage 'toy'" in done.stdout
    expected = {edit_params: "ababab", edit_data: "abcabc"}.get(edit, "abab")
    assert (repo / "out.txt").read_text() == expected


def test_an_edit_of_what_the_stage_does_not_read_is_no_matter(repo):
    running = start(repo)
    (repo / "params.yaml").write_text("toy: {n: 2, wait: true}\nother: 2\n")
    (repo / "README.md").write_text("words")
    status, _, errors = end(repo, running)
    assert status == 0, errors
    assert json.loads((repo / "toy.json").read_text())["metrics"] == {"n": 2}


def test_a_killed_process_leaves_no_ghost(repo):
    running = start(repo)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert [r.info.status for r in runs(repo)] == ["RUNNING", "RUNNING"]
    (repo.parent / "go").touch()
    shell(repo, "dvc", "repro")
    parent, first, second = runs(repo)
    assert [r.info.status for r in (parent, first, second)] == ["FINISHED", "KILLED", "FINISHED"]
    assert first.data.tags["superseded_by"] == second.info.run_id
    assert "superseded_by" not in second.data.tags
    assert first.data.tags["mlflow.parentRunId"] == second.data.tags["mlflow.parentRunId"]


def test_the_pipeline_run_of_a_killed_stage_is_closed_though_params_changed_since(repo):
    running = start(repo)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert [r.info.status for r in runs(repo)] == ["RUNNING", "RUNNING"]
    (repo / "params.yaml").write_text("toy: {n: 5, wait: false}\nother: 1\n")
    shell(repo, "dvc", "repro")
    assert [r.info.status for r in runs(repo)] == ["KILLED", "KILLED", "FINISHED", "FINISHED"]


def test_a_stage_waits_for_one_that_a_killed_dvc_left_running(repo):
    orphaned = start(repo)
    os.kill(orphaned.pid, signal.SIGKILL)
    orphaned.wait()
    (repo / "params.yaml").write_text("toy: {n: 5, wait: false}\nother: 1\n")
    second = subprocess.Popen(
        ["dvc", "repro"], cwd=repo, env=environment(repo), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    line = ""
    while "waiting" not in line:
        line = second.stdout.readline()
        assert line, "it did not wait"
    assert line == "an earlier process of stage toy still runs here; waiting\n"
    (repo.parent / "go").touch()
    rest = second.communicate(timeout=60)[0]
    assert second.returncode == 0, rest
    assert (repo / "out.txt").read_text() == "ab" * 5


def test_a_run_of_a_living_process_or_another_machine_is_left_alone(repo):
    from stages.lib.runtime.tracking import attempts

    assert not attempts._dead(attempts.signature())
    assert not attempts._dead("another-machine:1:0.00")
    mine = attempts.signature().rsplit(":", 2)
    assert attempts._dead(f"{mine[0]}:{mine[1]}:0.00")  # the number is used again


def test_a_stage_logs_the_data_it_read(repo, tmp_path):
    (repo.parent / "go").touch()
    (repo / "dvc.yaml").write_text(
        GRAPH + "  next:\n    cmd: python toy.py out.txt more.txt\n    deps: [toy.py, out.txt]\n"
        "    params: [toy]\n    outs: [more.txt, next.json]\n"
    )
    shell(repo, "dvc", "repro")
    by_stage = {r.data.tags.get("dvc.stage"): r for r in runs(repo)}
    lock = YAML(typ="safe").load(repo / "dvc.lock")["stages"]
    for stage in ("toy", "next"):
        read = {i.dataset.name: i.dataset.digest for i in by_stage[stage].inputs.dataset_inputs}
        assert read == {dep["path"]: dep["md5"] for dep in lock[stage]["deps"]}
        assert read == json.loads((repo / f"{stage}.json").read_text())["data"]
    assert read["out.txt"] == lock["toy"]["outs"][0]["md5"]
    assert Path(repo / "more.txt").read_text() == "ab" * 4


@pytest.mark.slow
def test_two_queued_experiments_on_a_fresh_store_fail_in_none_of_ten_trials(repo):
    # Without the lock around the first client, 5 of 5 failed: both migrate the new database.
    (repo / "params.yaml").write_text("toy: {n: 2, wait: false}\nother: 1\n")
    shell(repo, "dvc", "repro")
    shell(repo, "git", "config", "user.email", "tiny@localhost")
    shell(repo, "git", "config", "user.name", "tiny")
    shell(repo, "git", "add", "-A")
    shell(repo, "git", "commit", "-qm", "toy")
    for trial in range(10):
        store, pair = f"sqlite:///{repo}/trial-{trial}.db", f"{10 + 2 * trial},{11 + 2 * trial}"
        shell(repo, "dvc", "exp", "run", "--queue", "-S", f"toy.n={pair}")
        status = work_off_queue(repo, "env", f"MLFLOW_TRACKING_URI={store}")
        assert status.count("Success") == 2 * (trial + 1)
        done = [r for r in runs(repo, store) if r.data.tags.get("dvc.stage") == "toy"]
        assert sorted(r.data.params["toy.n"] for r in done) == pair.split(",")
        assert {r.info.status for r in done} == {"FINISHED"}
