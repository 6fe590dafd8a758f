"""Prompts, completions and labels of one or several places, checked against each other.

The graph is one place: its samplers' completions and its labelers' files. A preference set that
someone published is another, with prompts and completions of its own. `Everything` joins them on
disk, since millions of records would not fit in memory.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from stages.lib.labels.consensus import SPLITS, leaking_clusters, split_of
from stages.lib.records import AnyLabel, Completion, Prompt, Skip
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError
from stages.lib.shelf import Shelf

T = TypeVar("T")
Lines = Iterable[tuple[str, T]]
"""Records, each behind where it stands, such as data/rankings/words.jsonl:12."""

PROMPTS = 256
"""How many are held at once, with all that there is of them."""

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
    """What pairs of some prompts are made from, without what labelers took back."""

    prompts: dict[str, Prompt]
    completions: dict[str, Completion]
    labels: list[AnyLabel]
    """Every revision; no skips."""
    taken_back: Counter[str]
    """By labeler, the tasks that were passed over or whose label was taken back."""
    numbers: dict[str, int]
    """Cluster of these prompts to its number, in order of the names of all clusters."""
    leaking: Collection[str]
    """Clusters of near-duplicates, of any prompts, that lie in more than one split."""

    def clusters(self) -> dict[str, int]:
        """Prompt id to the number of the cluster that statistics resample."""
        return {prompt.id: self.numbers[prompt.cluster] for prompt in self.prompts.values()}


class Everything:
    """All that several places give, on disk, to be gone through some prompts at a time."""

    kinds: dict[str, str]
    """Labeler to kind."""
    groups: dict[str, set[str]]

    def __init__(self, sources: Sequence[Source]) -> None:
        """Shelve what the places give.

        Raises:
            RecordError: an id stands twice, a completion answers what there is not, or two places
                say different things of who a labeler is.
        """
        self._shelf = Shelf(Prompt, Completion, AnyLabel)
        for source in sources:
            self._shelf.add(0, source.prompts, what="prompt")
        for source in sources:
            self._shelf.add(1, source.completions, what="completion")
        if stray := self._shelf.stray(1, of=0):
            where, answer = stray
            raise RecordError(
                f"{where}: completion {answer.id} answers prompt {answer.prompt_id}, which there "
                "is not"
            )
        for source in sources:
            self._shelf.add(2, source.labels)
        self.kinds = _kinds(sources)
        self.groups = defaultdict(set)
        for source in sources:
            for name, members in source.groups.items():
                self.groups[name] |= members
        names = sorted({prompt.cluster for prompt in self._shelf.each(0)})
        self._numbers = {name: number for number, name in enumerate(names)}
        self._leaking = leaking_clusters(self._shelf.each(0))

    def __iter__(self) -> Iterator[Given]:
        """Go through all prompts in order of their ids.

        Raises:
            RecordError: a label is about what there is not.
        """
        prompts = self._shelf.by_prompt()
        while some := list(islice(prompts, PROMPTS)):
            yield self._given(some)

    def _given(self, some: Iterable[tuple[str, Sequence[Lines[Any]]]]) -> Given:
        found = Given({}, {}, [], Counter(), {}, self._leaking)
        for _, (prompts, completions, labels) in some:
            for _, prompt in prompts:
                found.prompts[prompt.id] = prompt
                found.numbers[prompt.cluster] = self._numbers[prompt.cluster]
            ids = [answer.id for _, answer in completions]
            for where, label in labels:
                _require_known(where, label, found.prompts, ids)
            found.completions.update((answer.id, answer) for _, answer in completions)
            standing, taken_back = _standing(label for _, label in labels)
            found.labels.extend(standing)
            found.taken_back.update(taken_back)
        return found


def _require_known(
    where: str,
    label: AnyLabel,
    prompts: Mapping[str, Prompt],
    answers: Sequence[str],
) -> None:
    if label.prompt_id not in prompts:
        raise RecordError(f"{where}: is about prompt {label.prompt_id}, which there is not")
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
    people = {
        name: {label.labeler for _, label in _labels(path, name, entries)}
        for name, path in paths.items()
        if entries[name] == PEOPLE
    }
    kinds = {name: kind for name, kind in entries.items() if kind != PEOPLE}
    kinds |= {who: PEOPLE for members in people.values() for who in members}
    return Source(
        _prompts(prompts),
        _completions(completions, samplers),
        (line for name in sorted(paths) for line in _labels(paths[name], name, entries)),
        kinds,
        people,
    )


def own_prompts(folder: Path) -> Iterator[Prompt]:
    """Yield the graph's prompts; raises as `of_graph`."""
    return (prompt for _, prompt in _prompts(folder))


def _kind(name: str, labeler: Any) -> str:
    kind = labeler.get("kind") if isinstance(labeler, dict) else None
    if not isinstance(kind, str):
        raise ParamError(f"params.yaml: labelers.{name}.kind is missing; lexicon, judge, people, …")
    return kind


def _prompts(folder: Path) -> Iterator[tuple[str, Prompt]]:
    for split in SPLITS:
        for where, prompt in files.records(folder / f"{split}.jsonl", Prompt):
            if split_of(prompt.role) != split:
                raise RecordError(
                    f"{where}: prompt {prompt.id} has role {prompt.role}, which belongs in "
                    f"{split_of(prompt.role)}.jsonl"
                )
            yield where, prompt


def _completions(folder: Path, samplers: Mapping[str, Any]) -> Iterator[tuple[str, Completion]]:
    paths = files.entry_files(folder, samplers, section="samplers")
    for name, path in paths.items():
        for where, answer in files.records(path, Completion):
            if answer.sampler != name:
                raise RecordError(f"{where}: is by sampler {answer.sampler}, in the file of {name}")
            yield where, answer


def _labels(path: Path, name: str, entries: Mapping[str, str]) -> Iterator[tuple[str, AnyLabel]]:
    for where, label in files.records(path, AnyLabel):
        if entries[name] != PEOPLE and label.labeler != name:
            raise RecordError(f"{where}: is by labeler {label.labeler}, in the file of {name}")
        if entries[name] == PEOPLE and label.labeler in entries:
            raise RecordError(
                f"{where}: labeler is '{label.labeler}', as an entry of labelers is called; a "
                "person needs a name of their own"
            )
        yield where, label
