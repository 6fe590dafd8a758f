"""Where runs go, and the pipeline run that each of them belongs to."""

import hashlib
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from stages.lib.runtime import params
from stages.lib.runtime.schema import Refusal

# The defaults wait 247 s for a server that is down. Two tries of 5 s are what one that hangs costs;
# a third would come after a pause of 4 s and make it 20.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
# SQLite is migrated on first use; alembic's narration of it says nothing to a user. Nor does the
# traceback that MLflow prints of an error before it throws it: StageRun says that in a line.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")

EXPERIMENT = "plumbline"
BATCH = 100  # params that a server takes in one call
LONGEST = 6000  # characters of a param that it takes


def hurry() -> None:
    """Wait 2 s for each answer from now on: who does not answer once seldom does a moment later."""
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}


def root() -> Path:
    """The main repository, also inside the temporary copies that `dvc exp run` works in."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def uri() -> str:
    """Where runs go: MLFLOW_TRACKING_URI, or a SQLite file in the main repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root()}/mlflow.db"


def shown(text: str) -> str:
    """Return a text as it may be printed: addresses in it lose their user and password."""
    return re.sub(r"//[^/@\s]*@", "//", text)


class StoreError(Refusal):
    """MLflow does not answer, or does not take what it is given."""


@contextmanager
def answering() -> Iterator[None]:
    """Say in one line what MLflow threw within the block.

    Raises:
        StoreError: it threw something.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise StoreError(f"MLflow at {shown(uri())}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return what an error says, at most 200 characters of it."""
    lines = [one for one in shown(str(error)).splitlines() if "autoflush" not in one]
    return lines[0][:200] if lines else type(error).__name__


@dataclass(frozen=True, slots=True)
class Store:
    """A connection to the experiment."""

    client: Any
    experiment: str

    def runs(self, where: str) -> list[Any]:
        """Return every run that a filter finds, oldest first."""
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                where,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def run(self, run: str) -> Any | None:
        """Return a run; None where this store has none of that name."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def log_params(self, run: str, values: Mapping[str, Any]) -> None:
        """Log any number of params."""
        from mlflow.entities import Param

        logged = [Param(k, as_text(v)) for k, v in values.items()]
        for start in range(0, len(logged), BATCH):
            self.client.log_batch(run, params=logged[start : start + BATCH])

    def log_metrics(
        self, run: str, values: Mapping[str, float], *, step: int = 0, model: str | None = None
    ) -> None:
        """Log metrics at one step; `model` attaches them to a logged model as well."""
        self.client.log_batch(run, metrics=metric_rows(values, step, model))


def connect() -> Store:
    """Open the experiment, and create it the first time.

    Behind a file lock: several processes that migrate a fresh database or create the experiment
    at once fail.
    """
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(uri())
    with locked():
        try:
            client = MlflowClient()
            experiment = client.get_experiment_by_name(EXPERIMENT)
        except Exception as error:  # of an address that is none, a driver, a file of something else
            raise StoreError(f"MLflow at {shown(uri())}: {first_line(error)}") from error
        return Store(client, experiment.experiment_id if experiment else _experiment(client))


def _experiment(client: Any) -> str:
    """Create the experiment, unless another machine is quicker: the lock is of one machine."""
    from mlflow.exceptions import MlflowException

    # An explicit place: the default would lie inside a temporary copy and vanish with it.
    place = None if uri().startswith("http") else (root() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=place))
    except MlflowException:
        if other := client.get_experiment_by_name(EXPERIMENT):
            return str(other.experiment_id)
        raise


def locked() -> FileLock:
    """Return the lock that one process of this machine holds to look for a run and create it."""
    (root() / ".cache").mkdir(exist_ok=True)
    return FileLock(root() / ".cache/mlflow.lock", timeout=120)


def pipeline_run(store: Store, key: str) -> str:
    """Return the pipeline run of a configuration, created the first time."""
    with locked():
        if found := store.runs(of_config(key)):
            return found[0].info.run_id
        name = os.environ.get("DVC_EXP_NAME") or f"repro-{key[:6]}"
        return create_pipeline_run(store, key, name, context_tags())


def create_pipeline_run(store: Store, key: str, name: str, tags: Mapping[str, str]) -> str:
    """Create the pipeline run of a configuration; return it, or an earlier one of another machine.

    The lock is of one machine: several that begin the same configuration at once all create a run.
    Each looks again, and all keep the one that began first.
    """
    tags = {"kind": "pipeline", "plumbline.config": key} | tags
    own = store.client.create_run(store.experiment, run_name=name, tags=tags).info.run_id
    first = store.runs(of_config(key))[0].info.run_id
    if first != own:
        store.client.delete_run(own)
    return str(first)


def of_config(key: str) -> str:
    """Return the filter that finds the pipeline runs of a configuration."""
    return f"tags.`plumbline.config` = '{key}'"


def config_key(sources: Mapping[str, str]) -> str:
    """Return a hash of what decides a run: params, graph, code, and data that no stage makes.

    Args:
        sources: hash of each input of the graph, by path.
    """
    decides = [params.read(), params.read(Path("dvc.yaml")), dict(sources)]
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def context_tags() -> dict[str, str]:
    """Return tags that say which code and which DVC experiment a run belongs to."""
    head = _git("rev-parse", "HEAD")
    tags = {
        "mlflow.source.git.commit": head,
        "plumbline.dirty": str(bool(_git("status", "--porcelain"))).lower() if head else "",
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.exp_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {key: value for key, value in tags.items() if value}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def metric_rows(values: Mapping[str, float], step: int, model: str | None = None) -> list[Any]:
    """Return MLflow metrics, without numbers that are not finite: they have no place on an axis."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [
        Metric(k, float(v), now, step, model_id=model)
        for k, v in values.items()
        if math.isfinite(v)
    ]


def as_text(value: Any) -> str:
    """Return a param as MLflow keeps it; the order of keys makes no difference."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def plain(value: Any) -> Any:
    """Return a section of params as plain data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[name] = value
    return flat
