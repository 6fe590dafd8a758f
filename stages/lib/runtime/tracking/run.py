"""One stage's MLflow run."""

import math
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.lib.runtime import files
from stages.lib.runtime.declared import Declared
from stages.lib.runtime.tracking import attempts, lineage, store
from stages.lib.runtime.tracking.store import Store, flatten, metric_rows, plain

BUFFER = 50  # curve rows sent at once: 1,000 metrics take 0.07 s in one batch, 3 s one at a time


class StageRun:
    """One stage's MLflow run, and what of it travels with the data."""

    def __init__(
        self, stage: str, sections: Mapping[str, Any], inputs: Declared | None = None
    ) -> None:
        self.stage = stage
        self.params = flatten({name: plain(value) for name, value in sections.items()})
        self.metrics: dict[str, float] = {}
        self.inputs = inputs
        self.config = store.config_key(inputs.sources if inputs else {})
        self.at_end: Callable[[], None] | None = None
        self.seconds = 0.0
        self.run_id = self.parent_id = self.model_id = ""
        self.store: Store | None = None
        self._rows: list[Any] = []
        self._step = 0
        self._known: set[int] = set()
        self._broken = False
        self._monitor: Any = None

    def open(self) -> None:
        """Create the run under its pipeline run."""
        self.attempt(self._open)

    def _open(self) -> None:
        found = store.connect()
        attempts.close_dead(found)
        self.parent_id = store.pipeline_run(found, self.config)
        tags = {
            "kind": "stage",
            "dvc.stage": self.stage,
            "mlflow.parentRunId": self.parent_id,
            "plumbline.environment": lineage.environment(),
            attempts.PROCESS: attempts.signature(),
        }
        run = found.client.create_run(
            found.experiment, run_name=self.stage, tags=tags | store.context_tags()
        )
        self.run_id, self.store = run.info.run_id, found
        found.client.update_run(self.parent_id, status="RUNNING")
        attempts.supersede(found, self.parent_id, self.stage, self.run_id)
        found.log_params(self.run_id, self.params)
        lineage.log_inputs(found, self.run_id, self.inputs.data if self.inputs else {})

    def go_on(self, run_id: str) -> None:
        """Make an earlier attempt's run this one: its training goes on, and so do its curves."""

        def act() -> None:
            assert self.store is not None
            if attempts.reopen(self.store, run_id, instead_of=self.run_id, parent=self.parent_id):
                self.run_id = run_id
                steps = self.store.client.get_metric_history(run_id, "loss")
                self._known = {one.step for one in steps}

        self.attempt(act)

    def watch(self) -> None:
        """Log processor, memory, disk and GPU every ten seconds until the run ends."""

        def act() -> None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True)
            self._monitor.start()

        self.attempt(act)

    def made(self, name: str, facts: Mapping[str, Any]) -> None:
        """Say that this run made a model."""

        def act() -> None:
            assert self.store is not None
            self.model_id = lineage.create_model(self.store, self.run_id, name, facts)

        self.attempt(act)

    def about(self, stage: str) -> None:
        """Attach this run's metrics to the model that another stage made."""
        card = Path("reports/runs") / f"{stage}.json"
        if card.is_file():
            self.model_id = files.read_json(card).get("model_id", "")

    def curve(self, values: Mapping[str, float], step: int) -> None:
        """Buffer one step of curves."""
        self._step = max(self._step, step)
        if step not in self._known:  # else the run that this one goes on with has it
            self._rows += metric_rows(values, step)
        if len(self._rows) >= BUFFER:
            self._flush()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run."""
        self.attempt(lambda: self.store.client.log_artifact(self.run_id, str(path), folder))

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log rows as a table that the UI shows side by side."""
        import pandas as pd

        frame = pd.DataFrame(rows)
        self.attempt(lambda: self.store.client.log_table(self.run_id, frame, name))

    def finish(self, metrics: Mapping[str, float], *, seconds: float) -> None:
        """Log final metrics and close the run."""
        self.metrics = {k: float(v) for k, v in metrics.items()}
        self.seconds = seconds
        self._flush()
        # After the last step of the curves: MLflow shows the latest step of each name, and a final
        # `loss` at step 0 would bend the curve of that name back to its start.
        final = {**self.metrics, "seconds": seconds, "peak_mib": peak_mib()}
        model = self.model_id or None
        self.attempt(
            lambda: self.store.log_metrics(self.run_id, final, step=self._step, model=model)
        )
        if self.at_end:
            self.attempt(self.at_end)
        self.close("FINISHED")

    def close(self, status: str) -> None:
        """End the run with an MLflow status, also after a call that was not taken."""
        if self._monitor:
            self._monitor.finish()
        self._broken = self._broken and not self.run_id

        def act() -> None:
            self.store.client.set_terminated(self.run_id, status)
            attempts.end_parent(self.store, self.parent_id, status)

        self.attempt(act)

    def identity(self) -> dict[str, Any]:
        """What reports/runs/<stage>.json holds."""
        return {
            "stage": self.stage,
            "config": self.config,
            "environment": lineage.environment(),
            "run_id": self.run_id,
            "parent_run_id": self.parent_id,
            "experiment_id": self.store.experiment if self.store else "",
            "model_id": self.model_id,
            "params": self.params,
            "metrics": {k: v for k, v in self.metrics.items() if math.isfinite(v)},
            "data": dict(self.inputs.data) if self.inputs else {},
            "seconds": round(self.seconds, 2),
            "peak_mib": round(peak_mib(), 1),
        }

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.attempt(lambda: self.store.client.log_batch(self.run_id, metrics=rows))

    def attempt(self, act: Callable[[], None]) -> None:
        """Do something with the store; the first failure is told, and ends all further attempts."""
        if self._broken:
            return
        try:
            act()
        except Exception as error:  # whatever a client or server throws, the stage goes on
            self._broken = True
            store.hurry()
            print(
                f"MLflow at {store.shown(store.uri())} does not take this run "
                f"({store.first_line(error)}); the stage goes on without it, and `make sync` "
                "logs it later",
                file=sys.stderr,
            )


