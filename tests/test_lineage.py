"""Every row of "what must hold" between DVC and MLflow, on the tiny graph with both for real."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from ruamel.yaml import YAML
from tiny_graph import OF_DPO, STAGES, environment, ran, runs, shell, work_off_queue

from stages.lib.algorithms import ppo


def parents(folder, store="mlflow.db"):
    """Pipeline runs by configuration, with their children by stage."""
    found = {}
    for parent in runs(folder, "tags.kind = 'pipeline'", store):
        own = runs(folder, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", store)
        children = {r.data.tags["dvc.stage"]: r for r in own if "superseded_by" not in r.data.tags}
        found[parent.data.tags["plumbline.config"]] = (parent, children)
    return found


def files_of(run, folder, store="mlflow.db"):
    """Names of a run's artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/{store}")
    return {one.path for one in client.list_artifacts(run.info.run_id)}


def change(folder, key, value):
    """Set one parameter in params.yaml."""
    yaml = YAML()
    yaml.width = 1000
    tree = yaml.load(folder / "params.yaml")
    set_leaf(tree, key, lambda _: value)
    yaml.dump(tree, folder / "params.yaml")


def require_complete(parent, children, reran):
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["plumbline.complete"] == "true"
    kinds = {stage: run.data.tags["kind"] for stage, run in children.items()}
    assert kinds == {s: "stage" if s in reran else "reused" for s in STAGES}
    for stage in STAGES:
        assert f"{stage.replace('@', '.')}/seconds" in parent.data.metrics
        own = {k for k in children[stage].data.metrics if not k.startswith("system/")}
        name = stage.replace("@", ".")
        there = {
            k.removeprefix(f"{name}/") for k in parent.data.metrics if k.startswith(f"{name}/")
        }
        assert own - {"peak_mib"} <= there | curve_names(children[stage]), stage


def curve_names(run):
    """Names that a stage logs at each step, which have no place on the parent."""
    if run.data.tags["dvc.stage"] not in {"align@dpo", "align@ppo", "pretrain@votes", "reward"}:
        return set()
    return {*ppo.COLUMNS, "ratio", "margin", "accuracy", "logp_chosen", "logp_rejected", "epoch"}


def test_a_change_without_effect_on_outputs_still_gets_a_complete_parent(clean):
    # A stage that runs again and gives the same bytes stops DVC there: all that follows is skipped.
    path = clean / "stages/prompts.py"
    path.write_text(path.read_text() + "\n# a thought\n")
    output = shell(clean, "dvc", "repro").stdout
    assert ran(output) == {"prompts", "report"}
    card = json.loads((clean / "reports/pipeline.json").read_text())
    require_complete(*parents(clean)[card["config"]], {"prompts", "report"})


def test_going_back_to_an_earlier_configuration_runs_nothing_and_names_its_parent(clean):
    before = json.loads((clean / "reports/pipeline.json").read_text())
    original = (clean / "params.yaml").read_text()
    change(clean, "report.samples", 3)
    shell(clean, "dvc", "repro")
    other = json.loads((clean / "reports/pipeline.json").read_text())
    assert other["run_id"] != before["run_id"]
    count = len(runs(clean, ""))
    (clean / "params.yaml").write_text(original)
    output = shell(clean, "dvc", "repro").stdout
    assert ran(output) == set()
    assert json.loads((clean / "reports/pipeline.json").read_text()) == before
    assert len(runs(clean, "")) == count


