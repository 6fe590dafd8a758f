"""Loops the tiny graph with random edits between runs, and checks each run against what had to run.

    python tests/soak.py FOLDER [--minutes 60] [--seed 1]

An edit changes a parameter, a line of code or a prompt, or takes back what was edited. After each
`dvc repro`:

- stages ran that depend on what was edited, and of those behind them the ones whose inputs became
  others, unless that very state had been there before; no stage else;
- of a state that was there before, every output is as it was then: no wrong cache hit;
- a second `dvc repro` runs nothing, no run in MLflow is open, nothing half-written lies about.

Memory of the stages and sizes of what may not grow are told at the end, first quarter beside last.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from tiny_graph import locked, outs, ran, runs, shell, workspace
from tqdm import tqdm

PARAMS = {
    "seed": [1, 2], "samplers.base.temperature": [1.0, 0.9], "samplers.base.completions": [3, 2],
    "labelers.words.tie": [0.5, 1.0], "pairs.min_p_chosen": [0.6, 0.7], "reward.epochs": [1, 2],
    "policies.dpo.beta": [0.1, 0.2], "policies.ppo.clip": [0.2, 0.1], "evaluate.resamples": [100, 150],
    "report.alpha": [0.05, 0.01], "prompts.split.salt": ["1", "2"], "audit.resamples": [100, 120],
}  # fmt: skip
CODE = ("stages/lib/scorers.py", "stages/lib/losses.py", "stages/lib/reporting/page.py",
        "stages/lib/labels/elo.py", "stages/lib/algorithms/ppo/control.py", "stages/prompts.py")  # fmt: skip
DATA = ("data/sources/prompts/insult.jsonl", "data/sources/prompts/benign.jsonl")


@dataclass
class Soak:
    """The workspace, what it is now, and what each state gave."""

    folder: Path
    rng: random.Random
    state: dict[str, object] = field(default_factory=dict)
    """What is edited: path, or path and key, to its value."""
    known: dict[str, dict[str, str]] = field(default_factory=dict)
    """Hash of every output by the state that gave it."""
    inputs: dict[str, set[str]] = field(default_factory=dict)
    """What each stage was run on, ever: the hashes of its inputs as one text."""

    def edit(self) -> str:
        """Change one thing, or change it back; return what."""
        kind = self.rng.choice([self._param, self._param, self._code, self._data])
        return kind()

    def _param(self) -> str:
        key = self.rng.choice(list(PARAMS))
        yaml = YAML()
        path = self.folder / "params.yaml"
        whole = yaml.load(path)
        *parts, last = key.split(".")
        section = whole
        for part in parts:
            section = section[part]
        new = next(value for value in PARAMS[key] if value != section[last])
        section[last] = new
        with path.open("w") as out:
            yaml.dump(whole, out)
        self.state[key] = new
        return f"{key}: {new}"

    def _code(self) -> str:
        return self._toggled(self.rng.choice(CODE), "\n# a remark\n")

    def _data(self) -> str:
        name = self.rng.choice(DATA)
        first = json.loads((self.folder / name).read_text().splitlines()[0])
        more = first | {"id": f"{first['category']}-soak"}
        if first["form"] == "chat":
            more["messages"] = [
                {"role": "user", "content": "Which tea keeps best on a long voyage by sea?"}
            ]
        else:
            more["text"] = "On the quay the sailmaker looked up from the canvas and said"
        return self._toggled(name, json.dumps(more) + "\n")

    def _toggled(self, name: str, text: str) -> str:
        """Append a text to a file, or take it away again."""
        path = self.folder / name
        content = path.read_text()
        there = content.endswith(text)
        path.write_text(content.removesuffix(text) if there else content + text)
        self.state[name] = not there
        return f"{name}: {'as it was' if there else 'a line more'}"

    def run(self) -> tuple[set[str], list[str]]:
        """Run the graph; return which stages did their work, and what did not hold."""
        done = shell(self.folder, "dvc", "repro", check=False)
        if done.returncode:
            return set(), [f"dvc repro failed: {done.stderr.strip().splitlines()[-1:]}"]
        worked = ran(done.stdout)
        faults = ["a traceback"] * ("Traceback" in done.stdout + done.stderr)
        faults += list(self._wrongly_run(worked))
        faults += list(self._other_results())
        again = ran(shell(self.folder, "dvc", "repro").stdout)
        faults += [f"a second run ran {', '.join(sorted(again))}"] * bool(again)
        ghosts = runs(self.folder, "attributes.status = 'RUNNING'")
        faults += [f"{len(ghosts)} runs are open"] * bool(ghosts)
        faults += [f"{left} is left behind" for left in self.folder.rglob(".*.partial")]
        return worked, faults

    def _wrongly_run(self, worked: set[str]) -> Iterator[str]:
        """Every stage runs where its inputs are others than ever, and only there."""
        for name, own in locked(self.folder / "dvc.lock").items():
            seen = self.inputs.setdefault(name, set())
            inputs = json.dumps(
                [own["cmd"], own.get("deps", []), own.get("params", {})], default=str
            )
            if name in worked and inputs in seen:
                yield f"{name} ran on inputs that it had run on before"
            if name not in worked and inputs not in seen:
                yield f"{name} did not run on new inputs"
            seen.add(inputs)

    def _other_results(self) -> Iterator[str]:
        now = {p: md5 for own in outs(self.folder / "dvc.lock").values() for p, md5 in own.items()}
        state = json.dumps(self.state, sort_keys=True)
        for path, md5 in self.known.setdefault(state, now).items():
            if now.get(path) != md5:
                yield f"{path} is not what this state gave before"

    def sizes(self) -> dict[str, float]:
        """MiB of what may grow, and the largest peak of a stage in the last run."""
        cards = [json.loads(f.read_text()) for f in (self.folder / "reports/runs").glob("*.json")]
        return {
            "workspace": _mib(self.folder, without=(".dvc", ".cache", "mlartifacts", "mlflow.db")),
            "kept items": _mib(self.folder / ".cache"),
            "DVC temporary": _mib(self.folder / ".dvc/tmp"),
            "memory": max(card["peak_mib"] for card in cards),
        }


def _mib(folder: Path, without: tuple[str, ...] = ()) -> float:
    files = (
        f
        for f in folder.rglob("*")
        if f.is_file() and f.relative_to(folder).parts[0] not in without
    )
    return sum(f.stat().st_size for f in files) / 2**20


def looped(soak: Soak, minutes: float, say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Edit and run for so long; return how many runs there were, and all that did not hold."""
    _, faults = soak.run()
    count, sizes, until = 1, [soak.sizes()], time.monotonic() + 60 * minutes
    with tqdm(total=round(60 * minutes), unit="s") as bar:
        while time.monotonic() < until:
            started = time.monotonic()
            edits = [soak.edit() for _ in range(soak.rng.choice([1, 1, 2]))]
            worked, found = soak.run()
            count += 1
            sizes.append(soak.sizes())
            faults += [f"after {'; '.join(edits)}: {one}" for one in found]
            for one in found:
                say(f"after {'; '.join(edits)}: {one}")
            bar.set_postfix_str(f"{len(worked)} stages, {len(faults)} faults")
            bar.update(min(round(time.monotonic() - started), bar.total - bar.n))
    quarter = max(1, len(sizes) // 4)
    for name in sizes[0]:
        first, last = (
            statistics.median(s[name] for s in some) for some in (sizes[:quarter], sizes[-quarter:])
        )
        print(f"{name}: {first:.1f} MiB in the first quarter, {last:.1f} in the last")
    return count, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = given.folder.resolve()
    if folder.exists():
        sys.exit(f"{folder} is there already; give a new folder, or delete it")
    workspace(folder)
    count, faults = looped(Soak(folder, random.Random(given.seed)), given.minutes, tqdm.write)
    print(f"{count} runs, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
