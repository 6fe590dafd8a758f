"""Train a reward model on up-voted questions and answers, which `reward` may start from.

    python -m stages.pretrain stack_exchange models/base data/preferences/stack-exchange \
        models/pretrained/stack_exchange reports/pretrain/stack_exchange.json \
        reports/pretrain/stack_exchange.csv

Reads   models/base         the base that the adapter is for
        data/preferences    posts with votes: what `pretrain.<name>.reads` names
Writes  models/pretrained/<name>    adapter, head and normaliser, as models/reward has them
        metrics (JSON) and curves (CSV, one row a step)
Params  pretrain.<name>, base, seed
"""

from pathlib import Path

from stages.lib import pretraining, reward_quality
from stages.lib.base import Base
from stages.lib.pretraining import Pretrain, Task
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed


def run(
    pretrain: Pretrain,
    base: Base,
    seed: Seed,
    *,
    name: str,
    base_folder: Path,
    reads: Path,
    out: Path,
    metrics: Path,
    curves: Path,
) -> dict[str, float]:
    """Train and write reward model `name`; return its quality on the questions held out."""
    with files.whole_folder(out) as folder:
        report = pretraining.train(pretrain, Task(base, seed, base_folder, reads, folder, curves))
        files.write_json(folder / "pretrain.json", {"name": name, **pretrain.model_dump()})
    files.write_json(metrics, report)
    return reward_quality.numbers(report)


if __name__ == "__main__":
    entry.main(run, "pretrain.{name}", "base", "seed", shared=entry.everyone)
