"""Starts a stage again in several processes, where PLUMBLINE_LAUNCH says how.

    PLUMBLINE_LAUNCH="accelerate launch --config_file launch/ddp.yaml" dvc repro

The command of the stage stays what dvc.yaml says, and so does its identity: on how many devices it
runs is no parameter.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from stages.lib.runtime import processes
from stages.lib.runtime.schema import Refusal

COMMAND = "PLUMBLINE_LAUNCH"
"""Environment variable: a command that runs `-m MODULE ARGUMENTS` in several processes."""
ERROR = "PLUMBLINE_ERROR"
"""Environment variable: file for the error of the process that fails first."""


def wanted() -> bool:
    """Whether a stage that can share its work is to be started in several processes."""
    return processes.size() == 1 and bool(os.environ.get(COMMAND, "").strip())


def launch() -> int:
    """Run this very command by the launcher; return its exit status.

    Of an error, whichever process had it, one is printed: the first.

    Raises:
        Refusal: there is no such launcher, or it ended without a word of ours.
    """
    given = os.environ[COMMAND]
    spec = sys.modules["__main__"].__spec__
    command = [*shlex.split(given), *(["-m", spec.name] if spec else [sys.argv[0]]), *sys.argv[1:]]
    place = Path(os.environ.get("DVC_ROOT") or ".").resolve() / ".cache"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="launch-", dir=place) as folder:  # all machines see it
        error = Path(folder) / "error"
        try:
            status = _run(command, error)
        except OSError as problem:
            raise Refusal(f"{COMMAND}: {command[0]}: {problem.strerror}") from None
        if error.exists():
            print(error.read_text(encoding="utf-8").rstrip(), file=sys.stderr)
        elif status:
            raise Refusal(f"{COMMAND}: `{given}` ended with status {status}")
    return status


def _run(command: list[str], error: Path) -> int:
    """Run the launcher; what it says is passed on until a process of ours has told its error."""
    environment = {k: v for k, v in os.environ.items() if k != COMMAND} | {
        ERROR: str(error),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    before = signal.signal(signal.SIGTERM, lambda *_: running.terminate())
    try:
        assert running.stderr is not None
        while said := running.stderr.read1():  # type: ignore[attr-defined]
            if not error.exists():
                sys.stderr.buffer.write(said)
                sys.stderr.flush()
        status = running.wait()
    except KeyboardInterrupt:  # the launcher has it as well
        running.communicate()
        status = running.returncode
    finally:
        signal.signal(signal.SIGTERM, before)
    return status if status >= 0 else 128 - status


def tell(error: BaseException) -> None:
    """Say what ended this process: one line of a refusal, a traceback of anything else.

    Where several run, the first that fails is heard, by the process that launched them.
    """
    if isinstance(error, Refusal):
        said = f"{type(error).__name__}: {error}"
    else:
        said = "".join(traceback.format_exception(error))
    try:
        with Path(os.environ[ERROR]).open("x", encoding="utf-8") as out:
            out.write(said)
    except KeyError:  # nobody of ours launched this process
        print(said, file=sys.stderr)
    except FileExistsError:
        pass


def be_silent() -> None:
    """Send what this process prints to nowhere: rank 0 prints the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
