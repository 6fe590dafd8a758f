"""Train a reward model and its monitor on pairs, and measure both on held-out pairs.

    python -m stages.reward models/base models/base data/pairs data/completions data/prompts \
        models/reward reports/reward.json reports/reward.csv

Reads   models/base          or the classifier that `reward.reads` names
        models/base          or the pretrained reward model that `reward.starts_from` names
        data/pairs           roles reward and monitor are learnt from, test is measured on
        data/completions, data/prompts    the base's answers, to which the normaliser is fitted
Writes  models/reward        adapter, head and normaliser, and the same in monitor/
        metrics (JSON) and curves (CSV, one row a step)
Params  reward, samplers, base, seed
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import reward_quality, reward_training
from stages.lib.base import Base
from stages.lib.reward_training import Classified, Task, Trained
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed

Reward = Annotated[Trained | Classified, Field(discriminator="source")]


def run(
    reward: Reward,
    samplers: dict[str, Any],
    base: Base,
    seed: Seed,
    *,
    reads: Path,
    starts_from: Path,
    pairs: Path,
    completions: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
    curves: Path,
) -> dict[str, float]:
    """Write reward model and monitor; return accuracy and calibration of both."""
    normal = reward_training.baseline_answers(
        completions, prompts, samplers, limit=reward.normaliser_completions
    )
    with files.whole_folder(out) as folder:
        task = Task(base, seed, reads, starts_from, pairs, normal, folder, curves)
        if isinstance(reward, Trained):
            report = reward_training.train(reward, task)
        else:
            report = reward_training.adopt(reward, task)
    files.write_json(metrics, report)
    return {
        f"{who}/{key}": value
        for who, quality in report.items()
        for key, value in reward_quality.numbers(quality).items()
    }


if __name__ == "__main__":
    entry.main(
        run, "reward", "samplers", "base", "seed", shared=lambda reward: reward.source == "trained"
    )