def peak_mib() -> float:
    """Return the most memory that this process held, in MiB."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return held / (1 << 20 if sys.platform == "darwin" else 1 << 10)


_current: StageRun | None = None


@contextmanager
def stage_run(
    stage: str, sections: Mapping[str, Any], inputs: Declared | None = None
) -> Iterator[StageRun]:
    """Open a run for a stage; the functions below go to it within the block."""
    global _current
    run = StageRun(stage, sections, inputs)
    run.open()
    _current = run
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise
    finally:
        _current = None
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: Any) -> None:
    sys.exit(128 + signum)  # an exception, so that the run is closed on the way out


def curve(values: Mapping[str, float], step: int) -> None:
    """Log one step of curves to the current stage's run, if there is one."""
    if _current:
        _current.curve(values, step)


def artifact(path: Path, folder: str | None = None) -> None:
    """Log a file to the current stage's run, if there is one."""
    if _current:
        _current.artifact(path, folder)


def table(rows: list[dict[str, Any]], name: str) -> None:
    """Log a table to the current stage's run, if there is one."""
    if _current:
        _current.table(rows, name)


def made(name: str, facts: Mapping[str, Any]) -> None:
    """Log that the current stage made a model."""
    if _current:
        _current.made(name, facts)


def about(stage: str) -> None:
    """Attach the current stage's metrics to the model that another stage made."""
    if _current:
        _current.about(stage)


def watch() -> None:
    """Log what the current stage takes of the machine."""
    if _current:
        _current.watch()


def go_on_from(folder: Path) -> None:
    """Go on in the run that a checkpoint folder names, or write the current one's name there."""
    if not _current or not _current.run_id:
        return
    note = folder / "mlflow_run"
    if note.is_file():
        _current.go_on(note.read_text().strip())
    files.write_text(note, _current.run_id)


def current() -> StageRun | None:
    """Return the current stage's run."""
    return _current
