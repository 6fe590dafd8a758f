"""A team's servers for real: PostgreSQL, a store of the S3 kind, MLflow on both; docs/team.md."""

import json
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import KEYS, objects
from test_lineage import SYNC, change, require_complete
from test_sharing import children, clone, pipelines
from tiny_graph import OF_DPO, STAGES, ran, shell, workspace

from stages.lib.runtime.tracking import run


@pytest.fixture
def on_server(server, tmp_path, monkeypatch):
    """This process logs to the server, from a folder of its own, without a key of the S3 store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # as store.py has it; and restored
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text("toy: {size: 3}\n")
    return server


def test_logging_a_stage_over_http_takes_at_most_two_seconds(on_server):
    seconds = []
    for loss in (0.5, 0.25, 0.125):
        started = time.perf_counter()
        with run.stage_run("toy@a", {"toy": {"size": 3, "name": "a"}}) as own:
            own.finish({"loss": loss}, seconds=1.0)
        seconds.append(time.perf_counter() - started)
    assert min(seconds[1:]) < 2, seconds  # the first of all creates the experiment
    there = MlflowClient(on_server.address).get_run(own.run_id)
    assert there.info.status == "FINISHED"
    assert there.data.params == {"toy.size": "3", "toy.name": "a"}
    assert there.data.metrics["loss"] == 0.125


def test_artifacts_reach_the_bucket_through_the_server_without_a_key(on_server, bucket, tmp_path):
    (tmp_path / "note.txt").write_text("strong tea")
    with run.stage_run("toy@a", {}) as own:
        own.artifact(tmp_path / "note.txt")
        own.finish({}, seconds=1.0)
    (key,) = {key for key in objects(bucket, "mlflow/") if own.run_id in key}
    assert key.endswith("/note.txt")
    assert bucket.get_object(Bucket="plumbline", Key=key)["Body"].read() == b"strong tea"
    got = MlflowClient(on_server.address).download_artifacts(own.run_id, "note.txt", str(tmp_path))
    assert Path(got).read_text() == "strong tea"


@pytest.mark.slow
def test_a_server_that_begins_to_hang_costs_15_seconds_at_most_and_no_stage(on_server, capsys):
    started = time.perf_counter()
    try:
        with run.stage_run("toy@a", {}) as own:
            on_server.send(signal.SIGSTOP)
            own.finish({"loss": 0.5}, seconds=1.0)
    finally:
        on_server.send(signal.SIGCONT)
    # Two tries of 5 s for the first call that is not taken, one of 2 s to close the run.
    assert 12 < time.perf_counter() - started < 15
    assert "`make sync` logs it later" in capsys.readouterr().err
    assert own.identity()["metrics"] == {"loss": 0.5}


def member(origin, folder):
    """A clone of a team's member: address of the remote from git, keys in .dvc/config.local."""
    clone(origin, folder)
    for key, value in zip(("access_key_id", "secret_access_key"), KEYS.values(), strict=True):
        shell(folder, "dvc", "remote", "modify", "--local", "store", key, value)
    assert "config.local" not in shell(folder, "git", "status", "--porcelain").stdout
    return folder


def founded(folder, url):
    """A bare repository of the tiny project whose DVC remote is the bucket."""
    first = workspace(folder / "first")
    shell(first, "dvc", "remote", "add", "-d", "store", "s3://plumbline/dvc")
    shell(first, "dvc", "remote", "modify", "store", "endpointurl", url)
    shell(first, "git", "commit", "-qam", "remote")
    shell(folder, "git", "clone", "-q", "--bare", str(first), "origin.git")
    return folder / "origin.git"


def given(folder, message):
    """Commit and push what a member made, and its data."""
    shell(folder, "git", "add", "-A")
    shell(folder, "git", "commit", "-qm", message)
    shell(folder, "dvc", "push", "-q")
    shell(folder, "git", "push", "-q")


def card_of(folder):
    return json.loads((folder / "reports/pipeline.json").read_text())


