"""Faults in every stage of the tiny graph, for real, and whether anything was lost by them.

    python tests/faults.py FOLDER                        # hours
    python tests/faults.py FOLDER --kinds kill "full disk" --stages pairs align@dpo --tries 2 --seed 7

Each try forces one stage, disturbs it, and runs it again in peace. What must hold after it: the
outputs are to the last byte those of an undisturbed run (reports/runs and the report's own pages,
which quote run ids and times, apart); whatever dvc.lock names is whole in the cache; no run in MLflow
is left open; nobody is shown a traceback. One line a try goes to FOLDER/faults.jsonl; killed itself, it
goes on after the last. The full disk and the read-only cache need `unshare` (util-linux).
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil
from servers import Server
from tiny_graph import (
    STAGES,
    environment,
    locked,
    outs,
    runs,
    shell,
    work_off_queue,
    workspace,
)
from tqdm import tqdm

MODELS = "align@dpo", "align@ppo", "reward", "sample@base"
"""Stages that hold a model, write large files and train: where machines fail first."""
EDITS = {"pairs": ("pairs.min_p_chosen", 0.6), "align@dpo": ("policies.dpo.beta", 0.1)}
"""A parameter of a stage that may have any value a little above this."""
CLOCK = """
import time
real, begun = time.time, time.monotonic()
time.time = lambda: real() - (86_400 if time.monotonic() - begun > {after} else 0)
"""


@dataclass(frozen=True)
class Try:
    """What one fault came to."""

    kind: str
    stage: str
    how: str
    hit: int
    """How often the stage was hit; 0 where it had ended before the fault."""
    said: str
    """The last line that the disturbed run printed."""
    faults: list[str]
    """What did not hold; empty where all did."""
    cut: bool = False
    """Whether dvc.lock or .dvc/tmp/rwlock was cut short, so that `make verify` had to remove it."""


@dataclass(frozen=True)
class Started:
    """A command under way, and what it shows."""

    process: subprocess.Popen
    _shown: TextIO

    def goes_on(self) -> bool:
        return self.process.poll() is None

    def shown(self, within: float | None = None) -> str:
        """Wait for its end, though not for that of what it left running; return what was shown."""
        self.process.wait(within)
        self._shown.seek(0)
        return self._shown.read()


class Graph:
    """A workspace in which every stage has run, undisturbed."""

    def __init__(self, folder: Path, seconds: Mapping[str, float]) -> None:
        """Take it as it stands.

        Args:
            folder: of the workspace.
            seconds: that each stage takes by the clock.
        """
        self.folder, self.seconds = folder, seconds
        self.lock = folder / "dvc.lock"
        self.undisturbed = outs(self.lock)

    def forget(self) -> None:
        """Let no answer of before be found: the stage is to do its work."""
        shutil.rmtree(self.folder / ".cache/items", ignore_errors=True)

    def start(self, *words: str, **more: str) -> "Started":
        """Start a command in a session of its own."""
        # No pipe, on which one would wait for what is left running
        shown = tempfile.TemporaryFile("w+")  # noqa: SIM115
        return Started(subprocess.Popen(
            words, cwd=self.folder, env=environment(self.folder) | more,
            stdout=shown, stderr=subprocess.STDOUT, start_new_session=True,
        ), shown)  # fmt: skip

    def broken(self, stage: str, lock: Path | None = None) -> Iterator[str]:
        """Say what of a stage's recorded outputs is not whole in the cache."""
        for out in locked(lock or self.lock).get(stage, {}).get("outs", []):
            for path in self._objects(out["md5"]):
                if not path.is_file():
                    yield f"{out['path']}: {path.name} is not in the cache"
                elif hashlib.md5(path.read_bytes()).hexdigest() != _name(path):
                    yield f"{out['path']}: {path.name} is not what its name says"

    def _objects(self, md5: str) -> Iterator[Path]:
        path = self.object(md5)
        yield path
        if md5.endswith(".dir") and path.is_file():
            for one in json.loads(path.read_text()):
                yield self.object(one["md5"])

    def object(self, md5: str) -> Path:
        return self.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def _name(path: Path) -> str:
    return (path.parent.name + path.name).removesuffix(".dir")


