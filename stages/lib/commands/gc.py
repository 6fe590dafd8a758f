"""Remove what runs keep for each other and nothing has used for some time.

    python -m stages.lib.commands.gc --days 30        (make gc [DAYS=30])

That is answers of models and states of trainings that were stopped, under .cache: all of it can
be made again, and none of it is an output of the graph. What DVC keeps, `dvc gc` removes.
"""

import argparse

from stages.lib.commands import refusal
from stages.lib.runtime import items
from stages.lib.runtime.schema import Refusal


@refusal.in_one_line
def main() -> None:
    """Remove what the command line says is old, and say how much that was."""
    parser = argparse.ArgumentParser(prog="make gc", description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=float, required=True, help="without use; 0 removes all")
    days = parser.parse_args().days
    if not days >= 0:
        raise Refusal(f"make gc DAYS={days:g}: days are 0 or more; 0 removes all")
    removed = items.prune(days)
    print(
        f"removed {removed.folders} folders, {removed.bytes / 1e6:.1f} MB, unused for {days:g} "
        f"days; {removed.kept} stay"
    )


if __name__ == "__main__":
    raise SystemExit(main())
