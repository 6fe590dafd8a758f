"""Keep a policy as it is now, so that the next round's completions can be its own.

    python -m stages.lib.commands.freeze dpo 1        (make freeze POLICY=dpo ROUND=1)

Copies models/policies/<policy> to data/rounds/<round>, which DVC then keeps as an input of the
graph. A sampler that read models/policies/<policy> itself would close a circle: its completions
make the pairs that the policy learns from.
"""

import re
import shutil
import sys
from pathlib import Path

from stages.lib import snapshots
from stages.lib.commands import refusal
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

USAGE = "make freeze POLICY=name ROUND=number"


def freeze(root: Path, policy: str, number: str) -> Path:
    """Copy a policy's folder to data/rounds/<number> and return that.

    Raises:
        Refusal: there is no such policy with an adapter, or the round is there already.
    """
    source, target = root / "models/policies" / policy, root / "data/rounds" / number
    if "/" in policy or not policy or not re.fullmatch("[0-9]+", number):
        raise Refusal(f"{USAGE}: a policy's name and a whole number")
    if not (source / "adapter_config.json").is_file():
        raise Refusal(
            f"models/policies/{policy}: no adapter is there; `dvc repro align@{policy}` makes it, "
            "and a policy with `algorithm: none` has none"
        )
    if target.exists():
        raise Refusal(
            f"data/rounds/{number}: is there already, and labels may rest on it; take another "
            "number"
        )
    with files.whole_folder(target) as folder:
        # Contents and not links: DVC may have put links to its cache here.
        unwanted = shutil.ignore_patterns(snapshots.FOLDER)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=unwanted)
    return target


@refusal.in_one_line
def main() -> None:
    """Freeze what the command line names."""
    if len(sys.argv) != 3:
        raise Refusal(USAGE)
    target = freeze(Path(), *sys.argv[1:])
    print(f"{target}: `adapter: {target}` in an entry of samplers lets it answer the prompts")


if __name__ == "__main__":
    sys.exit(main())
