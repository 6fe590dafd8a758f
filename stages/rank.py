"""Let one labeler rank the completions of each prompt.

    python -m stages.rank words data/sources/words.txt data/sources/words.txt data/prompts \
        data/completions data/rankings/words.jsonl

Reads   what the labeler reads: a word list, a model's folder, the folder of people's files
        what it goes by: a constitution, instructions; a word list is its own guide
        data/prompts, data/completions
Writes  rankings.jsonl    one ranking of one prompt's completions a line; of people also thumbs and
        written answers
Params  labelers.<name>, base, samplers
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import selection
from stages.lib.base import Base
from stages.lib.labelers import classifier, judge, lexicon, people
from stages.lib.records import Completion, Ranking, latest
from stages.lib.runtime import entry, files

Labeler = Annotated[
    lexicon.Lexicon | classifier.TextClassifier | judge.Judge | people.People,
    Field(discriminator="kind"),
]
LABELERS = {
    "lexicon": lexicon.rank,
    "classifier": classifier.rank,
    "judge": judge.rank,
    "people": people.rank,
}


def run(
    labeler: Labeler,
    base: Base,
    samplers: dict[str, Any],
    *,
    name: str,
    reads: Path,
    guide: Path,
    prompts: Path,
    completions: Path,
    out: Path,
) -> dict[str, float]:
    """Write the labeler's rankings; return their number, the share of ties, and its own metrics."""
    given = files.read_entries(completions, samplers, Completion, section="samplers")
    rankings, own = LABELERS[labeler.kind](labeler, name, base, selection.every(prompts), given)
    files.write_lines(out, rankings)
    counting = [label for label in latest(rankings) if isinstance(label, Ranking)]
    tied = total = 0
    for one in counting:
        ranks = list(one.ranks.values())
        total += len(ranks) * (len(ranks) - 1) // 2
        tied += sum(a == b for i, a in enumerate(ranks) for b in ranks[i + 1 :])
    return {
        "rankings": float(len(counting)),
        "comparisons": float(total),
        "tie_rate": tied / total if total else 0.0,
        **own,
    }


if __name__ == "__main__":
    entry.main(
        run, "labelers.{name}", "base", "samplers", shared=lambda labeler: labeler.kind == "judge"
    )
