"""What surrounds every stage: arguments, refusals of one line, and runs that never fail a stage."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

STAGE = """
from pathlib import Path
from stages.lib.runtime import entry, tracking
from stages.lib.runtime.schema import Refusal, Strict

class Toy(Strict):
    n: int

def run(toy: Toy, seed: int, *, name: str, out: Path) -> dict[str, float]:
    if toy.n == 13:
        raise Refusal("toy.n is 13; 12 would do")
    if toy.n == 99:
        import time
        Path("started").touch()
        time.sleep(60)
    tracking.curve({"loss": 0.5}, 1)
    tracking.curve({"loss": float("nan")}, 2)
    out.write_text(f"{name} {toy.n} {seed}")
    return {"n": float(toy.n), "nothing": float("nan")}

if __name__ == "__main__":
    entry.main(run, "toys.{name}", "seed")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy.py").write_text(textwrap.dedent(STAGE))
    (tmp_path / "params.yaml").write_text(
        "toys: {a: {n: 3}, bad: {n: 13}, slow: {n: 99}}\nseed: 7\n"
    )
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def call(folder, *arguments, **environment):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "toy.py", *arguments], cwd=folder, env=env | {"PYTHONPATH": root} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def runs(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("plumbline").experiment_id])
    return {r.data.tags["dvc.stage"]: r for r in found if r.data.tags["kind"] == "stage"}


def test_a_stage_gets_its_sections_and_paths_and_leaves_its_identity(folder):
    done = call(folder, "a", "out.txt", DVC_STAGE="toy@a")
    _, errors = done.communicate()
    assert done.returncode == 0, errors
    assert (folder / "out.txt").read_text() == "a 3 7"
    card = json.loads((folder / "reports/runs/toy@a.json").read_text())
    assert card["metrics"] == {"n": 3.0}  # what is not finite has no place
    assert card["params"] == {"toys.a.n": 3, "seed": 7}
    run = runs(folder)["toy@a"]
    assert run.info.run_id == card["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"toys.a.n": "3", "seed": "7"}
    assert run.data.metrics["loss"] == 0.5


def test_a_refusal_is_one_line_and_a_failed_run(folder):
    done = call(folder, "bad", "out.txt", DVC_STAGE="toy@bad")
    _, errors = done.communicate()
    assert done.returncode == 1
    assert errors.strip().splitlines()[-1] == "Refusal: toy.n is 13; 12 would do"
    assert "Traceback" not in errors
    assert not (folder / "out.txt").exists()
    assert not (folder / "reports/runs/toy@bad.json").exists()
    assert runs(folder)["toy@bad"].info.status == "FAILED"


def test_wrong_arguments_are_refused_before_anything_is_imported(folder):
    done = call(folder, "a")
    _, errors = done.communicate()
    assert done.returncode == 1
    assert errors.strip() == "Refusal: toy.py takes 2 arguments: name out"
    assert not (folder / "mlflow.db").exists()


def test_a_stage_that_is_terminated_closes_its_run(folder):
    running = call(folder, "slow", "out.txt", DVC_STAGE="toy@slow")
    for _ in range(300):
        if (folder / "started").exists():
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    running.communicate()
    assert running.returncode == 128 + signal.SIGTERM
    assert runs(folder)["toy@slow"].info.status == "KILLED"


def test_a_dead_tracking_server_costs_a_warning_and_no_stage(folder):
    started = time.monotonic()
    done = call(folder, "a", "out.txt", MLFLOW_TRACKING_URI="http://127.0.0.1:9", DVC_STAGE="toy@a")
    _, errors = done.communicate()
    assert done.returncode == 0, errors
    assert time.monotonic() - started < 40
    assert "the stage goes on without it" in errors
    assert json.loads((folder / "reports/runs/toy@a.json").read_text())["metrics"] == {"n": 3.0}


def test_two_stages_may_open_a_fresh_store_at_once(folder):
    both = [call(folder, "a", f"out{n}.txt", DVC_STAGE=f"toy@{n}") for n in range(2)]
    for one in both:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
        assert "does not take this run" not in errors
    found = runs(folder)
    assert set(found) == {"toy@0", "toy@1"}
    assert len({r.data.tags["mlflow.parentRunId"] for r in found.values()}) == 1