def built(folder: Path) -> Graph:
    """Build a workspace and run it, or take up the one that stands there."""
    times = folder / "seconds.json"
    if not times.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        workspace(folder)
        shell(folder, "dvc", "repro")
        seconds = {}
        for stage in sorted(STAGES):
            shutil.rmtree(folder / ".cache/items", ignore_errors=True)
            started = time.monotonic()
            shell(folder, *command(stage))
            seconds[stage] = time.monotonic() - started
        times.write_text(json.dumps(seconds))
        shell(folder, "git", "add", "-A")
        shell(folder, "git", "commit", "-qm", "run")  # experiments begin at a commit
    return Graph(folder, json.loads(times.read_text()))


def command(stage: str) -> list[str]:
    return ["dvc", "repro", "--single-item", "--force", stage]


# ---------------------------------------------------------------------- faults: (graph, stage, rng) -> (how, hit, shown)

Outcome = tuple[str, int, str] | tuple[str, int, str, list[str]]
"""How it was done, whether the stage was hit, what was shown, and what did not hold there."""


def kill(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """Kill twice: the stage, the DVC that started it, or both, at any moment of it."""
    made = [_killed(graph, stage, rng) for _ in range(2)]
    faults = [f"at once, {one}" for one in graph.broken(stage)]
    how, hits, shown = ([one[at] for one in made] for at in range(3))
    return ", then ".join(how), sum(hits), "\n".join(shown), faults


def _killed(graph: Graph, stage: str, rng: random.Random) -> tuple[str, bool, str]:
    name, target = rng.choice(["KILL", "TERM"]), rng.choice(["both", "stage", "DVC"])
    after = rng.uniform(0.3, graph.seconds[stage])
    how = f"{name} {target} after {after:.1f} s"
    running = graph.start(*command(stage))
    try:
        return how, False, running.shown(within=after)
    except subprocess.TimeoutExpired:
        hit = _send(running.process.pid, stage, target, getattr(signal, f"SIG{name}"))
        return how, hit, running.shown()


def _send(dvc: int, stage: str, target: str, number: int) -> bool:
    if target == "both":
        os.killpg(dvc, number)
        return True
    if target == "DVC":
        os.kill(dvc, number)
        return True
    module = f"stages.{stage.partition('@')[0]}"
    for child in psutil.Process(dvc).children(recursive=True):
        try:
            if module in child.cmdline() and "python" in child.name():
                child.send_signal(number)
                return True
        except psutil.NoSuchProcess:
            continue
    os.killpg(dvc, signal.SIGTERM)  # the stage has not begun, or has ended
    return False


def full_disk(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """Run the stage in a copy of the workspace on a small disk that is full but for some kilobytes."""
    left = int(2 ** rng.uniform(12, 17))
    script = f"""
        set -e
        cp -a . {graph.folder}.kept
        mount -t tmpfs -o size=2g none {graph.folder}
        cp -a {graph.folder}.kept/. {graph.folder}; rm -r {graph.folder}.kept
        cd {graph.folder}
        free=$(df --output=avail -B1 . | tail -1)
        fallocate -l $((free - {left})) ballast
        set +e
        {" ".join(command(stage))}; echo "status $?"
        rm ballast
        {" ".join(command(stage))} >again 2>&1 || cat again
        cp dvc.lock {graph.folder}.lock
    """
    shown = graph.start("unshare", "-rm", "sh", "-c", script).shown()
    lock = graph.folder.with_name(graph.folder.name + ".lock")
    same = outs(lock).get(stage) == graph.undisturbed[stage]
    lock.unlink()
    faults = [] if same else ["once there was room, other outputs came"]
    return f"{left >> 10} KiB left", "status 0" not in shown, shown, faults


def read_only_cache(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """DVC's cache cannot be written."""
    script = (
        f'mount --bind -o ro .dvc/cache .dvc/cache && {" ".join(command(stage))}; echo "status $?"'
    )
    for path in locked(graph.lock)[stage].get("outs", []):  # else there is nothing to write
        for found in graph._objects(path["md5"]):
            found.unlink(missing_ok=True)
    shown = graph.start("unshare", "-rm", "sh", "-c", script).shown()
    return "mounted read-only", "status 0" not in shown, shown


def no_memory(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """The stage may not have the memory that it asks for."""
    limit = int(rng.uniform(0.5, 3) * 2**30)
    shown = graph.start(
        "prlimit", f"--as={limit}", "python", "-m", "dvc", *command(stage)[1:]
    ).shown()
    return f"{limit >> 20} MiB of addresses", "ERROR" in shown, shown


def killed_for_memory(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """The kernel kills whatever is largest where DVC and the stage together hold too much."""
    limit = int(rng.uniform(0.15, 0.45) * 2**30)
    group, at_most, events = _memory_group()
    group.mkdir(exist_ok=True)
    (group / at_most).write_text(str(limit))
    enter = f"echo $$ > {group}/cgroup.procs && exec {' '.join(command(stage))}"
    shown = graph.start("sh", "-c", enter).shown()
    counts = dict(line.split() for line in (group / events).read_text().splitlines())
    group.rmdir()
    return f"{limit >> 20} MiB", int(counts["oom_kill"]) > 0, shown


def _memory_group() -> tuple[Path, str, str]:
    """A cgroup of version 2 or 1, its file of the limit and its file of what happened."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").is_file():
        return root / "plumbline-faults", "memory.max", "memory.events"
    return root / "memory/plumbline-faults", "memory.limit_in_bytes", "memory.oom_control"


def clock(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """The time of day falls back by a day while the stage runs."""
    after = rng.uniform(0.5, graph.seconds[stage])
    place = graph.folder / ".cache/clock"
    place.mkdir(parents=True, exist_ok=True)
    (place / "sitecustomize.py").write_text(CLOCK.format(after=after))
    shown = graph.start(*command(stage), PYTHONPATH=str(place)).shown()
    return f"a day back after {after:.1f} s", True, shown


def locked_database(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """Another program holds MLflow's database for 30 seconds."""
    after = rng.uniform(0.0, graph.seconds[stage])
    running = graph.start(*command(stage))
    time.sleep(after)
    held = sqlite3.connect(graph.folder / "mlflow.db", timeout=10)
    held.execute("BEGIN EXCLUSIVE")
    hit = running.goes_on()
    time.sleep(30)
    held.rollback()
    held.close()
    return f"from {after:.1f} s on", hit, running.shown()


def dead_server(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """The MLflow server that the stage logs to is killed on the way."""
    folder = graph.folder / ".cache/server"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mlflow", "server", "--backend-store-uri", "sqlite:///runs.db", "--workers", "1"]
    server = Server(words, "/health", folder)
    server.start()
    after = rng.uniform(1.0, graph.seconds[stage] + 2)
    running = graph.start(*command(stage), MLFLOW_TRACKING_URI=server.address)
    time.sleep(after)
    hit = running.goes_on()
    server.stop()
    shown = running.shown()
    return f"after {after:.1f} s", hit, shown


def truncated(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """The model in the workspace was cut short."""
    path = graph.folder / "models/base/model.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: rng.randrange(len(content))])
    shown = graph.start("dvc", "repro", stage).shown()
    return f"{path.name} of {path.stat().st_size} bytes", True, shown


def corrupt_object(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """An output is gone from the workspace, and what the cache has of it is not what its name says."""
    out = rng.choice(
        [o for o in locked(graph.lock)[stage]["outs"] if o["path"] in graph.undisturbed[stage]]
    )
    path = [one for one in graph._objects(out["md5"]) if one.is_file()][-1]
    path.chmod(0o644)
    content = bytearray(path.read_bytes() or b"x")
    content[rng.randrange(len(content))] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)
    place = graph.folder / out["path"]
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    shown = graph.start("dvc", "checkout", out["path"]).shown()
    faults = []
    for words in (["--remove"], []):
        done = shell(
            graph.folder, "python", "-m", "stages.lib.commands.verify", *words, check=False
        )
        shown += done.stdout + done.stderr
        if done.returncode:
            faults.append(f"verify: {_last_line(done.stderr)}")
    if "deleted" not in shown:
        faults.append("nobody noticed")
    shown += shell(graph.folder, "dvc", "repro", stage, check=False).stderr
    return f"a bit of {out['path']}", True, shown, faults


def two_at_once(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """A second `dvc repro` starts while the first one runs."""
    first = graph.start(*command(stage))
    time.sleep(rng.uniform(0.2, 4))
    hit = first.goes_on()
    second = graph.start(*command(stage))
    shown = second.shown() + first.shown()
    return "two of them", hit, shown


def two_workers(graph: Graph, stage: str, rng: random.Random) -> Outcome:
    """Two of DVC's workers run two experiments, each with a changed parameter of the stage."""
    key, first = EDITS[stage]
    values = ",".join(f"{first + rng.randrange(1, 1000) / 10_000 + step:.4f}" for step in (0, 0.1))
    shell(graph.folder, "dvc", "exp", "run", "--queue", "-S", f"{key}={values}")
    shown = work_off_queue(graph.folder)
    made = shell(graph.folder, "dvc", "exp", "ls", "--sha-only").stdout.split()
    faults = [] if shown.count("Success") == 2 and len(made) == 2 else ["an experiment failed"]
    lock = graph.folder / ".cache/experiment.lock"
    for revision in made:
        lock.write_text(shell(graph.folder, "git", "show", f"{revision}:dvc.lock").stdout)
        faults += [one for own in locked(lock) for one in graph.broken(own, lock)]
    shell(graph.folder, "dvc", "exp", "remove", "--all-commits")
    shell(graph.folder, "dvc", "queue", "remove", "--all")
    return f"{key}={values}", True, shown, faults


KINDS: dict[str, tuple[Callable[[Graph, str, random.Random], Outcome], tuple[str, ...]]] = {
    "kill": (kill, tuple(sorted(STAGES))),
    "full disk": (full_disk, ("prompts", "pairs", *MODELS)),
    "read-only cache": (read_only_cache, ("prompts", *MODELS)),
    "no memory": (no_memory, MODELS),
    "clock": (clock, ("pairs", *MODELS)),
    "locked database": (locked_database, ("pairs", *MODELS)),
    "dead server": (dead_server, ("pairs", *MODELS)),
    "truncated model": (truncated, ("sample@base", "align@dpo")),
    "corrupt object": (corrupt_object, ("prompts", *MODELS)),
    "killed for memory": (killed_for_memory, MODELS),
    "two workers": (two_workers, tuple(EDITS)),
    "two at once": (two_at_once, ("prompts", *MODELS)),
}


def attempt(graph: Graph, kind: str, stage: str, rng: random.Random) -> Try:
    """Disturb a stage once, run it again, and say what did not hold."""
    graph.forget()
    how, hit, shown, *more = KINDS[kind][0](graph, stage, rng)
    faults = [one for some in more for one in some]
    faults += [f"a traceback: {_last_line(shown)}"] * ("Traceback" in shown)
    again = shell(graph.folder, *command(stage), check=False)  # what was kept may be found
    verify = ("python", "-m", "stages.lib.commands.verify", "--remove")
    mended = shell(graph.folder, *verify, check=False) if again.returncode else None
    cut = "cut short" in mended.stdout if mended else False
    if cut:  # what DVC does not write whole or not at all
        shell(graph.folder, "dvc", "repro")  # the other stages come back from its cache of runs
        again = shell(graph.folder, *command(stage), check=False)
    said = again.stdout + again.stderr
    if again.returncode:
        faults.append(f"the next run failed: {_last_line(said)}")
    faults += [f"a traceback in the next run: {_last_line(said)}"] * ("Traceback" in said)
    faults += [f"after the next run, {one}" for one in graph.broken(stage)]
    now = outs(graph.lock).get(stage, {})
    faults += [
        f"{path} differs from the undisturbed run's"
        for path, md5 in graph.undisturbed[stage].items() if now.get(path) != md5
    ]  # fmt: skip
    ghosts = runs(graph.folder, "attributes.status = 'RUNNING'")
    faults += [f"run {ghost.info.run_id} is still open" for ghost in ghosts]
    faults += [f"{left} is left behind" for left in graph.folder.rglob(".*.partial")]
    return Try(kind, stage, how, int(hit), _told(shown), faults, cut)


def _told(shown: str) -> str:
    """What the user reads of a failure: the stage's own line, else DVC's."""
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("MLflow at ")]
    own += [line for line in lines if "Error: " in line and not line.startswith("ERROR: ")]
    return (own or [line for line in lines if line.startswith("ERROR")] or lines or [""])[-1][:300]


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:200] if text.strip() else "nothing was said"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--stages", nargs="+", help="of those that a kind has")
    parser.add_argument("--tries", type=int, help="that hit, of each stage: 8 kills, 2 of the rest")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    graph = built(given.folder.resolve())
    path = graph.folder / "faults.jsonl"
    done = [Try(**json.loads(line)) for line in path.open()] if path.is_file() else []
    hits = Counter()
    for one in done:
        hits[one.kind, one.stage] += one.hit
    wanted = {
        (kind, stage): given.tries or (8 if kind == "kill" else 2)
        for kind in given.kinds for stage in KINDS[kind][1] if stage in (given.stages or STAGES)
    }  # fmt: skip
    with tqdm(total=sum(wanted.values()), unit="fault") as bar:
        for (kind, stage), count in wanted.items():
            bar.update(min(hits[kind, stage], count))
            misses = 0
            while hits[kind, stage] < count and misses < 3 * count:
                made = attempt(graph, kind, stage, random.Random(f"{given.seed}/{len(done)}"))
                with path.open("a") as out:
                    out.write(json.dumps(asdict(made)) + "\n")
                done.append(made)
                hits[kind, stage] += made.hit
                misses += not made.hit
                bar.update(made.hit)
                for fault in made.faults:
                    tqdm.write(f"{made.kind}, {made.stage}, {made.how}: {fault}")
    print(table(done))
    return any(one.faults for one in done)


def table(done: list[Try]) -> str:
    """The rows of docs/reliability.md."""
    lines = [
        "| fault | stages | hits | lost | what is said, once |",
        "|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(one.kind for one in done):
        own = [one for one in done if one.kind == kind and one.hit]
        if own:
            stages, lost = len({one.stage for one in own}), sum(bool(one.faults) for one in own)
            tries = sum(one.hit for one in own)
            said = max((one.said for one in own), key=lambda line: ("Error" in line, len(line)))
            lines.append(f"| {kind} | {stages} | {tries} | {lost} | {said} |")
    hit = [one for one in done if one.hit]
    lines.append(
        f"| all | {len({one.stage for one in hit})} | {sum(one.hit for one in hit)} | {sum(bool(one.faults) for one in hit)} | |"
    )
    cut = sum(one.cut for one in done)
    return "\n".join([*lines, "", f"dvc.lock or .dvc/tmp/rwlock was cut short in {cut} tries."])


if __name__ == "__main__":
    sys.exit(main())
