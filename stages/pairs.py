r"""Turn rankings into preference pairs by consensus, and report how far labelers agree.

    python -m stages.pairs data/rankings data/completions data/prompts \
        data/pairs reports/labels.json

Reads   rankings/<labeler>.jsonl    one labeler's ranking of one prompt's completions a line
        completions/<sampler>.jsonl, prompts/{train,validation,test}.jsonl
Writes  pairs/{train,validation,test}.jsonl    preferred completion first; no prompt is in two files
        labels.json    coverage, agreement, skill, Elo, and what was left out, by reason
Params  pairs, seed; of labelers the names and kinds, of samplers the names
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.lib import agreement, consensus, elo
from stages.lib.agreement import NotMeasurable
from stages.lib.consensus import SPLITS, Candidate, Judgement, LabelError
from stages.lib.records import Completion, Name, Pair, Prompt, Ranking
from stages.lib.runtime import entry, files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import Strict, check
from stages.lib.statistics import Estimate, bootstrap_mean

Resamples = Annotated[int, Field(ge=1)]


class Pairs(Strict):
    """Section `pairs` of params.yaml."""

    criterion: Name | None
    """Which rankings count; null takes the only criterion there is."""
    consensus: Literal["per_labeler", "majority", "weighted", "soft"]
    """How several labelers' judgements of one pair become one verdict."""
    ties: Literal["drop", "half"]
    """What a tie becomes: nothing, or a pair with p_chosen 0.5."""
    min_p_chosen: Annotated[float, Field(ge=0.5, le=1)]
    """Pairs whose p_chosen is below this are left out."""
    skill_prior: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
    """Verdicts right and wrong credited to each labeler beforehand (Beta prior)."""
    junk_pairs: bool
    """Whether junk below not-junk makes a pair."""
    mixed_samplers: bool
    """Whether a pair may hold completions of two samplers."""
    max_rejected: Annotated[float, Field(ge=0, le=1)]
    """Share of pairs the gate may remove before the stage fails."""
    elo_resamples: Resamples
    """Cluster bootstrap of the ratings."""
    agreement_resamples: Resamples
    """Cluster bootstrap of every other figure."""

    @model_validator(mode="after")
    def _labelers_are_right_more_often(self) -> "Pairs":
        right, wrong = self.skill_prior
        if right <= wrong:
            raise ValueError(
                f"skill_prior {self.skill_prior} must credit more right than wrong verdicts, or "
                "nothing tells every labeler right from every labeler wrong"
            )
        return self


@dataclass(frozen=True, slots=True)
class Labels:
    """Everything the stage reads, checked line by line."""

    prompts: dict[str, Prompt]
    completions: dict[str, Completion]
    stated: list[Ranking]
    """Rankings of the criterion, every revision."""
    counting: list[Ranking]
    """Of these the ones that count, one a labeler and prompt."""
    judged: list[Judgement]
    """What the counting ones say of pairs."""
    other_criterion: dict[str, int]
    """Rankings of other criteria, by labeler."""

    def clusters(self) -> dict[str, str]:
        """Prompt id to the cluster that statistics resample."""
        return {prompt.id: prompt.cluster for prompt in self.prompts.values()}


