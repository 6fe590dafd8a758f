"""Train one policy as an adapter on the quantised base, by its algorithm.

    python -m stages.align dpo models/base data/pairs models/policies/dpo \
        reports/align/dpo.json reports/align/dpo.csv

Reads   models/base       the base that the adapter is for
        data/pairs        or whatever else `policies.<name>.learns_from` says
Writes  models/policies/<name>    adapter, and policy.json that says what it is
        metrics (JSON) and curves (CSV, one row a step)
Params  policies.<name>, base, seed
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib.algorithms import dpo, none
from stages.lib.base import Base
from stages.lib.runtime import entry, files, tracking

Policy = Annotated[none.NoTraining | dpo.Dpo, Field(discriminator="algorithm")]
ALGORITHMS = {"none": none.train, "dpo": dpo.train}


def run(
    policy: Policy,
    base: Base,
    seed: int,
    *,
    name: str,
    base_folder: Path,
    data: Path,
    out: Path,
    metrics: Path,
    curves: Path,
) -> dict[str, float]:
    """Train policy `name`, write its adapter, and return its metrics."""
    with files.whole_folder(out) as folder:
        result = ALGORITHMS[policy.algorithm](
            policy, base, seed, base_folder=base_folder, data=data, out=folder, curves=curves
        )
        files.write_json(folder / "policy.json", {"name": name, **policy.model_dump()})
    files.write_json(metrics, result)
    tracking.made(name, policy.model_dump())
    return result


if __name__ == "__main__":
    entry.main(run, "policies.{name}", "base", "seed")
