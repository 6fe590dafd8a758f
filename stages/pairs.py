r"""Turn labels into preference pairs by consensus, and report how good the labels are.

    python -m stages.pairs data/rankings data/completions data/prompts data/preferences \
        data/revisions data/pairs reports/labels.json

Reads   rankings/<labeler>.jsonl    a label a line; the file of people holds those of several
        completions/<sampler>.jsonl, prompts/{train,validation,test}.jsonl
        preferences, revisions      public sets, and what policies revised, where params name any
Writes  pairs/{train,validation,test}.jsonl    preferred completion first; no prompt is in two files
        pairs/signals.jsonl           completions that thumbs found good or bad by themselves
        pairs/demonstrations.jsonl    answers that people wrote
        labels.json    quality of every labeler, agreement, Elo, and what was left out, by reason
Params  pairs, prompts.split, seed; of labelers names, kinds and answer keys, of samplers the names
"""

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from stages.lib.labels import (
    criteria,
    flags,
    joining,
    pairing,
    quality,
    reading,
    report,
    thumbs,
    voters,
    written,
)
from stages.lib.labels.consensus import SPLITS, split_of
from stages.lib.labels.flags import Quality
from stages.lib.labels.pairing import Voting
from stages.lib.labels.quality import Draws
from stages.lib.labels.reading import Given
from stages.lib.labels.report import Outcome
from stages.lib.preferences import sets
from stages.lib.records import Name
from stages.lib.runtime import entry, files
from stages.lib.split import Split

Resamples = Annotated[int, Field(ge=1)]


class Pairs(Voting):
    """Section `pairs` of params.yaml."""

    criteria: Annotated[dict[Name, Annotated[float, Field(gt=0)]], Field(min_length=1)]
    """What labels are about, with the weight of each; labels about anything else are left out."""
    combine: criteria.Combine
    """Whether several criteria make pairs of their own, or one verdict a pair."""
    labelers: list[Name]
    """Whose labels count; none named means everybody's."""
    sources: list[sets.Source]
    """Public preference sets, whose labels join the graph's own."""
    revisions: list[Name]
    """Entries of `revisers` whose revisions are preferred to the answers they came from."""
    quality: Quality
    """Figures beyond which a labeler is named."""
    elo_resamples: Resamples
    """Cluster bootstrap of the ratings."""
    agreement_resamples: Resamples
    """Cluster bootstrap of every other figure."""

    @model_validator(mode="after")
    def _no_criterion_is_called_as_all_are(self) -> "Pairs":
        if criteria.TOGETHER in self.criteria:
            raise ValueError(
                f"criteria holds '{criteria.TOGETHER}', which is what pairs that several criteria "
                "decide are marked with; give it another name"
            )
        return self


def run(
    pairs: Pairs,
    labelers: dict[str, Any],
    samplers: dict[str, Any],
    split: Split,
    seed: int,
    *,
    rankings: Path,
    completions: Path,
    prompts: Path,
    preferences: Path,
    revisions: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write pairs, signals and demonstrations under `out` and the report to `metrics`.

    Returns:
        The report's main figures, those of each labeler among them.
    """
    graph = reading.of_graph(
        prompts=prompts,
        completions=completions,
        rankings=rankings,
        samplers=samplers,
        labelers=labelers,
    )
    own = [prompt for _, prompt in graph.prompts]
    public, counts = joining.published(pairs.sources, preferences, own, split)
    given = reading.gather([graph, public, joining.revised(pairs.revisions, revisions)])
    draws = Draws(agreement=pairs.agreement_resamples, elo=pairs.elo_resamples, seed=seed)
    made = _outcome(pairs, given, voters.answer_keys(labelers), draws)
    found = report.report(made, pairs.criteria, draws) | {"sources": counts}
    _write(out, made)
    files.write_json(metrics, found)
    if made.flagged:
        print(flags.sentence(made.flagged), file=sys.stderr)
    return report.headline(found)


def _outcome(pairs: Pairs, given: Given, keys: set[str], draws: Draws) -> Outcome:
    """Measure labelers, hear those who count, and decide.

    Raises:
        LabelError: nothing is left to learn from.
    """
    names = sorted(pairs.criteria)
    named = voters.named(pairs.labelers, given, keys)
    figures = {
        name: quality.report(given, name, answer_keys=keys, prior=pairs.prior, draws=draws)
        for name in names
    }
    flagged = flags.flags(pairs.quality, figures)
    out = flags.left_out(flagged)
    heard = voters.heard(given, criteria=names, named=named, keys=keys, distrusted=out)
    clusters = given.clusters()
    ballots = [pairing.ballot(name, heard.rankings(name), pairs, clusters) for name in names]
    arranged = criteria.arranged(ballots, pairs.criteria, pairs.combine)
    made = Outcome(
        given=given,
        quality=figures,
        flagged=flagged,
        answer_keys=keys,
        heard=heard,
        ballots=ballots,
        decided=pairing.decide(arranged, given, pairs),
        signals=thumbs.signals(heard.thumbs(), given),
        demonstrations=written.demonstrations(heard.written(), given),
    )
    report.require_something(made)
    return made


def _write(out: Path, made: Outcome) -> None:
    with files.whole_folder(out) as folder:
        for split in SPLITS:
            of_split = [row for row in made.decided.rows if split_of(row.role) == split]
            files.write_lines(folder / f"{split}.jsonl", of_split)
        files.write_lines(folder / "signals.jsonl", made.signals[0])
        files.write_lines(folder / "demonstrations.jsonl", made.demonstrations[0])


if __name__ == "__main__":
    entry.main(run, "pairs", "labelers", "samplers", "prompts.split", "seed")
