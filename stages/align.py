"""Train one policy as an adapter on the quantised base, by its algorithm.

    python -m stages.align dpo models/base models/base data/pairs data/pairs \
        data/sources/neutral_text/train.jsonl \
        models/policies/dpo reports/align/dpo.json reports/align/dpo.csv

Reads   models/base       the base that the adapter is for
        models/base       or the policy that `policies.<name>.starts_from` names
        data/pairs        or whatever else `policies.<name>.learns_from` says
        data/prompts      or whatever `policies.<name>.prompts` says
        neutral_text/train.jsonl    what an anchor holds the policy to its reference on
Writes  models/policies/<name>    adapter, and policy.json that says what it is
        metrics (JSON) and curves (CSV, one row a step)
Params  policies.<name>, base, seed
"""

from pathlib import Path

from stages.lib.algorithms import registry
from stages.lib.algorithms.registry import Policy
from stages.lib.algorithms.task import Task
from stages.lib.base import Base
from stages.lib.runtime import entry, files, tracking
from stages.lib.runtime.schema import Seed


def run(
    policy: Policy,
    base: Base,
    seed: Seed,
    *,
    name: str,
    base_folder: Path,
    starts_from: Path,
    data: Path,
    prompts: Path,
    neutral: Path,
    out: Path,
    metrics: Path,
    curves: Path,
) -> dict[str, float]:
    """Train policy `name`, write its adapter, and return its metrics."""
    with files.whole_folder(out) as folder:
        task = Task(base, seed, base_folder, starts_from, data, prompts, neutral, folder, curves)
        result = registry.train(policy, task)
        files.write_json(folder / "policy.json", {"name": name, **policy.model_dump()})
    files.write_json(metrics, policy.kind() | result)
    tracking.made(name, policy.model_dump())
    return result


if __name__ == "__main__":
    entry.main(run, "policies.{name}", "base", "seed", shared=lambda policy: policy.shares_batches)
