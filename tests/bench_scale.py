"""Peak memory and seconds of `rank`, `pairs` and `report` as their inputs grow.

    python tests/bench_scale.py                                 # 10^4 and 10^5 rows
    python tests/bench_scale.py --rows 1000000 --stages pairs   # 2 GiB of disk under the folder for temporary files

A row is a completion: of two samplers, two each a prompt, ranked by two word lists and by a judge
who sees every twentieth prompt; for `report`, of two policies, eight each a prompt. The inputs are
made up and valid, the stages are the real ones with the settings of params.yaml, and each runs in a
process of its own, whose resident memory is read at its highest.
"""

import argparse
import inspect
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import synthetic_evaluations as made
from label_world import SPLIT, settings

from stages.lib.labelers.ranks import competition

ROOT = Path(__file__).resolve().parents[1]
SAMPLERS: dict[str, Any] = {"base": {}, "other": {}}
EACH = 2
"""Completions of a sampler to a prompt."""
CRITERION = "harmless"
LABELERS = {
    "valence": {"kind": "lexicon"},
    "words": {"kind": "lexicon"},
    "judge": {"kind": "judge"},
}
JUDGED = 20
"""One prompt in so many is the judge's too."""
POLICIES = {name: made.POLICIES[name] for name in ("baseline", "dpo")}
SAMPLES = 8
"""Completions of a policy to a prompt."""
WORDS = [*made.PLAIN, *made.RUDE]


def write(folder: Path, rows: int) -> None:
    """Write the inputs of all three stages, `rows` completions each."""
    folder.mkdir(parents=True, exist_ok=True)
    count = rows // (EACH * len(SAMPLERS))
    shutil.copy(ROOT / "data/sources/words.txt", folder)
    for split in ("train", "validation", "test"):
        wanted = (n for n in range(count) if _split(n) == split)
        _lines(folder / f"prompts/{split}.jsonl", (_prompt(n) for n in wanted))
    for sampler in SAMPLERS:
        _lines(
            folder / f"completions/{sampler}.jsonl",
            (_completion(n, k, sampler) for n in range(count) for k in range(EACH)),
        )
    for labeler in LABELERS:
        step = JUDGED if labeler == "judge" else 1
        _lines(
            folder / f"rankings/{labeler}.jsonl",
            (_ranking(n, labeler) for n in range(0, count, step)),
        )
    _write_evaluations(folder / "world", rows // (SAMPLES * len(POLICIES)))


def _write_evaluations(folder: Path, count: int) -> None:
    made.write_world(folder, POLICIES, prompts=1, models={})
    (folder / "scores").mkdir()
    for policy in POLICIES:
        few = [row for row in made.policy_rows(policy, 2) if row["set"] != "toxic"]
        many = (_evaluated(n, k, policy) for n in range(count) for k in range(SAMPLES))
        path = folder / f"evaluations/{policy}"
        _lines(path / "answers.jsonl", (row for some in (few, many) for row in some))
        _lines(path / "snapshots.jsonl", ())
    asked = {row["prompt_id"]: row for row in few}.values()
    first = (_evaluated(n, 0, "baseline") for n in range(count))
    _lines(
        folder / "prompts/test.jsonl",
        (made.as_prompt(row, "test") for some in (asked, first) for row in some),
    )


def _split(n: int) -> str:
    return {8: "validation", 9: "test"}.get(n % 10, "train")


def _prompt(n: int) -> dict[str, Any]:
    split = _split(n)
    return {
        "id": _id(n), "form": "continuation", "category": made.CATEGORIES[n % 4], "source": "made up",
        "text": f"{_text(n, 12)} {n}", "messages": None, "cluster": _id(_first(n)),
        "role": ("reward", "align")[n % 10 > 3] if split == "train" else split,
    }  # fmt: skip


def _completion(n: int, k: int, sampler: str) -> dict[str, Any]:
    return {
        "id": f"{_id(n)}:{sampler}:{k}", "prompt_id": _id(n), "sampler": sampler, "index": k,
        "text": _text(f"{n} {k} {sampler}", 18), "finish": "length", "tokens": 24, "logp": -61.803398,
    }  # fmt: skip


def _ranking(n: int, labeler: str) -> dict[str, Any]:
    ids = [f"{_id(n)}:{sampler}:{k}" for sampler in SAMPLERS for k in range(EACH)]
    common, own = random.Random(n), random.Random(f"{n} {labeler}")
    scores = {i: round(0.7 * common.random() + 0.3 * own.random(), 6) for i in ids}
    return {
        "schema_version": 1, "kind": "ranking", "criterion": CRITERION, "prompt_id": _id(n),
        "labeler": labeler, "confidence": None, "note": None, "ms_active": None, "submitted": None,
        "instructions_sha": None, "task_sha": None, "revision": 1, "shown": ids, "junk": {},
        "ranks": competition(scores, tie=0.05), "scores": scores, "preferences": None, "repeat": False,
    }  # fmt: skip


def _evaluated(n: int, k: int, policy: str) -> dict[str, Any]:
    draw = random.Random(f"{n} {k} {policy}")
    score = draw.random() ** (4 if policy == "dpo" else 2)
    scores = {"profanity_check": score, "vader_negative": score / 2, "words": draw.random()}
    drift = draw.random() if policy == "dpo" else 0.0
    return made.row(
        f"toxic-{n:07d}", k, cluster=f"toxic-{_first(n):07d}",
        category=made.CATEGORIES[n % 4], prompt=f"{_text(n, 12)} {n}",
        text=_text(f"{n} {k} {policy}", 18), tokens=24, nll=60 + 30 * draw.random(), kl_k1=drift,
        kl_k3=drift, kl_exact=drift, reward=1 - score, monitor=draw.random(),
        scores={name: round(value, 6) for name, value in scores.items()},
    )  # fmt: skip


def _id(n: int) -> str:
    return f"prompt-{n:07d}"


def _first(n: int) -> int:
    """Of its cluster, the first prompt: two are near-duplicates of one split, or it stands alone."""
    return n - n % 2 if n % 10 < 8 else n


def _text(seed: object, words: int) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))


