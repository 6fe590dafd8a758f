"""Two clones, one DVC remote, one MLflow server on PostgreSQL: nothing is missing on either side."""

import json
import shutil

import pytest
from mlflow import MlflowClient
from test_lineage import SYNC, require_complete
from tiny_graph import OF_DPO, STAGES, ran, shell, work_off_queue

pytestmark = pytest.mark.slow


def clone(origin, folder):
    shell(origin.parent, "git", "clone", "-q", str(origin), str(folder))
    shell(folder, "git", "config", "user.email", "tiny@localhost")
    shell(folder, "git", "config", "user.name", "tiny")
    return folder


def pipelines(server, where="tags.kind = 'pipeline'"):
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("plumbline").experiment_id
    return client.search_runs([experiment], where)


def children(server, parent):
    found = pipelines(server, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {r.data.tags["dvc.stage"]: r for r in found if "superseded_by" not in r.data.tags}


def test_two_clones_share_a_remote_and_a_server(graph, server, tmp_path):
    first, _ = graph
    server = server.address
    on = ["env", f"MLFLOW_TRACKING_URI={server}"]
    shell(tmp_path, "git", "clone", "-q", "--bare", str(first), "origin.git")
    origin = tmp_path / "origin.git"
    ann = clone(origin, tmp_path / "ann")
    shutil.copytree(first / ".dvc/cache", ann / ".dvc/cache")
    shell(ann, "dvc", "checkout", "-q")
    shell(ann, "dvc", "remote", "add", "-d", "store", str(tmp_path / "remote"))
    shell(ann, "git", "commit", "-qam", "remote")
    shell(ann, "dvc", "push", "-q")
    shell(ann, "git", "push", "-q")
    assert f"HEAD was logged with {len(STAGES)} stages" in shell(ann, *on, *SYNC).stdout

    # Three ablations, two at a time.
    shell(ann, "dvc", "exp", "run", "--queue", "-S", "policies.dpo.beta=0.2,0.4,0.6")
    assert work_off_queue(ann, *on).count("Success") == 3
    found = {p.data.params["policies.dpo.beta"]: p for p in pipelines(server)}
    assert set(found) == {"0.1", "0.2", "0.4", "0.6"}
    for beta in ("0.2", "0.4", "0.6"):
        own = children(server, found[beta])
        require_complete(found[beta], own, OF_DPO)
    names = [p.data.tags["dvc.exp_name"] for beta, p in found.items() if beta != "0.1"]
    table = shell(ann, "python", "-m", "stages.lib.commands.compare").stdout
    assert all(f"{name}/dpo" in table for name in names)
    shell(ann, "dvc", "exp", "push", "-q", "origin", *names)

    # Someone else has all of it, adds one, and gives it back.
    bob = clone(origin, tmp_path / "bob")
    shell(bob, "dvc", "pull", "-q")
    shell(bob, "dvc", "exp", "pull", "-q", "origin", *names)
    said = shell(bob, *on, *SYNC).stdout.splitlines()
    assert said == [f"{name} is there already" for name in ("HEAD", *sorted(names), "workspace")]
    changed = [*on, "dvc", "exp", "run", "-n", "bobs", "-S", "policies.dpo.beta=0.8"]
    assert ran(shell(bob, *changed).stdout) == OF_DPO
    (his,) = pipelines(server, "tags.`dvc.exp_name` = 'bobs' and tags.kind = 'pipeline'")
    require_complete(his, children(server, his), OF_DPO)
    assert {a.path for a in MlflowClient(server).list_artifacts(his.info.run_id)} >= {"report.html"}
    shell(bob, "dvc", "exp", "push", "-q", "origin", "bobs")
    shell(ann, "dvc", "exp", "pull", "-q", "origin", "bobs")
    assert "bobs/dpo" in shell(ann, "python", "-m", "stages.lib.commands.compare").stdout

    # A new store of one's own, from the files alone, holds the very parents of the server.
    shell(ann, *SYNC)
    mine = {p.data.params["policies.dpo.beta"]: p for p in pipelines(f"sqlite:///{ann}/mlflow.db")}
    theirs = {p.data.params["policies.dpo.beta"]: p for p in pipelines(server)}
    assert set(mine) == {"0.1", "0.2", "0.4", "0.6", "0.8"}
    for beta, parent in mine.items():
        assert parent.data.metrics == theirs[beta].data.metrics
        assert parent.data.params == theirs[beta].data.params
    card = json.loads((ann / "reports/pipeline.json").read_text())
    assert card["config"] == mine["0.1"].data.tags["plumbline.config"]
