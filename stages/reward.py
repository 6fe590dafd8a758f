"""Train a reward model and its monitor on pairs, and measure both on held-out pairs.

    python -m stages.reward models/base data/pairs data/completions data/prompts models/reward \
        reports/reward.json reports/reward.csv

Reads   models/base          or the classifier that `reward.reads` names
        data/pairs           roles reward and monitor are learnt from, test is measured on
        data/completions, data/prompts    the base's answers, to which the normaliser is fitted
Writes  models/reward        adapter, head and normaliser, and the same in monitor/
        metrics (JSON) and curves (CSV, one row a step)
Params  reward, samplers, base, seed
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import reward_training
from stages.lib.base import Base
from stages.lib.reward_training import Classified, Trained
from stages.lib.runtime import entry, files

Reward = Annotated[Trained | Classified, Field(discriminator="source")]


def run(
    reward: Reward,
    samplers: dict[str, Any],
    base: Base,
    seed: int,
    *,
    reads: Path,
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
        if isinstance(reward, Trained):
            report = reward_training.train(
                reward,
                base,
                seed,
                reads=reads,
                pairs=pairs,
                normal=normal,
                out=folder,
                curves=curves,
            )
        else:
            report = reward_training.adopt(
                reward, seed, reads=reads, pairs=pairs, normal=normal, out=folder, curves=curves
            )
    files.write_json(metrics, report)
    numbers = {
        f"{who}/{key}": value["value"] if isinstance(value, dict) else value
        for who, part in report.items()
        for key, value in part.items()
        if not isinstance(value, list) and not (isinstance(value, dict) and "value" not in value)
    }
    return {key: float(value) for key, value in numbers.items()}


if __name__ == "__main__":
    entry.main(run, "reward", "samplers", "base", "seed")
