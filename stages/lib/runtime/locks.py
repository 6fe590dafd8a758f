"""Locks between processes of one repository, its temporary copies for experiments included."""

from filelock import FileLock, Timeout

from stages.lib.runtime import files, processes


def take(name: str, taken: str) -> FileLock:
    """Return a lock once no other process holds it; it is held until released or the process ends.

    Of several processes that share a stage, rank 0 holds it for all; the others wait with it.

    Args:
        name: what is locked.
        taken: printed where another process holds it, while this one waits.
    """
    place = files.cache("locks") / name
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    if processes.rank() == 0:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{taken}; waiting", flush=True)
            lock.acquire()
    processes.barrier()
    return lock
