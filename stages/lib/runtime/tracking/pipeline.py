"""Makes a configuration's pipeline run whole: every param, metric and stage, run or reused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.lib.runtime import files, params
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.tracking import attempts, lineage, run
from stages.lib.runtime.tracking.run import StageRun
from stages.lib.runtime.tracking.store import Store, flatten


def identities(folder: Path) -> list[dict[str, Any]]:
    """Return what the other stages wrote to reports/runs, in the order of their names.

    Raises:
        RecordError: a file there belongs to no stage of the graph. DVC leaves the outputs of
            removed stages where they are, and the folder's hash counts them.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    own = run.current()
    if own and own.inputs and (left := sorted(found.keys() - set(own.inputs.stages))):
        raise RecordError(
            f"{folder}: {', '.join(f'{name}.json' for name in left)}: of no stage of the graph; "
            "delete what an earlier configuration left"
        )
    return [files.read_json(path) for path in found.values()]


def complete(
    card: Path, artifacts: Sequence[Path], improved: Mapping[str, float] | None = None
) -> None:
    """Complete the pipeline run when the current stage, the graph's last, ends.

    A stage that did not run for this configuration gets a child named `<stage> (reused)` with the
    metrics of the run it stands for. It needs the files only, so a lost database is no loss.

    Args:
        card: written at once: the pipeline run, its configuration, its stages' runs and its
            artifacts. `runs/` beside it has the stages' own files.
        artifacts: files to copy to the pipeline run.
        improved: policies whose verdict is *improved*, with the value of their primary metric.
    """
    own = run.current()
    if own is None:
        return
    others = identities(card.parent / "runs")
    files.write_json(
        card,
        {
            "run_id": own.parent_id,
            "config": own.config,
            "stages": {one["stage"]: one["run_id"] for one in (*others, own.identity())},
            "artifacts": [path.as_posix() for path in artifacts],
        },
    )
    own.at_end = lambda: _complete(own, others, artifacts, improved or {})


def _complete(
    own: StageRun,
    others: Sequence[dict[str, Any]],
    artifacts: Sequence[Path],
    improved: Mapping[str, float],
) -> None:
    store, parent = own.store, own.parent_id
    if store is None:
        return
    fill(store, parent, own.config, [*others, own.identity()], params.read())
    for path in artifacts:
        store.client.log_artifact(parent, str(path))
    store.client.set_tag(parent, "plumbline.complete", "true")
    for name, value in improved.items():
        made = next(one for one in others if one["stage"] == f"align@{name}")
        if made["model_id"]:
            lineage.promote(store, made["model_id"], made["run_id"], value)


def fill(
    store: Store,
    parent: str,
    config: str,
    found: Sequence[dict[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Put every param and metric on a pipeline run, and a child under it for every stage.

    Args:
        store: where to.
        parent: the pipeline run.
        config: its configuration; what ran for another one counts as reused.
        found: the identity of each stage.
        settings: all of params.yaml.
    """
    known = store.client.get_run(parent).data.params
    store.log_params(parent, {k: v for k, v in flatten(settings).items() if k not in known})
    there = _children(store, parent)
    for one in found:
        stage = one["stage"].replace("@", ".")  # MLflow takes no @ in the name of a metric
        prefixed = {f"{stage}/{k}": v for k, v in one["metrics"].items()}
        store.log_metrics(parent, {**prefixed, f"{stage}/seconds": one["seconds"]})
        if one["stage"] not in there:
            made = _child(store, parent, one, reused=one["config"] != config)
            attempts.supersede(store, parent, one["stage"], made)


def _children(store: Store, parent: str) -> set[str]:
    """Return the stages that have a run under a parent that counts: one that is not cut short."""
    where = f"tags.`mlflow.parentRunId` = '{parent}'"
    mine = run.current()
    return {
        child.data.tags["dvc.stage"]
        for child in store.runs(where)
        if "superseded_by" not in child.data.tags
        and (child.info.status == "FINISHED" or (mine and child.info.run_id == mine.run_id))
    }


def _child(store: Store, parent: str, one: dict[str, Any], *, reused: bool) -> str:
    tags = {
        "kind": "reused" if reused else "stage",
        "dvc.stage": one["stage"],
        "reused_from" if reused else "synced_from": one["run_id"],
        "plumbline.environment": one["environment"],
        "mlflow.parentRunId": parent,
    }
    name = f"{one['stage']} (reused)" if reused else one["stage"]
    child = store.client.create_run(store.experiment, run_name=name, tags=tags).info.run_id
    store.log_params(child, one["params"])
    store.log_metrics(
        child, {**one["metrics"], "seconds": one["seconds"], "peak_mib": one["peak_mib"]}
    )
    lineage.log_inputs(store, child, one["data"])
    store.client.set_terminated(child, "FINISHED")
    return str(child)