def run(
    pairs: Pairs,
    labelers: dict[str, Any],
    samplers: dict[str, Any],
    seed: int,
    *,
    rankings: Path,
    completions: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write the three splits under `out` and the report to `metrics`; return its main figures."""
    kinds = {name: _kind(name, labeler) for name, labeler in labelers.items()}
    asked = _read_prompts(prompts)
    answers = _read_completions(completions, samplers, asked)
    stated = _read_rankings(rankings, labelers, asked, answers)
    labels = _labels(asked, answers, stated, pairs.criterion)
    candidates = _candidates(pairs, labels)
    passed, removed = consensus.gate(
        candidates,
        prompts=asked,
        completions=answers,
        contradicted=consensus.contradictions(labels.stated),
        mixed_samplers=pairs.mixed_samplers,
    )
    consensus.refuse_above(removed, len(candidates), pairs.max_rejected)
    kept, left_out = consensus.select(passed, ties=pairs.ties, min_p_chosen=pairs.min_p_chosen)
    left_out["junk"] = _shown(labels, pairs.consensus) - len(candidates)
    rows = _rows(kept, labels)
    report = _quality(pairs, labels, kinds, seed) | {
        "pairs": _pair_counts(rows, removed, left_out, len(candidates)),
        "prompts": _prompt_counts(rows, labels),
    }
    report["pairs"]["tie_rate"] = agreement.figure(lambda: _tie_rate(passed, labels, pairs, seed))
    if not rows:
        raise LabelError(
            f"no pair is left to learn from: {_reasons(report['pairs'])}; pairs.ties, "
            "pairs.min_p_chosen and pairs.junk_pairs decide what is left out"
        )
    _write(out, rows)
    files.write_json(metrics, report)
    return _headline(report)


def _write(out: Path, rows: Sequence[Pair]) -> None:
    with files.whole_folder(out) as folder:
        for split in SPLITS:
            of_split = [row for row in rows if consensus.split_of(row.role) == split]
            files.write_lines(folder / f"{split}.jsonl", of_split)


def _labels(
    prompts: dict[str, Prompt],
    completions: dict[str, Completion],
    rankings: Sequence[Ranking],
    criterion: str | None,
) -> Labels:
    stated, other = consensus.of_criterion(rankings, criterion)
    counting = consensus.current(stated)
    judged = [j for ranking in counting for j in consensus.judgements(ranking)]
    if not judged:
        raise LabelError(
            f"none of {len(counting)} rankings compares two completions; a pair needs two of one "
            "prompt, not both junk"
        )
    return Labels(prompts, completions, stated, counting, judged, other)


def _candidates(pairs: Pairs, labels: Labels) -> list[Candidate]:
    skills = {}
    if pairs.consensus == "weighted":
        table = agreement.table(labels.judged, labels.clusters())
        skills = agreement.skills(table, prior=_prior(pairs))
    votes = [j for j in labels.judged if pairs.junk_pairs or not j.junk]
    return consensus.combine(votes, how=pairs.consensus, ties=pairs.ties, skills=skills)


def _prior(pairs: Pairs) -> tuple[float, float]:
    return pairs.skill_prior[0], pairs.skill_prior[1]


def _rows(kept: Iterable[Candidate], labels: Labels) -> list[Pair]:
    judged = defaultdict(set)
    for ranking in labels.counting:
        judged[ranking.prompt_id].update(ranking.shown)
    return [
        consensus.record(
            pair,
            prompt=labels.prompts[pair.prompt_id],
            completions=labels.completions,
            judged=len(judged[pair.prompt_id]),
        )
        for pair in kept
    ]


def _quality(pairs: Pairs, labels: Labels, kinds: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Return sections `labelers`, `agreement` and `elo` of the report."""
    clusters = labels.clusters()
    quality = agreement.report(
        labels.counting,
        clusters,
        prior=_prior(pairs),
        resamples=pairs.agreement_resamples,
        seed=seed,
    )
    facts = _labeler_facts(labels, kinds)
    quality["labelers"] = {name: facts[name] | quality["labelers"].get(name, {}) for name in kinds}
    quality["elo"] = elo.report(
        labels.judged,
        samplers={answer.id: answer.sampler for answer in labels.completions.values()},
        clusters=clusters,
        kinds=kinds,
        resamples=pairs.elo_resamples,
        seed=seed,
    )
    return quality


def _labeler_facts(labels: Labels, kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what needs no estimate: kind, prompts ranked and their share, changes of mind.

    `coverage` is the share, of prompts with two completions or more, that the labeler ranked.
    """
    answered = Counter(answer.prompt_id for answer in labels.completions.values())
    comparable = {prompt_id for prompt_id, count in answered.items() if count > 1}
    ranked = defaultdict(set)
    for ranking in labels.counting:
        ranked[ranking.labeler].add(ranking.prompt_id)
    reversed_by = consensus.reversals(labels.stated)
    return {
        name: {
            "kind": kind,
            "prompts": len(ranked[name]),
            "coverage": len(ranked[name] & comparable) / len(comparable),
            "other_criterion": labels.other_criterion.get(name, 0),
            "reversed_by_revision": reversed_by[name],
        }
        for name, kind in kinds.items()
    }


def _shown(labels: Labels, how: str) -> int:
    """Count the pairs that were shown, for each labeler apart where verdicts stay apart."""
    return len(
        {
            (*pair, ranking.labeler if how == "per_labeler" else "")
            for ranking in labels.counting
            for pair in itertools.combinations(sorted(ranking.shown), 2)
        }
    )


def _pair_counts(
    rows: Sequence[Pair],
    removed: Mapping[str, Sequence[str]],
    left_out: Mapping[str, int],
    candidates: int,
) -> dict[str, Any]:
    """Return section `pairs` of the report: where every judged pair went.

    `judged` is what the gate saw, and `removed_share` is of that; `left_out.junk` never came to
    the gate (junk against junk, or below not-junk where such pairs are off).
    """
    splits = Counter(consensus.split_of(row.role) for row in rows)
    count = sum(map(len, removed.values()))
    return {
        "judged": candidates,
        "written": {split: splits[split] for split in SPLITS},
        "roles": dict(sorted(Counter(row.role for row in rows).items())),
        "removed": {reason: len(ids) for reason, ids in removed.items()},
        "removed_ids": {reason: list(ids) for reason, ids in removed.items() if ids},
        "removed_share": count / max(candidates, 1),
        "left_out": dict(left_out),
    }


def _tie_rate(passed: Sequence[Candidate], labels: Labels, pairs: Pairs, seed: int) -> Estimate:
    """Share of the pairs past the gate on which the consensus is a tie."""
    if not passed:
        raise NotMeasurable("the gate lets no pair through")
    clusters = labels.clusters()
    return bootstrap_mean(
        [float(pair.p_first == 0.5) for pair in passed],
        [clusters[pair.prompt_id] for pair in passed],
        resamples=pairs.agreement_resamples,
        seed=seed,
    )


def _prompt_counts(rows: Sequence[Pair], labels: Labels) -> dict[str, int]:
    """Count prompts by what became of them; the four kinds are disjoint.

    Unranked are those with completions that no counting ranking is about.
    """
    answered = {answer.prompt_id for answer in labels.completions.values()}
    ranked = {ranking.prompt_id for ranking in labels.counting}
    useful = {ranking.prompt_id for ranking in labels.counting if ranking.ranks}
    paired = {row.prompt_id for row in rows}
    return {
        "with_pairs": len(paired),
        "without_pairs": len(useful - paired),
        "all_junk": len(ranked - useful),
        "unranked": len(answered - ranked),
    }


def _reasons(counts: Mapping[str, Any]) -> str:
    lost = {**counts["removed"], **counts["left_out"]}
    shown = counts["judged"] + counts["left_out"]["junk"]
    return ", ".join(f"{name} {n}" for name, n in lost.items() if n) + f" of {shown} pairs shown"


def _headline(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures to compare runs by; one that was refused is absent."""
    figures = {f"pairs_{split}": float(n) for split, n in report["pairs"]["written"].items()}
    figures["removed_share"] = report["pairs"]["removed_share"]
    measured = {
        "tie_rate": report["pairs"]["tie_rate"],
        "agreement": report["agreement"]["raw"],
        "alpha_nominal": report["agreement"]["alpha_nominal"],
        "alpha_ordinal": report["agreement"]["alpha_ordinal"],
    }
    return figures | {k: found["value"] for k, found in measured.items() if "value" in found}


def _kind(name: str, labeler: Any) -> str:
    kind = labeler.get("kind") if isinstance(labeler, dict) else None
    if not isinstance(kind, str):
        raise ParamError(f"params.yaml: labelers.{name}.kind is missing; lexicon, judge, human, …")
    return kind


def _read_prompts(folder: Path) -> dict[str, Prompt]:
    found: dict[str, Prompt] = {}
    for split in SPLITS:
        for where, row in files.raw_lines(folder / f"{split}.jsonl"):
            prompt = check(row, Prompt, where, RecordError)
            if consensus.split_of(prompt.role) != split:
                raise RecordError(
                    f"{where}: prompt {prompt.id} has role {prompt.role}, which belongs in "
                    f"{consensus.split_of(prompt.role)}.jsonl"
                )
            if prompt.id in found:
                raise RecordError(
                    f"{where}: prompt {prompt.id} stands in {consensus.split_of(prompt.role)} and "
                    f"already in {consensus.split_of(found[prompt.id].role)}; ids must differ"
                )
            found[prompt.id] = prompt
    return found


def _read_completions(
    folder: Path, samplers: Mapping[str, Any], prompts: Mapping[str, Prompt]
) -> dict[str, Completion]:
    found: dict[str, Completion] = {}
    for name, where, row in _lines_of(folder, samplers, "samplers"):
        answer = check(row, Completion, where, RecordError)
        if answer.sampler != name:
            raise RecordError(f"{where}: is by sampler {answer.sampler}, in the file of {name}")
        if answer.prompt_id not in prompts:
            raise RecordError(
                f"{where}: completion {answer.id} answers prompt {answer.prompt_id}, which the "
                "prompts folder does not have"
            )
        if answer.id in found:
            raise RecordError(f"{where}: completion {answer.id} occurs twice; ids must differ")
        found[answer.id] = answer
    return found


def _read_rankings(
    folder: Path,
    labelers: Mapping[str, Any],
    prompts: Mapping[str, Prompt],
    completions: Mapping[str, Completion],
) -> list[Ranking]:
    of_prompt = defaultdict(list)
    for answer in completions.values():
        of_prompt[answer.prompt_id].append(answer.id)
    found = []
    for name, where, row in _lines_of(folder, labelers, "labelers"):
        ranking = check(row, Ranking, where, RecordError)
        if ranking.labeler != name:
            raise RecordError(f"{where}: is by labeler {ranking.labeler}, in the file of {name}")
        if ranking.prompt_id not in prompts:
            raise RecordError(
                f"{where}: ranks prompt {ranking.prompt_id}, which the prompts folder does not have"
            )
        for cid in ranking.shown:
            if cid not in completions or completions[cid].prompt_id != ranking.prompt_id:
                has = ", ".join(of_prompt[ranking.prompt_id]) or "none"
                raise RecordError(
                    f"{where}: ranks completion {cid}, which prompt {ranking.prompt_id} does not "
                    f"have ({has})"
                )
        found.append(ranking)
    return found


def _lines_of(
    folder: Path, entries: Mapping[str, Any], section: str
) -> Iterator[tuple[str, str, Any]]:
    """Yield (entry, file:line, row) of one file for each entry of a section of params.yaml."""
    for name, path in files.entry_files(folder, entries, section=section).items():
        for where, row in files.raw_lines(path):
            yield name, where, row


if __name__ == "__main__":
    entry.main(run, "pairs", "labelers", "samplers", "seed")
