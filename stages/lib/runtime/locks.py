"""Locks between processes of one repository, its temporary copies for experiments included."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stages.lib.runtime import files, processes


def take(name: str, taken: str) -> FileLock:
    """Return a lock once no other process holds it; it is held until released or the process ends.

    Of several processes that share a stage, rank 0 holds it for all; the others wait with it.

    Args:
        name: what is locked.
        taken: printed where another process holds it, while this one waits.
    """
    lock = FileLock(_place(files.cache("locks"), name))
    if processes.rank() == 0:
        _wait_for(lock, taken)
    processes.barrier()
    return lock


@contextmanager
def of_stage(stage: str) -> Iterator[None]:
    """Hold a lock while a stage runs in this workspace, once no other process of it does.

    A killed DVC may leave its stage running. The next `dvc repro` starts the stage again, and DVC
    would record whichever output stood there when it looked.
    """
    lock = FileLock(_place(Path(".cache/locks"), stage))
    _wait_for(lock, f"an earlier process of stage {stage} still runs here")
    try:
        yield
    finally:
        lock.release()


def is_free(name: str) -> bool:
    """Say whether nobody holds the lock of this name."""
    place = files.cache("locks") / name
    if not place.is_file():
        return True
    try:
        with FileLock(place, timeout=0):
            return True
    except Timeout:
        return False


def _place(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _wait_for(lock: FileLock, taken: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{taken}; waiting", flush=True)
        lock.acquire()