@pytest.mark.parametrize(
    ("how", "epochs", "left"),
    [
        (signal.SIGKILL, 12, "RUNNING"),
        pytest.param(signal.SIGTERM, 11, "KILLED", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_was_stopped_goes_on_in_the_same_run(clean, how, epochs, left):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{clean}/mlflow.db")
    change(clean, "policies.dpo.epochs", epochs)
    checkpoints = stopped_in_training(clean, how)
    run_id = (checkpoints / "mlflow_run").read_text()
    assert client.get_run(run_id).info.status == left
    shell(clean, "dvc", "repro", "align@dpo")
    card = json.loads((clean / "reports/runs/align@dpo.json").read_text())
    assert card["run_id"] == run_id
    again = client.get_run(run_id)
    assert again.info.status == "FINISHED"
    assert "superseded_by" not in again.data.tags
    assert not runs(clean, "attributes.status = 'RUNNING'")
    history = client.get_metric_history(run_id, "grad_norm")
    steps = int(card["metrics"]["steps"])
    assert sorted(m.step for m in history) == list(range(1, steps + 1))  # each once
    assert not checkpoints.exists()


def stopped_in_training(folder, how):
    """Start `dvc repro align@dpo`, send a signal after its first checkpoint; return its folder."""
    running = subprocess.Popen(
        ["dvc", "repro", "align@dpo"], cwd=folder, env=environment(folder), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(6000):
        saved = list((folder / ".cache/checkpoints").glob("align-dpo-*/checkpoint-*/sealed.json"))
        if saved or running.poll() is not None:
            break
        time.sleep(0.02)
    assert saved, running.communicate()
    os.killpg(running.pid, how)
    running.communicate()
    return saved[0].parent.parent


AWAY = ["env", "MLFLOW_TRACKING_URI=http://127.0.0.1:9"]
SYNC = ["python", "-m", "stages.lib.commands.sync"]


def test_what_ran_while_the_server_was_away_is_logged_later_as_run_and_not_as_reused(clean):
    change(clean, "scorers.harm.batch_tokens", 2048)
    shell(clean, "dvc", "repro", "score@harm")
    there = json.loads((clean / "reports/runs/score@harm.json").read_text())["run_id"]
    shell(clean, *AWAY, "dvc", "repro")
    card = json.loads((clean / "reports/pipeline.json").read_text())
    assert card["run_id"] == card["stages"]["report"] == ""
    assert f"workspace was logged with {len(STAGES)} stages" in shell(clean, *SYNC).stdout
    parent, children = parents(clean)[card["config"]]
    require_complete(parent, children, {"score@harm", "report"})
    assert children["score@harm"].info.run_id == there
    assert "workspace is there already" in shell(clean, *SYNC).stdout


def test_a_lost_store_is_rebuilt_and_a_second_time_changes_nothing(clean):
    plain = lambda run: (dict(run.data.metrics), run.data.params)  # noqa: E731
    read = lambda run: {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs}  # noqa: E731
    card = json.loads((clean / "reports/pipeline.json").read_text())
    parent, children = parents(clean)[card["config"]]
    sync = ["env", f"MLFLOW_TRACKING_URI=sqlite:///{clean}/rebuilt.db", *SYNC]
    first = shell(clean, *sync).stdout
    assert f"HEAD was logged with {len(STAGES)} stages" in first
    rebuilt, theirs = parents(clean, "rebuilt.db")[card["config"]]
    assert rebuilt.info.run_id != parent.info.run_id
    assert plain(rebuilt) == plain(parent)
    assert {s: r.data.tags["kind"] for s, r in theirs.items()} == {
        s: r.data.tags["kind"] for s, r in children.items()
    }
    for stage in STAGES:
        assert theirs[stage].data.params == children[stage].data.params
        assert read(theirs[stage]) == read(children[stage])
    assert {stage for stage in STAGES if not read(theirs[stage])} == {"fetch@base"}
    assert files_of(rebuilt, clean, "rebuilt.db") == files_of(parent, clean) >= {"report.html"}
    count = len(runs(clean, "", "rebuilt.db"))
    assert "workspace is there already" in shell(clean, *sync).stdout
    assert len(runs(clean, "", "rebuilt.db")) == count


def test_what_is_not_in_the_cache_leaves_no_half_of_a_run(clean):
    store = ["env", f"MLFLOW_TRACKING_URI=sqlite:///{clean}/partial.db"]
    card = clean / "reports/pipeline.json"
    md5 = recorded(clean)["outs"]["reports/runs/pairs.json"]
    cache, aside = clean / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}", clean / "aside"
    kept = card.read_text()
    cache.rename(aside)
    card.unlink()  # else the workspace, which has all of it, would be logged
    try:
        said = shell(clean, *store, *SYNC).stdout.splitlines()
    finally:
        aside.rename(cache)
        card.write_text(kept)
    assert said[0] == (
        "HEAD was left out: HEAD: reports/runs/pairs.json is not in DVC's cache; "
        "`dvc pull` or `dvc repro` brings it"
    )
    assert said[-1] == "workspace has no finished run"
    assert runs(clean, "", "partial.db") == []


def test_an_experiment_in_a_temporary_copy_logs_to_the_main_store(clean):
    shell(clean, "dvc", "exp", "run", "--temp", "-n", "aside", "-S", "report.samples=2")
    (parent,) = runs(clean, "tags.`dvc.exp_name` = 'aside' and tags.kind = 'pipeline'")
    own = runs(clean, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    require_complete(parent, {r.data.tags["dvc.stage"]: r for r in own}, {"report"})
    assert parent.data.params["report.samples"] == "2"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{clean}/mlflow.db")
    local = client.download_artifacts(parent.info.run_id, "report.html")
    assert parent.info.artifact_uri.startswith((clean / "mlartifacts").as_uri())
    assert len(open(local).read()) > 1000  # noqa: PTH123, SIM115


def test_a_file_that_an_earlier_configuration_left_among_the_runs_is_refused(clean):
    left = clean / "reports/runs/align@gone.json"
    left.write_text("{}")
    try:
        done = shell(clean, "dvc", "repro", check=False)
    finally:
        left.unlink()
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("RecordError")]
    assert line == (
        "RecordError: reports/runs: align@gone.json: of no stage of the graph; "
        "delete what an earlier configuration left"
    )
    # The pipeline run of before is complete and stays so; DVC gives its results back.
    assert ran(shell(clean, "dvc", "repro").stdout) == set()
    card = json.loads((clean / "reports/pipeline.json").read_text())
    assert parents(clean)[card["config"]][0].info.status == "FINISHED"


def test_plan_says_what_would_run_and_why(clean):
    call = ["python", "-m", "stages.lib.commands.plan", "--exit-code"]
    done = shell(clean, *call, check=False)
    assert (done.returncode, done.stdout.strip()) == (
        0,
        "Nothing would run: results and inputs agree.",
    )
    change(clean, "policies.dpo.beta", 0.7)
    done = shell(clean, *call, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    named = [line.split()[0] for line in lines[:5]]
    assert named[:2] + named[4:] == ["align@dpo", "evaluate@dpo", "report"]
    assert set(named) == OF_DPO
    assert lines[0].endswith("policies.dpo.beta 0.1 → 0.7")
    assert lines[1].endswith("align@dpo would run")
    assert lines[-2].startswith("5 stages: about ")
    assert " GiB of memory" in lines[-2]
    estimate = re.fullmatch(
        r"Memory by estimate: ([\d.]+) GiB at most, by (\S+); [\d.]+ GiB in this machine\.",
        lines[-1],
    )
    assert f"{estimate[1]} GiB" in next(line for line in lines if line.startswith(estimate[2]))
    shell(clean, "git", "checkout", "-q", "params.yaml")
    path = clean / "stages/lib/losses.py"
    path.write_text(path.read_text() + "\n# a thought\n")
    named = [line.split()[0] for line in shell(clean, *call, check=False).stdout.splitlines()[:-3]]
    assert {"reward", "align@dpo"} <= set(named)
    assert not {"fetch@base", "prompts", "sample@base", "pairs"} & set(named)
    assert named.index("align@dpo") < named.index("evaluate@dpo") < named.index("report")


def leaves(tree, prefix=""):
    """Dotted keys of every parameter that is no mapping."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name


def test_each_parameter_makes_exactly_the_stages_stale_that_declare_it(graph, monkeypatch):
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    folder, _ = graph
    monkeypatch.chdir(folder)
    original = (folder / "params.yaml").read_text()
    checked = 0
    with Repo() as repo:
        declared = {
            stage.addressing: [d for d in stage.deps if isinstance(d, ParamsDependency)]
            for stage in repo.index.stages
        }
        for key in leaves(YAML(typ="safe").load(original)):
            if key.startswith("models.") or key.split(".")[-1] in TEMPLATED:
                continue
            tree = YAML(typ="safe").load(original)
            set_leaf(tree, key, other_than)
            # what DVC reads of the changed file; writing and parsing it a hundredfold takes a minute
            monkeypatch.setattr("dvc.dependency.param.load_path", lambda *_, tree=tree: tree)
            stale = {name for name, deps in declared.items() if any(d.status() for d in deps)}
            expected = {
                name
                for name, deps in declared.items()
                if any(key == k or key.startswith(f"{k}.") for d in deps for k in d.params)
            }
            assert expected, key
            assert stale == expected, key
            checked += 1
    assert checked > 80


TEMPLATED = {"model", "reads", "learns_from"}
"""Keys of params.yaml that stand in commands and paths: another value is another graph."""


def other_than(value):
    return "another" if isinstance(value, str) else [value, "another"]


def set_leaf(tree, key, new):
    *path, last = key.split(".")
    for part in path:
        tree = tree[part]
    tree[last] = new(tree[last])


LEAVES = {
    "models.base.licence": "MIT",
    "prompts.split.near_duplicate": 0.7,
    "samplers.base.temperature": 0.9,
    "labelers.words.tie": 1.0,
    "labelers.judge.tie": 0.05,
    "pairs.elo_resamples": 120,
    "reward.epochs": 2,
    "base.weights": "rounded",
    "policies.dpo.beta": 0.4,
    "evaluate.threshold": 0.4,
    "report.words": 7,
    "seed": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("key", LEAVES)
def test_a_parameter_runs_the_stages_that_declare_it_and_what_it_changes(clean, key):
    from dvc.repo import Repo

    change(clean, key, LEAVES[key])
    with Repo(clean) as repo:
        direct = {name.split(":")[-1] for name in repo.status()}
    before = recorded(clean)
    done = ran(shell(clean, "dvc", "repro").stdout)
    after = recorded(clean)
    # What ran beside the stages that declare it ran because something that it reads changed.
    moved = {path for path in after["outs"] if after["outs"][path] != before["outs"].get(path)}
    fed = {
        stage
        for stage, deps in after["deps"].items()
        if any(before["deps"][stage].get(path) != md5 for path, md5 in deps.items())
    }
    assert moved
    assert direct <= done == direct | fed
    card = json.loads((clean / "reports/pipeline.json").read_text())
    require_complete(*parents(clean)[card["config"]], done)


def recorded(folder):
    """Hashes in dvc.lock: of inputs by stage, of outputs by path."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {
        "deps": {n: {d["path"]: d["md5"] for d in s["deps"]} for n, s in stages.items()},
        "outs": {o["path"]: o["md5"] for s in stages.values() for o in s["outs"]},
    }


@pytest.mark.slow
def test_a_queue_of_ablations_on_a_fresh_store_loses_nothing(clean):
    fresh = ["env", f"MLFLOW_TRACKING_URI=sqlite:///{clean}/queue.db"]
    shell(clean, "dvc", "exp", "run", "--queue", "-S", "report.words=3,4,5")
    assert work_off_queue(clean, *fresh).count("Success") == 3
    found = {p.data.params["report.words"]: (p, c) for p, c in parents(clean, "queue.db").values()}
    assert set(found) == {"3", "4", "5"}
    for parent, children in found.values():
        require_complete(parent, children, {"report"})
