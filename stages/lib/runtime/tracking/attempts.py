"""Runs of processes that died, stages that were tried again, trainings that went on."""

import os
import socket
from pathlib import Path
from typing import Any

import psutil

from stages.lib.runtime.tracking.store import Store

PROCESS = "plumbline.process"


def signature() -> str:
    """Name this process: host, number, and start time, since numbers are used again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _dead(process: str) -> bool:
    host, pid, started = process.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return _started(int(pid)) != started
    except psutil.NoSuchProcess:
        return True


def _started(pid: int) -> str:
    """Say when a process started, by a clock that nobody sets.

    psutil's `create_time` is the time of day, and moves for every living process where that is set.
    """
    stat = Path(f"/proc/{pid}/stat")
    try:
        # the 22nd field, ticks since the boot; the second is a name that may hold anything
        ticks = stat.read_text().rpartition(")")[2].split()[19]
        return f"{ticks}@{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:  # no Linux, or no such process
        return f"{psutil.Process(pid).create_time():.2f}"


def close_dead(store: Store) -> None:
    """Mark as killed what processes of this machine left running when they were killed."""
    for run in store.runs("attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS)
        if process and _dead(process):
            store.client.set_terminated(run.info.run_id, "KILLED")
            end_parent(store, run.data.tags["mlflow.parentRunId"], "KILLED")


def end_parent(store: Store, parent: str, status: str) -> None:
    """Give a pipeline run the status of its last stage, unless another stage of it still runs.

    An attempt that fails takes nothing from a complete one: its results are in the cache.
    """
    where = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    if store.runs(where):
        return
    complete = store.client.get_run(parent).data.tags.get("plumbline.complete") == "true"
    store.client.set_terminated(parent, "FINISHED" if complete else status)


def supersede(store: Store, parent: str, stage: str, by: str) -> None:
    """Mark earlier attempts at a stage of this configuration, so that one of them counts."""
    where = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`dvc.stage` = '{stage}'"
    for run in store.runs(where):
        if run.info.run_id != by and "superseded_by" not in run.data.tags:
            store.client.set_tag(run.info.run_id, "superseded_by", by)


def reopen(store: Store, run: str, *, instead_of: str, parent: str) -> Any:
    """Make an earlier attempt's run the present one again; its successor is removed.

    Returns:
        The run, or None where it is gone.
    """
    earlier = store.run(run)
    if earlier is None:
        return None
    if earlier.info.lifecycle_stage == "deleted" or earlier.info.experiment_id != store.experiment:
        return None
    store.client.update_run(run, status="RUNNING")
    store.client.set_tag(run, "mlflow.parentRunId", parent)
    store.client.set_tag(run, PROCESS, signature())
    if "superseded_by" in earlier.data.tags:
        store.client.delete_tag(run, "superseded_by")
    store.client.delete_run(instead_of)
    return earlier
