"""What 100 prompts added to 1,000 cost `sample`, and what a kill costs.

    python tests/bench_items.py                # make bench; after `make repro`

The stage itself, in a process of its own as DVC starts it, in a scratch folder: 1,000 prompts from
nothing; the same and 100 more; nothing new; and from nothing again, killed half-way and started
anew. Seconds include the interpreter, imports, the model and MLflow.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from stages.lib.order import by_hash  # noqa: E402

SPLITS = "train", "validation", "test"


def prepare(folder: Path) -> None:
    """Write params that let the sampler answer every prompt, and links to the base."""
    plain = YAML(typ="safe").load(ROOT / "params.yaml")
    own = plain["samplers"]["base"]
    own["categories"] = []
    own["roles"] = ["sft", "reward", "monitor", "align", "validation", "test"]
    with (folder / "params.yaml").open("w") as out:
        YAML().dump(plain, out)
    (folder / "models").symlink_to(ROOT / "models")
    for name in ("stages", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)


def write_prompts(folder: Path, count: int) -> None:
    """Write the first `count` prompts of the project, by hash, so that any hundred are alike."""
    lines = [line for s in SPLITS for line in (ROOT / f"data/prompts/{s}.jsonl").open()]
    lines.sort(key=lambda line: by_hash(json.loads(line)["id"]))
    if len(lines) < count:
        raise SystemExit(f"data/prompts: {len(lines)} prompts, and {count} are wanted")
    (folder / "prompts").mkdir(exist_ok=True)
    for split in SPLITS:
        own = [line for line in lines[:count] if _split(line) == split]
        (folder / "prompts" / f"{split}.jsonl").write_text("".join(own))


def _split(line: str) -> str:
    role = json.loads(line)["role"]
    return role if role in SPLITS else "train"


def start(folder: Path) -> subprocess.Popen:
    """Start the stage."""
    command = [sys.executable, "-m", "stages.sample", "base", "models/base", "models/base"]
    environment = {k: v for k, v in os.environ.items() if k != "DVC_ROOT"}
    return subprocess.Popen(
        [*command, "prompts", "out.jsonl"], cwd=folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=(folder / "said").open("w"),
    )  # fmt: skip


def seconds(folder: Path) -> float:
    """Run the stage and return how long it took."""
    began = time.perf_counter()
    if start(folder).wait():
        raise SystemExit((folder / "said").read_text())
    return time.perf_counter() - began


def kept(folder: Path) -> int:
    """Count the answers in the store."""
    return sum(len(f.read_bytes().splitlines()) for f in folder.glob(".cache/items/*/*/*.jsonl"))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        write_prompts(folder, 1000)
        whole, made = seconds(folder), kept(folder)
        print(f"1,000 prompts from nothing: {whole:.1f} s, {made} answers made", flush=True)
        write_prompts(folder, 1100)
        more, added = seconds(folder), kept(folder) - made
        print(f"100 more: {more:.1f} s, {added} answers made; ratio {more / whole:.3f}", flush=True)
        print(f"nothing new: {seconds(folder):.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        write_prompts(folder, 1000)
        running = start(folder)
        while kept(folder) < made / 2:
            time.sleep(0.2)
        running.send_signal(signal.SIGKILL)
        running.wait()
        there = kept(folder)
        rest = seconds(folder)
        print(
            f"killed with {there} answers kept, started again: {kept(folder) - there} answers made "
            f"in {rest:.1f} s"
        )


if __name__ == "__main__":
    main()
