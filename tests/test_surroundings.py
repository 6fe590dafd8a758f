"""What the machine denies is said in one line; what is a bug keeps its traceback."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stages.lib.runtime import surroundings
from stages.lib.runtime.tracking import attempts

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"),
         "No space left on device: 'a/b'; free some space and run again: nothing half-written was kept"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "Read-only file system: 'x'; make it writable"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: 'x'; make it readable"),
        (MemoryError(), "out of memory; free some"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
         "out of memory; free some"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
         "Error while serializing: I/O error: No space left on device (os error 28); free some space"),
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
         "a file could not be written to its end; free some space"),
        (sqlite3.OperationalError("database or disk is full"), "a file could not be written to its end; free some"),
    ],
)  # fmt: skip
def test_what_the_machine_denies_is_told_with_what_would_do(error, line):
    assert str(surroundings.denied(error)).startswith(line)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), FileNotFoundError(errno.ENOENT, "no", "x")]
)
def test_a_bug_is_not_taken_for_the_machine_s_fault(error):
    assert surroundings.denied(error) is None


def test_what_a_library_wrapped_is_found():
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in str(surroundings.denied(error))


STAGE = """
import errno, sys
from pathlib import Path
from stages.lib.runtime import entry, files

def run(seed: int, *, out: Path) -> dict[str, float]:
    with files.whole_folder(out) as folder:
        (folder / "half").write_text("written")
        raise {error}

if __name__ == "__main__":
    entry.main(run, "seed")
"""


def staged(tmp_path, error):
    """Run a stage that meets an error while it writes."""
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "mine.py").write_text(STAGE.format(error=error))
    return subprocess.run(
        [sys.executable, "mine.py", "out"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///runs.db"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("OSError(errno.ENOSPC, 'No space left on device', 'x')", 1, "MachineError: No space left on device: 'x'; free"),
        ("KeyboardInterrupt", 130, ""),
    ],
)  # fmt: skip
def test_a_stage_that_is_denied_something_says_so_and_leaves_nothing(tmp_path, error, status, said):
    done = staged(tmp_path, error)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".*.partial")) == []


def test_a_bug_in_a_stage_keeps_its_traceback(tmp_path):
    done = staged(tmp_path, "TypeError('mine')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_who_a_process_is_does_not_hang_on_the_time_of_day(monkeypatch):
    monkeypatch.setattr(
        psutil.Process, "create_time", lambda self: pytest.fail("the clock was asked")
    )
    me = attempts.signature()
    assert me == attempts.signature()
    assert not attempts._dead(me)
    host, pid, started = me.rsplit(":", 2)
    assert attempts._dead(f"{host}:{pid}:{int(started.split('@')[0]) + 1}@{started.split('@')[1]}")
    assert not attempts._dead(f"elsewhere:{pid}:0@0")


def test_a_process_that_is_gone_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host, _, _ = attempts.signature().rsplit(":", 2)
    signature = f"{host}:{child.pid}:{attempts._started(child.pid)}"
    assert not attempts._dead(signature)
    child.communicate()
    assert attempts._dead(signature)
