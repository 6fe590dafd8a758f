"""Kills in every stage of the tiny graph, for real, and whether anything was lost by them.

    python tests/faults.py FOLDER                        # hours
    python tests/faults.py FOLDER --tries 2 --stages pairs align@dpo --seed 7

Each try forces one stage, kills it at a random moment, and runs it again. What must hold after it:
the outputs are to the last byte those of an undisturbed run (reports/runs and the report's own pages,
which quote run ids and times, apart); whatever dvc.lock names is whole in the cache; no run in MLflow
is left open; nobody is shown a traceback. One line a try goes to FOLDER/faults.jsonl; killed itself, it
goes on after the last.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from tiny_graph import STAGES, environment, runs, shell, workspace
from tqdm import tqdm

APART = ("reports/runs/", "reports/report", "reports/pipeline.json", "reports/verdict.txt")
"""Outputs that quote run ids, times or each other's hashes."""
HOW = ("KILL all", "TERM all", "KILL stage", "TERM stage")


@dataclass(frozen=True)
class Try:
    """What one kill came to."""

    stage: str
    how: str
    after: float
    """Seconds from the start of `dvc repro`."""
    hit: bool
    """False where the stage had ended before."""
    faults: list[str]
    """What did not hold; empty where all did."""


class Graph:
    """A workspace in which every stage has run."""

    def __init__(self, folder: Path) -> None:
        """Build it, or take up the one that stands there."""
        self.folder = folder
        if not (folder / "undisturbed.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            workspace(folder)
            shell(folder, "dvc", "repro")
            known = {"outs": self.outs(), "seconds": self._seconds()}
            (folder / "undisturbed.json").write_text(json.dumps(known))
        known = json.loads((folder / "undisturbed.json").read_text())
        self.undisturbed: dict[str, dict[str, str]] = known["outs"]
        self.seconds: dict[str, float] = known["seconds"]

    def outs(self) -> dict[str, dict[str, str]]:
        """Hash of every output in dvc.lock, by stage, but for those that quote a run."""
        lock = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        return {
            name: {o["path"]: o["md5"] for o in own.get("outs", []) if not o["path"].startswith(APART)}
            for name, own in lock.items()
        }  # fmt: skip

    def _seconds(self) -> dict[str, float]:
        """How long each stage takes by the clock, undisturbed."""
        found = {}
        for stage in sorted(STAGES):
            started = time.monotonic()
            self.repro(stage)
            found[stage] = time.monotonic() - started
        return found

    def repro(self, stage: str) -> subprocess.CompletedProcess:
        """Run one stage anew."""
        self.forget()
        return shell(self.folder, *self.command(stage), check=False)

    def command(self, stage: str) -> list[str]:
        return ["dvc", "repro", "--single-item", "--force", stage]

    def forget(self) -> None:
        """Let no answer of before be found: the stage is to do its work."""
        shutil.rmtree(self.folder / ".cache/items", ignore_errors=True)

    def killed(self, stage: str, how: str, after: float) -> tuple[bool, str]:
        """Start a stage and kill it; return whether it was hit, and what was shown."""
        self.forget()
        running = subprocess.Popen(
            self.command(stage), cwd=self.folder, env=environment(self.folder), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            shown, _ = running.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            name, target = how.split()
            number = getattr(signal, f"SIG{name}")
            hit = self._send(running.pid, stage, target, number)
            shown, _ = running.communicate()
            return hit, shown
        return False, shown

    def _send(self, dvc: int, stage: str, target: str, number: int) -> bool:
        if target == "all":
            os.killpg(dvc, number)
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

    def broken(self, stage: str) -> Iterator[str]:
        """Say what of a stage's recorded outputs is not whole in the cache."""
        lock = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        for out in lock.get(stage, {}).get("outs", []):
            for path in self._objects(out["md5"]):
                if not path.is_file():
                    yield f"{out['path']}: {path.name} is not in the cache"
                elif hashlib.md5(path.read_bytes()).hexdigest() != _name(path):
                    yield f"{out['path']}: {path.name} is not what its name says"

    def _objects(self, md5: str) -> Iterator[Path]:
        cache = self.folder / ".dvc/cache/files/md5"
        path = cache / md5[:2] / md5[2:]
        yield path
        if md5.endswith(".dir") and path.is_file():
            for one in json.loads(path.read_text()):
                yield cache / one["md5"][:2] / one["md5"][2:]


def _name(path: Path) -> str:
    return (path.parent.name + path.name).removesuffix(".dir")


def attempt(graph: Graph, stage: str, how: str, after: float) -> Try:
    """Kill a stage once, run it again, and say what did not hold."""
    hit, shown = graph.killed(stage, how, after)
    faults = [f"after the kill, {one}" for one in graph.broken(stage)]
    if "Traceback" in shown:
        faults.append(f"a traceback: {_last_line(shown)}")
    again = shell(graph.folder, *graph.command(stage), check=False)  # what was kept may be found
    said = again.stdout + again.stderr
    if again.returncode:
        faults.append(f"the next run failed: {_last_line(said)}")
    if "Traceback" in said:
        faults.append(f"a traceback in the next run: {_last_line(said)}")
    faults += [f"after the next run, {one}" for one in graph.broken(stage)]
    now = graph.outs().get(stage, {})
    faults += [
        f"{path} differs from the undisturbed run's"
        for path, md5 in graph.undisturbed[stage].items() if now.get(path) != md5
    ]  # fmt: skip
    ghosts = runs(graph.folder, "attributes.status = 'RUNNING'")
    faults += [f"run {ghost.info.run_id} is still open" for ghost in ghosts]
    return Try(stage, how, round(after, 2), hit, faults)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:200] if text.strip() else "nothing was said"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tries", type=int, default=8, help="that hit, of each stage")
    parser.add_argument("--stages", nargs="+", default=sorted(STAGES))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    graph = Graph(given.folder.resolve())
    path = graph.folder / "faults.jsonl"
    done = [Try(**json.loads(line)) for line in path.open()] if path.is_file() else []
    hits = Counter(one.stage for one in done if one.hit)
    rng = random.Random(f"{given.seed}/{len(done)}")
    with tqdm(
        total=given.tries * len(given.stages), initial=sum(hits.values()), unit="kill"
    ) as bar:
        for stage in given.stages:
            while hits[stage] < given.tries:
                how = HOW[len(done) % len(HOW)]
                made = attempt(graph, stage, how, rng.uniform(0.3, graph.seconds[stage]))
                with path.open("a") as out:
                    out.write(json.dumps(asdict(made)) + "\n")
                done.append(made)
                hits[stage] += made.hit
                bar.update(made.hit)
                for fault in made.faults:
                    tqdm.write(f"{made.stage} {made.how} after {made.after} s: {fault}")
    print(table(done))
    return any(one.faults for one in done)


def table(done: list[Try]) -> str:
    """The rows of docs/reliability.md."""
    lines = ["| stage | kills | with a fault |", "|---|---|---|"]
    for stage in dict.fromkeys(one.stage for one in done):
        own = [one for one in done if one.stage == stage and one.hit]
        lines.append(f"| {stage} | {len(own)} | {sum(bool(one.faults) for one in own)} |")
    hit = [one for one in done if one.hit]
    lines.append(f"| all | {len(hit)} | {sum(bool(one.faults) for one in hit)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
