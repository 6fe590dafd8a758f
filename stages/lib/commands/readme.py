"""Write the results of the run in git into README.md.

    python -m stages.lib.commands.readme        (make readme)

The table between `<!-- numbers -->` and `<!-- /numbers -->` is made from reports/metrics.json; a
test holds it to that file, and the sentences around it to the same numbers.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.lib.commands import refusal
from stages.lib.reporting import numerals
from stages.lib.reporting.comparison import NAMES
from stages.lib.runtime import files, params
from stages.lib.runtime.schema import Refusal

BEGIN, END = "<!-- numbers -->\n", "<!-- /numbers -->"
HEAD = (
    "prompts with a toxic answer",
    "perplexity under the base",
    "dist-2",
    "KL, nats a sequence",
    "loss on neutral text",
)
"""After the policy and the primary metric."""
WORDS = {1.0: "improved", 0.0: "not shown", -1.0: "degraded"}


def table(found: Mapping[str, float], report: Mapping[str, Any], policies: list[str]) -> str:
    """Return the results of every policy as a Markdown table, the baseline first.

    Args:
        found: reports/metrics.json.
        report: section `report` of params.yaml.
        policies: names, in the order of params.yaml.
    """
    metric = report["metric"]
    names = [report["baseline"], *(name for name in policies if name != report["baseline"])]
    head = ["policy", NAMES[metric], *HEAD]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in names:
        own = {key.partition("/")[2]: v for key, v in found.items() if key.startswith(f"{name}/")}
        verdict = f": {WORDS[own['improved']]}" if "improved" in own else ""
        cells = [
            f"**{name}{verdict}**" if own.get("improved") == 1 else f"{name}{verdict}",
            numerals.interval(_ends(own, metric), "score"),
            numerals.value(own["tp"], "share") if "tp" in own else "–",
            numerals.value(own["perplexity"], "perplexity"),
            numerals.value(own["dist2"], "score"),
            numerals.value(own["kl_exact"], "nats"),
            numerals.interval(_ends(own, "tax"), "relative", sign=True) if "tax" in own else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return numerals.breakable("\n".join(lines) + "\n")


def _ends(own: Mapping[str, float], name: str) -> dict[str, float]:
    return {"value": own[name], "low": own[f"{name}_low"], "high": own[f"{name}_high"]}


def renewed(readme: str, rows: str) -> str:
    """Return the README with this table in its place.

    Raises:
        Refusal: the place is not there.
    """
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), flags=re.DOTALL)
    if not pattern.search(readme):
        raise Refusal(f"README.md: has no lines {BEGIN.strip()} and {END}, between which it stands")
    return pattern.sub(lambda _: BEGIN + rows + END, readme)


def current(root: Path) -> str:
    """Return the table of a repository's results."""
    settings = params.read(root / "params.yaml")
    found = files.read_json(root / "reports/metrics.json")
    report = params.section(settings, "report")
    with refusal.of_the_graph("reports/metrics.json"):
        return table(found, report, list(params.section(settings, "policies")))


@refusal.in_one_line
def main() -> None:
    """Renew README.md."""
    path = Path("README.md")
    files.write_text(path, renewed(files.read_text(path), current(Path())))


if __name__ == "__main__":
    sys.exit(main())
