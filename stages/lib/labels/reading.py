"""Prompts, completions and labels of one or several places, checked against each other.

The graph is one place: its samplers' completions and its labelers' files. A preference set that
someone published is another, with prompts and completions of its own. `gather` makes one of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.lib.labels.consensus import SPLITS, split_of
from stages.lib.records import AnyLabel, Completion, Prompt, Skip
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import check

T = TypeVar("T")
Lines = list[tuple[str, T]]
"""Records, each behind where it stands, such as data/rankings/words.jsonl:12."""

PEOPLE = "people"
"""The kind of labeler that is a person; every other is a model or a rule."""


@dataclass(frozen=True, slots=True)
class Source:
    """What one place has to give."""

    prompts: Lines[Prompt]
    completions: Lines[Completion]
    labels: Lines[AnyLabel]
    kinds: Mapping[str, str]
    """Labeler to its kind: lexicon, judge, people, …"""
    groups: Mapping[str, set[str]]
    """A name that stands for several labelers, such as an entry of people, to these."""


@dataclass(frozen=True, slots=True)
class Given:
    """Everything that pairs are made from, without what labelers took back."""

    prompts: dict[str, Prompt]
    completions: dict[str, Completion]
    labels: list[AnyLabel]
    """Every revision; no skips."""
    kinds: dict[str, str]
    groups: dict[str, set[str]]
    taken_back: Counter[str]
    """By labeler, the tasks that were passed over or whose label was taken back."""

    def clusters(self) -> dict[str, str]:
        """Prompt id to the cluster that statistics resample."""
        return {prompt.id: prompt.cluster for prompt in self.prompts.values()}


def gather(sources: Sequence[Source]) -> Given:
    """Join what several places give, and check that labels and completions are of something.

    Raises:
        RecordError: an id stands twice, a completion or label is about what there is not, or two
            places say different things of who a labeler is.
    """
    prompts = _by_id((line for source in sources for line in source.prompts), "prompt")
    completions = _by_id((line for source in sources for line in source.completions), "completion")
    of_prompt = defaultdict(list)
    for where, answer in (line for source in sources for line in source.completions):
        if answer.prompt_id not in prompts:
            raise RecordError(
                f"{where}: completion {answer.id} answers prompt {answer.prompt_id}, which there "
                "is not"
            )
        of_prompt[answer.prompt_id].append(answer.id)
    labels = [line for source in sources for line in source.labels]
    for where, label in labels:
        _require_known(where, label, prompts, of_prompt)
    standing, taken_back = _standing(label for _, label in labels)
    groups: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for name, members in source.groups.items():
            groups[name] |= members
    return Given(prompts, completions, standing, _kinds(sources), dict(groups), taken_back)


def _by_id(lines: Iterable[tuple[str, Any]], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for where, record in lines:
        if record.id in found:
            raise RecordError(f"{where}: {what} {record.id} occurs twice; ids must differ")
        found[record.id] = record
    return found


def _require_known(
    where: str,
    label: AnyLabel,
    prompts: Mapping[str, Prompt],
    of_prompt: Mapping[str, Sequence[str]],
) -> None:
    if label.prompt_id not in prompts:
        raise RecordError(f"{where}: is about prompt {label.prompt_id}, which there is not")
    answers = of_prompt.get(label.prompt_id, [])
    for completion in label.about:
        if completion not in answers:
            has = ", ".join(answers[:4]) + (" …" if len(answers) > 4 else "") or "none"
            raise RecordError(
                f"{where}: judges completion {completion}, which prompt {label.prompt_id} does "
                f"not have ({has})"
            )


def _standing(labels: Iterable[AnyLabel]) -> tuple[list[AnyLabel], Counter[str]]:
    """Return the labels without the tasks whose last word is a skip, and count those tasks."""
    tasks: dict[tuple[object, ...], list[AnyLabel]] = defaultdict(list)
    for label in labels:
        tasks[label.labeler, *label.subject].append(label)
    standing: list[AnyLabel] = []
    taken_back: Counter[str] = Counter()
    for lines in tasks.values():
        last = max(lines, key=lambda line: line.revision)
        if isinstance(last, Skip):
            taken_back[last.labeler] += 1
        else:
            standing += [line for line in lines if not isinstance(line, Skip)]
    return standing, taken_back


def _kinds(sources: Sequence[Source]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for source in sources:
        for name, kind in source.kinds.items():
            if kinds.setdefault(name, kind) != kind:
                raise RecordError(
                    f"labeler {name} is {kinds[name]} in one place and {kind} in another; rename "
                    "one of them"
                )
    return kinds


def of_graph(
    *,
    prompts: Path,
    completions: Path,
    rankings: Path,
    samplers: Mapping[str, Any],
    labelers: Mapping[str, Any],
) -> Source:
    """Return what the graph itself gives: prompts by split, a file a sampler, a file a labeler.

    Raises:
        RecordError: a file is missing or of no entry, or a line is no such record or in the wrong
            file; the message begins with file:line.
        ParamError: an entry of labelers states no kind.
    """
    entries = {name: _kind(name, entry) for name, entry in labelers.items()}
    paths = files.entry_files(rankings, entries, section="labelers")
    by_entry = {name: list(_labels(path, name, entries)) for name, path in paths.items()}
    people = {
        name: {label.labeler for _, label in lines}
        for name, lines in by_entry.items()
        if entries[name] == PEOPLE
    }
    kinds = {name: kind for name, kind in entries.items() if kind != PEOPLE}
    kinds |= {who: PEOPLE for members in people.values() for who in members}
    return Source(
        list(_prompts(prompts)),
        list(_completions(completions, samplers)),
        [line for name in sorted(by_entry) for line in by_entry[name]],
        kinds,
        people,
    )


def _kind(name: str, labeler: Any) -> str:
    kind = labeler.get("kind") if isinstance(labeler, dict) else None
    if not isinstance(kind, str):
        raise ParamError(f"params.yaml: labelers.{name}.kind is missing; lexicon, judge, people, …")
    return kind


def _prompts(folder: Path) -> Iterator[tuple[str, Prompt]]:
    for split in SPLITS:
        for where, row in files.raw_lines(folder / f"{split}.jsonl"):
            prompt = check(row, Prompt, where, RecordError)
            if split_of(prompt.role) != split:
                raise RecordError(
                    f"{where}: prompt {prompt.id} has role {prompt.role}, which belongs in "
                    f"{split_of(prompt.role)}.jsonl"
                )
            yield where, prompt


def _completions(folder: Path, samplers: Mapping[str, Any]) -> Iterator[tuple[str, Completion]]:
    paths = files.entry_files(folder, samplers, section="samplers")
    for name, path in paths.items():
        for where, row in files.raw_lines(path):
            answer = check(row, Completion, where, RecordError)
            if answer.sampler != name:
                raise RecordError(f"{where}: is by sampler {answer.sampler}, in the file of {name}")
            yield where, answer


def _labels(path: Path, name: str, entries: Mapping[str, str]) -> Iterator[tuple[str, AnyLabel]]:
    for where, row in files.raw_lines(path):
        label: AnyLabel = check(row, AnyLabel, where, RecordError)
        if entries[name] != PEOPLE and label.labeler != name:
            raise RecordError(f"{where}: is by labeler {label.labeler}, in the file of {name}")
        if entries[name] == PEOPLE and label.labeler in entries:
            raise RecordError(
                f"{where}: labeler is '{label.labeler}', as an entry of labelers is called; a "
                "person needs a name of their own"
            )
        yield where, label
