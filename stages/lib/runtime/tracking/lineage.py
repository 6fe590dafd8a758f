"""Which data a run read and which model it made, so that runs are found by either."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.lib.runtime.tracking.store import Store

REGISTERED = "plumbline"


def environment() -> str:
    """Return a hash of the Python version and of every installed package's."""
    versions = {sys.version.split()[0]}
    for place in sys.path:
        versions |= {found.name for found in Path(place).glob("*.dist-info")}
    return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()[:16]


def log_inputs(store: Store, run: str, data: Mapping[str, str]) -> None:
    """Log data by path and hash."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", "input")]
    inputs = [
        DatasetInput(Dataset(name, md5[:36], "dvc", json.dumps({"path": name, "md5": md5})), tags)
        for name, md5 in data.items()
    ]
    if inputs:
        store.client.log_inputs(run, inputs)


def create_model(store: Store, run: str, name: str, facts: Mapping[str, Any]) -> str:
    """Register that a run made a model whose weights stay where DVC keeps them; return its id."""
    import mlflow

    model = mlflow.create_external_model(
        name=name,
        source_run_id=run,
        params={key: str(value) for key, value in facts.items()},
        model_type="policy",
        experiment_id=store.experiment,
    )
    return model.model_id


def promote(store: Store, model: str, run: str, value: float) -> None:
    """Register a model whose verdict was *improved*, and move the aliases.

    `challenger` is the latest such model; `champion` the one whose primary metric is lowest.
    """
    from mlflow.exceptions import MlflowException

    client = store.client
    if not client.search_registered_models(f"name = '{REGISTERED}'"):
        client.create_registered_model(REGISTERED)
    known = {
        v.tags.get("model_id"): v for v in client.search_model_versions(f"name = '{REGISTERED}'")
    }
    version = known.get(model) or client.create_model_version(
        REGISTERED, f"models:/{model}", run, tags={"model_id": model, "value": repr(value)}
    )
    client.set_registered_model_alias(REGISTERED, "challenger", version.version)
    try:
        best = float(client.get_model_version_by_alias(REGISTERED, "champion").tags["value"])
    except (MlflowException, KeyError):
        best = float("inf")
    if value < best:
        client.set_registered_model_alias(REGISTERED, "champion", version.version)
