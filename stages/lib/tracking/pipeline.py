"""Makes a configuration's pipeline run whole: every param, metric and stage, run or reused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.lib import files, params
from stages.lib.tracking import lineage, run
from stages.lib.tracking.store import Store, by_stage, config_key, flatten, graph_stages

PIPELINE = "pipeline.json"


def complete(
    folder: Path, artifacts: Sequence[Path], improved: Mapping[str, float] | None = None
) -> None:
    """Complete the current stage's pipeline run from reports/runs/*.json, and write its identity.

    A stage that did not run for this configuration gets a child named `<stage> (reused)` with the
    metrics of the run it stands for. It needs the files only, so a lost database is no loss.

    Args:
        folder: `runs/` in it has the run files, of which those of entries that params.yaml no
            longer has are passed over; `pipeline.json` is written to it.
        artifacts: files to copy to the pipeline run.
        improved: policies whose verdict is *improved*, with the value of their primary metric.
    """
    own = run.current()
    if own is None:
        return
    identities = present(folder / "runs", leave_out=own.stage)
    card = {
        "run_id": own.parent_id,
        "experiment_id": own.store.experiment if own.store else "",
        "config": config_key(),
        "stages": {one["stage"]: one["run_id"] for one in identities},
    }
    files.write_json(folder / PIPELINE, card)
    if not own.parent_id:
        return

    def act() -> None:
        assert own.store is not None
        fill(own.store, own.parent_id, identities, params.read())
        for path in artifacts:
            own.store.client.log_artifact(own.parent_id, str(path))
        own.store.client.set_tag(own.parent_id, "plumbline.complete", "true")
        for name, value in (improved or {}).items():
            made = next(i for i in identities if i["stage"] == f"align@{name}")
            if made["model_id"]:
                lineage.promote(own.store, made["model_id"], made["run_id"], value)

    own.attempt(act)


def present(folder: Path, *, leave_out: str) -> list[dict[str, Any]]:
    """Return the run files of the graph's stages that there are."""
    paths = [folder / f"{stage}.json" for stage in graph_stages() if stage != leave_out]
    return [files.read_json(path) for path in paths if path.is_file()]


def fill(
    store: Store,
    parent: str,
    identities: Sequence[dict[str, Any]],
    settings: Mapping[str, Any],
    *,
    origin: str = "",
) -> None:
    """Put every param and metric on a pipeline run, and a child under it for every stage.

    Args:
        store: where to.
        parent: the pipeline run.
        identities: of its stages.
        settings: all of params.yaml.
        origin: the pipeline run that this one stands for, in a store that is gone: what ran under
            it counts as run and not as reused.
    """
    known = store.client.get_run(parent).data.params
    store.log_params(parent, {k: v for k, v in flatten(settings).items() if k not in known})
    there = by_stage(store.runs(f"tags.`mlflow.parentRunId` = '{parent}'"))
    for one in identities:
        stage = one["stage"].replace("@", ".")  # MLflow takes no @ in the name of a metric
        prefixed = {f"{stage}/{k}": v for k, v in one["metrics"].items()}
        store.log_metrics(parent, {**prefixed, f"{stage}/seconds": one["seconds"]})
        if one["stage"] not in there:
            _child(store, parent, one, reused=not origin or one["parent_run_id"] != origin)


def _child(store: Store, parent: str, one: dict[str, Any], *, reused: bool) -> None:
    name = f"{one['stage']} (reused)" if reused else one["stage"]
    tags = {
        "kind": "reused" if reused else "stage",
        "dvc.stage": one["stage"],
        "reused_from" if reused else "synced_from": one["run_id"],
        "mlflow.parentRunId": parent,
    }
    child = store.client.create_run(store.experiment, run_name=name, tags=tags).info.run_id
    store.log_params(child, one["params"])
    store.log_metrics(child, {**one["metrics"], "seconds": one["seconds"]})
    lineage.log_inputs(store, child, one.get("data", {}))
    store.client.set_terminated(child, "FINISHED")
