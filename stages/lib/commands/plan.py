"""Say what `dvc repro` would run, why, how long and in how much memory; run nothing.

    python -m stages.lib.commands.plan [--exit-code] [TARGET ...]

With --exit-code the status is 1 where something would run, as with `git diff`. With and without, it
is 1 where a stage would not fit into memory.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from stages.lib.commands import refusal
from stages.lib.commands.revisions import record
from stages.lib.runtime import files, needs, params, room
from stages.lib.runtime.needs import Need
from stages.lib.runtime.room import GIB, Room, RoomError
from stages.lib.runtime.schema import Refusal
from stages.lib.runtime.tracking.store import flatten


@dataclass(frozen=True, slots=True)
class Step:
    """A stage that would run."""

    stage: str
    why: str
    seconds: float | None
    """Of its last run; None where there was none."""
    memory: float | None
    """MiB at the peak of its last run."""
    disk: int
    """Bytes of the outputs that it made last."""
    need: Need | None
    """Its peak of memory by estimate; None without a model, or before the model is here."""


def plan(targets: Sequence[str] = (), *, gpu: bool = False) -> list[Step]:
    """Return the stages that `dvc repro` would run, in its order, estimated for a GPU or none."""
    estimated = {need.stage: need for need in needs.of(params.read(), Path(), gpu=gpu)}
    with Repo() as repo:
        status = {name.removeprefix("dvc.yaml:"): why for name, why in repo.status().items()}
        changed = {s.addressing: reasons(s, status[s.addressing]) for s in repo.index.stages
                   if s.addressing in status}  # fmt: skip
        graph = repo.index.graph
        by_name = {stage.addressing: stage for stage in graph}
        for target in targets:
            if not any(_of(name, [target]) for name in by_name):
                raise Refusal(f"{target}: no such stage; there are {', '.join(sorted(by_name))}")
        wanted = {name for name in by_name if not targets or _of(name, targets)}
        upstream = {
            s.addressing for name in wanted for s in networkx.descendants(graph, by_name[name])
        }
        steps: dict[str, Step] = {}
        for stage in networkx.topological_sort(graph.reverse()):
            name = stage.addressing
            if name not in wanted | upstream:
                continue
            before = [s.addressing for s in graph.successors(stage) if s.addressing in steps]
            why = changed.get(name) or (
                [f"{' and '.join(sorted(before))} would run"] if before else []
            )
            if why:
                steps[name] = _step(stage, "; ".join(why), estimated.get(name))
    return list(steps.values())


def _of(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.startswith(f"{target}@") for target in targets)


def _step(stage: Any, why: str, need: Need | None) -> Step:
    card = Path(record(stage.addressing))
    last = files.read_json(card) if card.is_file() else {}
    disk = sum(out.meta.size or 0 for out in stage.outs if out.meta)
    with refusal.of_the_graph(str(card)):
        return Step(stage.addressing, why, last.get("seconds"), last.get("peak_mib"), disk, need)


def reasons(stage: Any, changes: Sequence[Any]) -> list[str]:
    """Return DVC's status of one stage in words."""
    found: list[str] = []
    for change in changes:
        if change == "changed command":
            found.append("its command changed")
        elif isinstance(change, Mapping):
            for name, state in change.get("changed deps", {}).items():
                if isinstance(state, Mapping):
                    found += _changed_params(stage, list(state))
                else:
                    found.append(f"{name} {_word(state)}")
            for name, state in change.get("changed outs", {}).items():
                found.append(f"its output {name} {_word(state)}")
    return found


def _changed_params(stage: Any, keys: Sequence[str]) -> list[str]:
    """Return each leaf under these sections that is not what the stage last ran with."""
    recorded: dict[str, Any] = {}
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            recorded |= dep.hash_info.value or {}
    settings = params.read()
    found = []
    for key in keys:
        before = flatten({key: recorded.get(key, {})})
        now = flatten({key: params.at(settings, key)})
        for leaf in sorted(before.keys() | now.keys()):
            old, new = before.get(leaf), now.get(leaf)
            if old != new:
                shown = ["none" if value is None else value for value in (old, new)]
                found.append(f"{leaf} {shown[0]} → {shown[1]}")
    return found


def _word(state: str) -> str:
    return {"new": "is new", "deleted": "is missing", "not in cache": "is not in the cache"}.get(
        state, "changed"
    )


def table(steps: Sequence[Step], there: Room) -> str:
    """Return the plan as aligned text with its sum: stage, last duration, peak memory, why."""
    if not steps:
        return "Nothing would run: results and inputs agree."
    width = max(len(step.stage) for step in steps)
    lines = [
        f"{s.stage:{width}}  {_duration(s.seconds):>9}  {_memory(s.need):>8}  {s.why}"
        for s in steps
    ]
    known = [step.seconds for step in steps if step.seconds is not None]
    unknown = len(steps) - len(known)
    total = _duration(sum(known)) + (f" and {unknown} stages never timed" if unknown else "")
    memory = max((step.memory for step in steps if step.memory), default=None)
    wanted = [f"about {total}"]
    if memory:
        wanted.append(f"{memory / 1024:.1f} GiB of memory")
    free = shutil.disk_usage(".").free
    wanted.append(f"{sum(s.disk for s in steps) / 1e6:.0f} MB of disk ({free / 1e9:.0f} GB free)")
    summary = f"{len(steps)} stages: {', '.join(wanted)}, by their last runs."
    return "\n".join([*lines, "", summary, _fit(steps, there)])


def _memory(need: Need | None) -> str:
    return f"{need.bytes / GIB:.1f} GiB" if need else "–"


def _fit(steps: Sequence[Step], there: Room) -> str:
    """Return what the largest estimate is, beside what there is."""
    largest = max((s.need for s in steps if s.need), key=lambda need: need.bytes, default=None)
    room_there = f"{there.bytes / GIB:.1f} GiB {there.where}"
    if largest is None:
        return f"Memory: not estimated before the models are here; {room_there}."
    return f"Memory by estimate: {_memory(largest)} at most, by {largest.stage}; {room_there}."


def require_room(steps: Sequence[Step], there: Room) -> None:
    """Refuse the first stage that would not fit.

    Raises:
        RoomError: its estimate is more than there is.
    """
    for step in steps:
        if step.need and step.need.bytes > there.bytes:
            raise RoomError(room.refusal(step.need, there))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@refusal.in_one_line
def main() -> int:
    """Print the plan."""
    parser = argparse.ArgumentParser(description="what `dvc repro` would run, and why")
    parser.add_argument("targets", nargs="*", help="stages, as for `dvc repro`; none means all")
    parser.add_argument(
        "--exit-code", action="store_true", help="status 1 where something would run"
    )
    given = parser.parse_args()
    there = room.here()
    steps = plan(given.targets, gpu=there.gpu)
    print(table(steps, there))
    require_room(steps, there)
    return int(given.exit_code and bool(steps))


if __name__ == "__main__":
    sys.exit(main())
