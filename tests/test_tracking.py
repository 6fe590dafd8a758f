"""What goes to the store besides runs: models, aliases, data by hash, large sets of params."""

import pytest

from stages.lib.commands import revisions, sync
from stages.lib.runtime.schema import Strict
from stages.lib.runtime.tracking import attempts, lineage, store


@pytest.fixture
def connection(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return store.connect()


def run_and_model(connection, name):
    run = connection.client.create_run(connection.experiment).info.run_id
    return run, lineage.create_model(connection, run, name, {"beta": 0.1})


def versions(connection):
    named = {}
    for alias in ("challenger", "champion"):
        found = connection.client.get_model_version_by_alias("plumbline", alias)
        named[alias] = found.tags["model_id"]
    return named


def test_the_challenger_is_the_latest_and_the_champion_the_best_improved_model(connection):
    (run_a, a), (run_b, b), (run_c, c) = (run_and_model(connection, n) for n in "abc")
    lineage.promote(connection, a, run_a, 0.30)
    assert versions(connection) == {"challenger": a, "champion": a}
    lineage.promote(connection, b, run_b, 0.20)  # less toxic
    assert versions(connection) == {"challenger": b, "champion": b}
    lineage.promote(connection, c, run_c, 0.25)
    assert versions(connection) == {"challenger": c, "champion": b}
    lineage.promote(connection, b, run_b, 0.20)  # again: no second version of the same model
    assert versions(connection) == {"challenger": b, "champion": b}
    assert len(connection.client.search_model_versions("name = 'plumbline'")) == 3


def test_metrics_of_a_later_run_are_on_the_model(connection):
    _, model = run_and_model(connection, "dpo")
    later = connection.client.create_run(connection.experiment).info.run_id
    connection.log_metrics(later, {"toxic/emt": 0.17, "nothing": float("nan")}, model=model)
    found = connection.client.get_logged_model(model)
    assert {m.key: m.value for m in found.metrics} == {"toxic/emt": 0.17}
    assert found.params == {"beta": "0.1"}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:secret@server:5000", "http://server:5000"),
        ("postgresql://ann:s:e@host/db", "postgresql://host/db"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_a_password_in_the_address_of_the_server_is_not_printed(address, shown):
    assert store.shown(address) == shown
    error = OSError(f"no answer from {address} in 5 s")
    assert store.first_line(error) == f"no answer from {shown} in 5 s"


def test_sync_says_in_one_line_that_the_server_is_away(connection, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    monkeypatch.setattr("sys.argv", ["sync"])
    monkeypatch.setattr(revisions, "head", revisions.workspace)
    monkeypatch.setattr(revisions, "experiments", lambda **_: [])
    assert sync.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("StoreError: MLflow at http://127.0.0.1:9: API request to http://127")
    assert said.count("\n") == 1


def test_equal_params_are_equal_text():
    one, other = {"a": [{"x": 1, "y": None}], "b": True}, {"b": True, "a": [{"y": None, "x": 1}]}
    assert store.as_text(one) == store.as_text(other) == '{"a": [{"x": 1, "y": null}], "b": true}'
    assert store.as_text("words") == "words"
    assert store.as_text(1e-05) == "1e-05"
    assert (len(store.as_text("x" * 7000)), store.as_text("x" * 7000)[-2:]) == (6000, "x…")


def test_more_params_than_one_call_takes_are_logged(connection):
    run = connection.client.create_run(connection.experiment).info.run_id
    connection.log_params(run, {f"p{n}": n for n in range(250)})
    assert len(connection.client.get_run(run).data.params) == 250


def blind_once(monkeypatch, owner, look, nothing):
    """Let a look find nothing the first time: another machine creates just after it."""
    real, seen = getattr(owner, look), []

    def first_nothing(*given, **named):
        seen.append(1)
        return nothing if len(seen) == 1 else real(*given, **named)

    monkeypatch.setattr(owner, look, first_nothing)


def test_machines_that_begin_a_configuration_at_once_share_one_pipeline_run(
    connection, monkeypatch
):
    theirs = store.create_pipeline_run(connection, "abc", "theirs", {})
    blind_once(monkeypatch, store.Store, "runs", [])
    assert store.pipeline_run(connection, "abc") == theirs
    assert [r.info.run_id for r in connection.runs(store.of_config("abc"))] == [theirs]


def test_machines_that_create_the_experiment_at_once_share_one(connection, monkeypatch):
    from mlflow import MlflowClient

    blind_once(monkeypatch, MlflowClient, "get_experiment_by_name", None)
    assert store.connect().experiment == connection.experiment


def test_runs_beyond_one_page_are_found(connection):
    for n in range(3):
        connection.client.create_run(connection.experiment, tags={"n": str(n)})
    real = connection.client.search_runs
    connection.client.search_runs = lambda *a, **k: real(*a, **{**k, "max_results": 2})
    assert sorted(r.data.tags["n"] for r in connection.runs("")) == ["0", "1", "2"]


def test_a_section_is_plain_data_however_deep_its_classes_lie():
    class Toy(Strict):
        n: int

    found = store.plain({"a": [Toy(n=1), {"b": Toy(n=2)}], "c": Toy(n=3), "d": [4]})
    assert found == {"a": [{"n": 1}, {"b": {"n": 2}}], "c": {"n": 3}, "d": [4]}


def test_a_run_that_the_store_has_lost_is_not_gone_on_with(connection):
    assert connection.run("0" * 32) is None
    assert attempts.reopen(connection, "0" * 32, instead_of="", parent="") is None


def test_a_pipeline_run_stays_open_while_a_stage_of_it_runs(connection):
    parent = store.create_pipeline_run(connection, "k", "n", {})
    tags = {"mlflow.parentRunId": parent}
    child = connection.client.create_run(connection.experiment, tags=tags).info.run_id
    status = lambda: connection.run(parent).info.status  # noqa: E731
    attempts.end_parent(connection, parent, "KILLED")
    assert status() == "RUNNING"
    connection.client.set_terminated(child, "FINISHED")
    attempts.end_parent(connection, parent, "KILLED")
    assert status() == "KILLED"
    connection.client.set_tag(parent, "plumbline.complete", "true")
    attempts.end_parent(connection, parent, "FAILED")
    assert status() == "FINISHED"


def test_of_an_error_the_line_is_said_that_has_the_cause():
    said = "(raised as a result of Query-invoked autoflush; consider)\n(sqlite3.Error) disk is full"
    assert store.first_line(ValueError(said)) == "(sqlite3.Error) disk is full"
