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
    consensus,
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
from stages.lib.labels.reading import Everything
from stages.lib.labels.report import Measured, Outcome, Said
from stages.lib.preferences import sets
from stages.lib.records import Name
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed
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
    seed: Seed,
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
    own = reading.own_prompts(prompts)
    public, counts = joining.published(pairs.sources, preferences, own, split)
    given = Everything([graph, public, joining.revised(pairs.revisions, revisions)])
    draws = Draws(agreement=pairs.agreement_resamples, elo=pairs.elo_resamples, seed=seed)
    keys = voters.answer_keys(labelers)
    named = voters.named(pairs.labelers, given, keys)
    known = _measured(pairs, given, named, keys, draws)
    with files.whole_folder(out) as folder:
        made = _decided(pairs, given, named, known, folder)
        found = report.report(known, made, pairs.criteria, draws) | {"sources": counts}
    files.write_json(metrics, found)
    if known.flagged:
        print(flags.sentence(known.flagged), file=sys.stderr)
    return report.headline(found)


def _measured(
    pairs: Pairs, given: Everything, named: set[str], keys: set[str], draws: Draws
) -> Measured:
    """Go through all labels once, and measure who gave them."""
    tallies = {name: quality.Tally(name, keys) for name in sorted(pairs.criteria)}
    said = Said()
    for some in given:
        said.add(some)
        for tally in tallies.values():
            tally.add(some)
    voters.require_stated(pairs.criteria, said.criteria)
    figures = {
        name: quality.report(tally, given.kinds, prior=pairs.prior, draws=draws)
        for name, tally in tallies.items()
    }
    flagged = flags.flags(pairs.quality, figures)
    out = flags.left_out(flagged)
    return Measured(
        kinds=given.kinds,
        answer_keys=keys,
        said=said,
        quality=figures,
        flagged=flagged,
        skills={
            name: pairing.weights(tally.judged.table(), named - keys - out.get(name, set()), pairs)
            for name, tally in tallies.items()
        },
    )


def _decided(
    pairs: Pairs, given: Everything, named: set[str], known: Measured, folder: Path
) -> Outcome:
    """Go through all labels again, hear those who count, decide, and write as it is decided.

    Raises:
        LabelError: the gate removes more than `max_rejected`, or nothing is left to learn from.
    """
    made = Outcome(pairs.criteria)
    distrusted = flags.left_out(known.flagged)
    with files.growing(folder, [f"{name}.jsonl" for name in (*SPLITS, "signals")]) as write:
        for some in given:
            heard = voters.heard(
                some,
                criteria=pairs.criteria,
                named=named,
                keys=known.answer_keys,
                distrusted=distrusted,
            )
            ballots = [
                pairing.ballot(name, heard.rankings(name), pairs, skills)
                for name, skills in known.skills.items()
            ]
            arranged = criteria.arranged(ballots, pairs.criteria, pairs.combine)
            decided = pairing.decide(arranged, some, pairs)
            signals = thumbs.signals(heard.thumbs(), some)
            answers = written.demonstrations(heard.written(), some)
            made.add(heard, ballots, decided, signals, answers, some)
            for row in decided.rows:
                write(f"{split_of(row.role)}.jsonl", row)
            for one in signals[0]:
                write("signals.jsonl", one)
    consensus.refuse_above(made.pairs.by_reason(), made.pairs.judged, pairs.max_rejected)
    report.require_something(made)
    by_id = sorted(made.demonstrations, key=lambda one: one.id)
    files.write_lines(folder / "demonstrations.jsonl", by_id)
    return made


if __name__ == "__main__":
    entry.main(run, "pairs", "labelers", "samplers", "prompts.split", "seed")