def everything(server):
    """All that the server holds of runs: who they are, what they say, when they ended."""
    found = pipelines(server, "")
    return {r.info.run_id: (r.data.to_dictionary(), r.info.end_time, r.info.status) for r in found}


def require_nothing_left_to_do(folder, on, server):
    """Pull, run and sync: nothing runs and nothing is logged a second time."""
    before = everything(server)
    shell(folder, "dvc", "pull", "-q")
    done = shell(folder, *on, "dvc", "repro").stdout
    assert ran(done) == set()
    assert "up to date" in done
    said = shell(folder, *on, *SYNC).stdout.splitlines()
    assert said == ["HEAD is there already", "workspace is there already"]
    assert everything(server) == before
    assert shell(folder, "git", "status", "--porcelain").stdout == ""


def parent_of(folder, server, reran):
    """The pipeline run that a clone's card names, whole."""
    card = card_of(folder)
    (parent,) = pipelines(server, f"tags.`plumbline.config` = '{card['config']}'")
    assert parent.info.run_id == card["run_id"]
    require_complete(parent, children(server, parent), reran)
    return parent


@pytest.mark.slow
def test_two_clones_work_through_postgresql_an_object_store_and_a_remote(server, bucket, tmp_path):
    on = ["env", f"MLFLOW_TRACKING_URI={server.address}"]
    origin = founded(tmp_path, bucket.meta.endpoint_url)

    # Ann runs the graph through the server.
    ann = member(origin, tmp_path / "ann")
    assert ran(shell(ann, *on, "dvc", "repro").stdout) == STAGES
    first = parent_of(ann, server.address, STAGES)
    given(ann, "results")
    assert any(
        first.info.run_id in key and "report.html" in key for key in objects(bucket, "mlflow/")
    )
    assert len(objects(bucket, "dvc/files/md5/")) >= len(STAGES)

    # Bob begins with nothing but git, and has the very run.
    bob = member(origin, tmp_path / "bob")
    assert not (bob / ".dvc/cache").exists()
    require_nothing_left_to_do(bob, on, server.address)
    assert parent_of(bob, server.address, STAGES).to_dictionary() == first.to_dictionary()
    # Without a server it is rebuilt from the files: the same but for ids and times.
    shell(bob, *SYNC)
    (own,) = pipelines(f"sqlite:///{bob}/mlflow.db")
    assert (own.data.params, own.data.metrics) == (first.data.params, first.data.metrics)
    assert own.data.tags["synced_from"] == first.info.run_id

    # He changes a parameter; she has the result without a run.
    change(bob, "policies.dpo.beta", 0.3)
    assert ran(shell(bob, *on, "dvc", "repro").stdout) == OF_DPO
    second = parent_of(bob, server.address, OF_DPO)
    assert second.info.run_id != first.info.run_id
    given(bob, "closer")
    shell(ann, "git", "pull", "-q")
    require_nothing_left_to_do(ann, on, server.address)
    assert parent_of(ann, server.address, OF_DPO).to_dictionary() == second.to_dictionary()
    assert len(pipelines(server.address, "tags.`plumbline.complete` = 'true'")) == 2

    # The server is away while she changes another; what she made is logged once it is back.
    change(ann, "report.samples", 3)
    server.stop()
    done = shell(ann, *on, "dvc", "repro")
    assert ran(done.stdout) == {"report"}
    assert "`make sync` logs it later" in done.stderr + done.stdout
    assert shell(ann, *on, *SYNC, check=False).returncode == 1
    server.start()
    said = shell(ann, *on, *SYNC).stdout.splitlines()
    assert said == ["HEAD is there already", f"workspace was logged with {len(STAGES)} stages"]
    given(ann, "three samples")
    shell(bob, "git", "pull", "-q")
    require_nothing_left_to_do(bob, on, server.address)
    (third,) = pipelines(server.address, f"tags.`plumbline.config` = '{card_of(bob)['config']}'")
    require_complete(third, children(server.address, third), {"report"})
    assert third.data.params["report.samples"] == "3"