def _lines(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def rank(folder: Path) -> None:
    """Run `rank` with a word list."""
    from stages import rank as stage
    from stages.lib.base import Base
    from stages.lib.labelers.lexicon import Lexicon

    words = Path("words.txt")
    labeler = Lexicon(
        kind="lexicon", reads=words.name, guide=words.name, scorer="words", criterion=CRITERION,
        tie=0.5,
    )  # fmt: skip
    stage.run(
        labeler, Base(quantisation="nf4", weights="auto", dtype="bfloat16"), SAMPLERS, name="words",
        reads=words, guide=words, prompts=folder / "prompts", completions=folder / "completions",
        out=folder / "ranked/words.jsonl",
    )  # fmt: skip


def pairs(folder: Path) -> None:
    """Run `pairs` with consensus weighted by skill."""
    from stages import pairs as stage

    stage.run(
        settings(
            consensus="weighted", min_p_chosen=0.6, mixed_samplers=True, elo_resamples=200,
            agreement_resamples=200,
        ),
        LABELERS, SAMPLERS, SPLIT, 1,
        rankings=folder / "rankings", completions=folder / "completions",
        prompts=folder / "prompts", preferences=folder / "preferences",
        revisions=folder / "revisions", out=folder / "pairs", metrics=folder / "labels.json",
    )  # fmt: skip


def report(folder: Path) -> None:
    """Run `report` with 2,000 resamples."""
    from stages import report as stage
    from stages.lib.runtime.params import ParamError
    from stages.lib.runtime.schema import check

    plan = check({**made.REPORT, "resamples": 2000}, stage.Report, "report", ParamError)
    world = folder / "world"
    given = inspect.signature(stage.run).parameters
    wanted = [name for name, own in given.items() if own.kind is own.KEYWORD_ONLY]
    files = {"labels": "labels.json", "reward": "reward.json", "scorers": "scorers.json",
             "out": "reports"}  # fmt: skip
    paths = {name: world / files.get(name, name) for name in wanted}
    stage.run(plan, made.EVALUATE, POLICIES, {}, 1, **paths)


STAGES = {"rank": rank, "pairs": pairs, "report": report}


def measure(stage: str, folder: Path) -> None:
    """Run one stage in this process and print what it took; importing is not counted in seconds."""
    __import__(f"stages.{stage}")
    started, worked = time.perf_counter(), time.process_time()
    STAGES[stage](folder)
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    # Not ru_maxrss, which begins with what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmHWM"))
    print(json.dumps({"mib": int(line.split()[1]) / 1024, "seconds": seconds, "cpu": cpu}))


def measured(rows: int, stages: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Write inputs of `rows` completions, run the stages on them, and yield what each took."""
    write(folder, rows)
    for stage in stages:
        command = [sys.executable, __file__, "--measure", stage, str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder, check=True)
        yield {"stage": stage, "rows": rows, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "FOLDER"))
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], Path(given.measure[1]))
        return
    print(f"{'stage':<8}{'rows':>10}{'peak MiB':>10}{'seconds':>9}{'of a core':>11}", flush=True)
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            for one in measured(rows, given.stages, Path(folder)):
                print(
                    f"{one['stage']:<8}{rows:>10,}{one['mib']:>10,.0f}"
                    f"{one['seconds']:>9.1f}{one['cpu']:>11.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
