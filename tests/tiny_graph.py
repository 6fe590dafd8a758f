"""The whole graph on a two-layer model, in a scratch copy of the working tree.

    python tests/tiny_graph.py FOLDER

Real DVC, real MLflow, profiles/tiny.yaml as params.yaml. What the models say means nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES = {
    "fetch@base", "provoke@red", "prompts", "sample@base", "revise@own",
    "rank@valence", "rank@words", "rank@judge", "rank@people", "pairs", "pretrain@votes", "reward",
    "align@baseline", "align@unquantised", "align@dpo", "align@ppo",
    "evaluate@baseline", "evaluate@unquantised", "evaluate@dpo", "evaluate@ppo",
    "score@judge", "score@harm", "audit", "report",
}  # fmt: skip
SECRETS = {
    "HF_TOKEN": "hf_canary41b7",
    "MLFLOW_TRACKING_PASSWORD": "canary-93d0",
    "OPENAI_API_KEY": "sk-canary-c81f",
}
"""Of the surrounding environment, as people have them; they may appear nowhere."""
OF_DPO = {"align@dpo", "evaluate@dpo", "score@judge", "score@harm", "report"}
"""What follows from a parameter of policies.dpo."""
APART = ("reports/runs/", "reports/report", "reports/pipeline.json", "reports/verdict.txt")
"""Outputs that quote run ids, times or each other's hashes."""


def workspace(folder: Path) -> Path:
    """Copy what git would hold into `folder`, with the tiny profile and model; a git and DVC repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        if (
            (ROOT / name).is_file()
            and not name.startswith(("reports/", ".dvc/"))
            and name != "dvc.lock"
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "profiles/tiny.yaml", folder / "params.yaml")
    from tiny_model import build

    build(folder / "tiny-model")
    write_votes(folder / "data/preferences/votes")
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.email", "tiny@localhost"],
        ["git", "config", "user.name", "tiny"],
        ["dvc", "init", "-q"],
        ["dvc", "config", "core.analytics", "false"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "tiny"],
    ):
        shell(folder, *command)
    return folder


def write_votes(folder: Path) -> None:
    """Questions with an answer that many found useful and one that few did, as posts of a site."""
    folder.mkdir(parents=True)
    with (folder / "posts.jsonl").open("w") as out:
        for n in range(24):
            question = {
                "site": "tea.example.com", "id": 10 * n, "type": "question", "parent_id": None,
                "accepted_answer_id": None, "score": 1, "title": f"Tea {n}", "body_html": f"<p>Is tea {n} good?</p>",
            }  # fmt: skip
            answers = [
                question | {"id": 10 * n + at, "type": "answer", "parent_id": 10 * n, "title": None} | own
                for at, own in enumerate((
                    {"score": 5, "body_html": f"<p>Yes, hot, for {n} minutes.</p>"},
                    {"score": 0, "body_html": "<p>No idea.</p>"},
                ), start=1)
            ]  # fmt: skip
            out.writelines(json.dumps(post) + "\n" for post in (question, *answers))


def environment(folder: Path) -> dict[str, str]:
    """Nothing of the surrounding DVC, MLflow or S3; one thread, since two only get in each other's way."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "AWS_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        **SECRETS,
    }


def shell(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run a command in the workspace; its output is in the error where it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def work_off_queue(folder: Path, *before: str) -> str:
    """Run the queued experiments, two at a time, and return what `dvc queue status` says at the end.

    It waits for the workers as well: one keeps the environment that it began with.
    """
    shell(folder, *before, "dvc", "queue", "start", "-j", "2")
    for _ in range(600):
        status = shell(folder, "dvc", "queue", "status").stdout
        if "0 active, 0 idle" in status:
            return status
        time.sleep(0.5)
    raise AssertionError(status)


def locked(path: Path) -> dict[str, dict]:
    """The stages of a dvc.lock."""
    return YAML(typ="safe").load(path)["stages"]


def outs(path: Path) -> dict[str, dict[str, str]]:
    """Hash of every output in a dvc.lock, by stage, but for those that quote a run."""
    return {
        name: {o["path"]: o["md5"] for o in own.get("outs", []) if not o["path"].startswith(APART)}
        for name, own in locked(path).items()
    }  # fmt: skip


def ran(output: str) -> set[str]:
    """The stages that `dvc repro` says it ran."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def runs(
    folder: Path, where: str = "attributes.status = 'FINISHED'", store: str = "mlflow.db"
) -> list:
    """The workspace's MLflow runs that a filter finds.

    Another store is another file: MLflow holds an open one by name, also once it is moved away.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/{store}")
    experiment = client.get_experiment_by_name("plumbline")
    return client.search_runs([experiment.experiment_id], where)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    shutil.rmtree(place, ignore_errors=True)
    workspace(place)
    status = subprocess.run(["dvc", "repro"], cwd=place, env=environment(place), check=False)
    if status.returncode == 0:
        print((place / "reports/verdict.txt").read_text())
        print(
            f"A model of two random layers: the numbers mean nothing. All of it is in {sys.argv[1]}"
        )
    sys.exit(status.returncode)
