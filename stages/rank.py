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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    given = files.each_of_entries(completions, samplers, Completion, section="samplers")
    rankings, own = LABELERS[labeler.kind](labeler, name, base, selection.each(prompts), given)
    count = Count()
    if labeler.kind == "people":  # who alone may say a thing twice
        files.write_lines(out, rankings)
        count.add(label for label in latest(rankings) if isinstance(label, Ranking))
    else:
        files.write_lines(out, count.passing(rankings))
    return {**count.plain(), **own}


@dataclass(slots=True)
class Count:
    """What rankings that go by say of their labeler."""

    rankings: int = 0
    comparisons: int = 0
    ties: int = 0

    def add(self, rankings: Iterable[Ranking]) -> None:
        """Count rankings."""
        for one in rankings:
            ranks = list(one.ranks.values())
            self.rankings += 1
            self.comparisons += len(ranks) * (len(ranks) - 1) // 2
            self.ties += sum(a == b for i, a in enumerate(ranks) for b in ranks[i + 1 :])

    def passing(self, rankings: Iterable[Ranking]) -> Iterator[Ranking]:
        """Yield what is given, counting it."""
        for one in rankings:
            self.add([one])
            yield one

    def plain(self) -> dict[str, float]:
        """The metrics of every labeler."""
        return {
            "rankings": float(self.rankings),
            "comparisons": float(self.comparisons),
            "tie_rate": self.ties / self.comparisons if self.comparisons else 0.0,
        }


if __name__ == "__main__":
    entry.main(
        run, "labelers.{name}", "base", "samplers", shared=lambda labeler: labeler.kind == "judge"
    )
