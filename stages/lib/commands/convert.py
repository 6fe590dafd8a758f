"""Take completions and labels to other tools and back, and pairs to other trainers.

    python -m stages.lib.commands.convert argilla-out tasks.json --criterion harmless
    python -m stages.lib.commands.convert argilla-in answers.json --users users.json
    python -m stages.lib.commands.convert label-studio-out tasks.json --criterion helpful
    python -m stages.lib.commands.convert label-studio-in export.json
    python -m stages.lib.commands.convert csv-out labels.csv --labels
    python -m stages.lib.commands.convert csv-in labels.csv --criterion harmless
    python -m stages.lib.commands.convert trl-out folder [--implicit | --unpaired]
    python -m stages.lib.commands.convert pairs-csv-out folder

`…-out` reads data/prompts, data/completions, and with --labels data/labels, and writes one file;
what makes the tool's project is printed. `…-in` adds lines to data/labels/<labeler>.jsonl and never
changes one: a label that is there already is passed over, one that says otherwise under the same
revision is refused, or with --revise added as the next revision. `users.json` is an object of
labelers and their ids in the tool.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages.lib import importers, order, selection
from stages.lib.commands import refusal
from stages.lib.importers import Row
from stages.lib.labelers import people
from stages.lib.preferences import argilla, csv_labels, csv_pairs, label_studio, tools, trl
from stages.lib.preferences.tools import Known, Read, Task
from stages.lib.records import AnyLabel, Completion, Pair, Signal
from stages.lib.runtime import files, locks
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal

PROMPTS, COMPLETIONS = Path("data/prompts"), Path("data/completions")
LABELS, PAIRS = Path("data/labels"), Path("data/pairs")


class ConvertError(Refusal):
    """What the command line asks for cannot be done."""


def known(root: Path) -> Known:
    """Return the prompts and completions of the graph.

    Raises:
        RecordError: there are none, or a line of a file is none.
    """
    prompts = selection.every(root / PROMPTS)
    found = sorted((root / COMPLETIONS).glob("*.jsonl"))
    if not found:
        raise RecordError(f"{COMPLETIONS}: has no file; `dvc repro sample` makes them")
    completions = [one for file in found for one in files.read_lines(file, Completion)]
    return Known({p.id: p for p in prompts}, {c.id: c for c in completions})


def labels(root: Path) -> list[tuple[str, AnyLabel]]:
    """Return all lines of all labelers, each with where it stands."""
    return [one for file in sorted((root / LABELS).glob("*.jsonl")) for one in people.read(file)]


def tasks(root: Path, has: Known, asked: argparse.Namespace) -> tuple[list[Task], Counter[str]]:
    """Return the tasks that the command line asks for, and what has no place in one.

    Raises:
        ConvertError: none is left, or no criterion is named.
    """
    left_out: Counter[str] = Counter()
    if asked.labels:
        made, left_out = tools.labeled_tasks(has, labels(root))
        if asked.criterion:
            made = [task for task in made if task.criterion == asked.criterion]
    else:
        if not asked.criterion:
            raise ConvertError("--criterion says what labelers are asked: harmless, helpful, …")
        made = tools.open_tasks(_of_samplers(has, asked.sampler), asked.criterion)
    made = [
        task
        for task in made
        if (not asked.role or getattr(task.prompt, "role", None) in asked.role)
        and asked.completions in (None, len(task.completions))
    ]
    made.sort(key=lambda task: order.by_hash(task.prompt.id))
    if not made:
        raise ConvertError("no task is left; see --labels, --role, --sampler and --completions")
    return made[: asked.first], left_out


def _of_samplers(has: Known, samplers: Sequence[str]) -> Known:
    some = {i: c for i, c in has.completions.items() if not samplers or c.sampler in samplers}
    return Known(has.prompts, some)


def add(
    root: Path, found: Iterable[tuple[str, AnyLabel]], *, revise: bool
) -> dict[str, Counter[str]]:
    """Add labels to their labelers' files; nothing is written where one of them is refused.

    Args:
        root: of the repository.
        found: labels, each with where it stands.
        revise: number a label that says otherwise as the next revision.

    Returns:
        `new` and `present` of each labeler.

    Raises:
        RecordError: a labeler's name is no file's, a file has a line that is no label, or a label
            says otherwise than one of the same revision.
    """
    by_labeler: dict[str, list[tuple[str, AnyLabel]]] = defaultdict(list)
    for where, label in found:
        if not people.is_name(label.labeler):
            raise RecordError(f"{where}: labeler {label.labeler} cannot be the name of a file")
        for file in sorted((root / LABELS).glob("*.jsonl")):
            if file.stem != label.labeler and file.stem.casefold() == label.labeler.casefold():
                raise RecordError(
                    f"{where}: labeler {label.labeler}: {file.name} is there, and one person under "
                    "two names would vote twice"
                )
        by_labeler[label.labeler].append((where, label))
    counts, lines = {}, {}
    with ExitStack() as stack:
        for labeler in sorted(by_labeler):
            # The labelling page takes the same lock before it appends a line.
            path = root / LABELS / f"{labeler}.jsonl"
            lock = locks.take(f"labels-{labeler}", f"{path} is being written")
            stack.callback(lock.release)
            new, counts[labeler] = _new(path, by_labeler[labeler], revise=revise)
            lines[path] = new
        for path, new in lines.items():
            if new:
                _append(path, new)
    return counts


def _new(
    path: Path, given: Sequence[tuple[str, AnyLabel]], *, revise: bool
) -> tuple[list[AnyLabel], Counter[str]]:
    """Return the labels that a file has not, numbered after those it has."""
    stated: dict[tuple[object, ...], dict[int, AnyLabel]] = defaultdict(dict)
    for _, label in people.read(path) if path.is_file() else []:
        stated[label.subject][label.revision] = label
    new: list[AnyLabel] = []
    counts = Counter({"new": 0, "present": 0})
    for where, label in given:
        revisions = stated[label.subject]
        same = revisions.get(label.revision)
        if same is not None and same != label:
            last = max(revisions)
            if _alike(revisions[last], label):
                same = label = revisions[last]
            elif revise:
                same, label = None, label.model_copy(update={"revision": last + 1})
            else:
                raise RecordError(
                    f"{where}: says otherwise of prompt {label.prompt_id} than revision "
                    f"{label.revision} in {path}; --revise adds it as revision {last + 1}"
                )
        counts["present" if same is not None else "new"] += 1
        if same is None:
            revisions[label.revision] = label
            new.append(label)
    return new, counts


def _alike(one: AnyLabel, other: AnyLabel) -> bool:
    """Whether two labels differ in their revision at most."""
    return one.model_copy(update={"revision": other.revision}) == other


def _append(path: Path, new: Sequence[AnyLabel]) -> None:
    before = path.read_bytes() if path.is_file() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    lines = [
        json.dumps(label.model_dump(mode="json"), ensure_ascii=False, sort_keys=True) + "\n"
        for label in new
    ]
    with files.whole_file(path) as partial:
        partial.write_bytes(before + "".join(lines).encode())


def items(paths: Iterable[Path]) -> Iterator[Row]:
    """Yield the objects of JSON files: a list, or `items` of an object, as Argilla's API answers.

    Raises:
        RecordError: a file is neither.
    """
    for path in paths:
        found = files.read_json(path)
        if isinstance(found, dict) and "items" in found:
            found = found["items"]
        if not isinstance(found, list):
            raise RecordError(f"{path}: must be a list of objects, or have one as `items`")
        for number, one in enumerate(found, start=1):
            yield f"{path}: item {number}", number, one


def users(path: Path | None, kind: type) -> dict[str, Any]:
    """Return labelers and their ids in a tool; none where no file is named.

    Raises:
        RecordError: it is no object of such ids, or two labelers share one.
    """
    if path is None:
        return {}
    found = files.read_json(path)
    if not isinstance(found, dict) or not all(type(one) is kind for one in found.values()):
        raise RecordError(f"{path}: must be an object of labelers and ids, each a {kind.__name__}")
    if len(set(found.values())) < len(found):
        raise RecordError(f"{path}: two labelers have one id")
    return found


def _argilla_out(root: Path, asked: argparse.Namespace) -> list[str]:
    made, left_out = tasks(root, known(root), asked)
    body, superseded = argilla.write(made, users(asked.users, str))
    left_out["superseded_by_a_later_revision"] += superseded
    files.write_json(asked.out, body)
    said = f"{asked.out}: {len(made)} records"
    return [said, *_reported(left_out), "", argilla.settings(len(made[0].completions))]


def _argilla_in(root: Path, asked: argparse.Namespace) -> list[str]:
    named = {user: labeler for labeler, user in users(asked.users, str).items()}
    rows = items(asked.files)
    read = argilla.read(rows, known(root), named, strict_order=asked.strict_order)
    return _added(root, read, asked)


def _label_studio_out(root: Path, asked: argparse.Namespace) -> list[str]:
    made, left_out = tasks(root, known(root), asked)
    if asked.pairwise:
        made = label_studio.pairs_of(made)
    found = label_studio.write(made, users(asked.users, int), pairwise=asked.pairwise)
    files.write_json(asked.out, found)
    question = f"Which is better? Criterion: {made[0].criterion}"
    size = max(len(task.completions) for task in made)
    config = (
        label_studio.pairwise_config(question)
        if asked.pairwise
        else label_studio.ranker_config(size, question)
    )
    said = f"{asked.out}: {len(made)} tasks; the project's labeling configuration is"
    return [said, *_reported(left_out), "", config]


def _label_studio_in(root: Path, asked: argparse.Namespace) -> list[str]:
    named = {str(user): labeler for labeler, user in users(asked.users, int).items()}
    rows = items(asked.files)
    read = label_studio.read(rows, known(root), named, strict_order=asked.strict_order)
    return _added(root, read, asked)


def _csv_out(root: Path, asked: argparse.Namespace) -> list[str]:
    has = known(root)
    if asked.labels:
        found = [label for _, label in labels(root)]
        files.write_text(asked.out, csv_labels.write(found, has))
        return [f"{asked.out}: {len(found)} labels"]
    made, _ = tasks(root, has, asked)
    files.write_text(asked.out, csv_labels.write_open(made))
    return [f"{asked.out}: {len(made)} prompts; fill in labeler, and rank or junk"]


def _csv_in(root: Path, asked: argparse.Namespace) -> list[str]:
    rows = [row for path in asked.files for row in importers.file_rows(path, named_by="convert")]
    return _added(root, csv_labels.read(rows, known(root), asked.criterion), asked)


def _added(root: Path, read: Read, asked: argparse.Namespace) -> list[str]:
    counts = add(root, read.labels, revise=asked.revise)
    said = [
        f"{LABELS / labeler}.jsonl: {count['new']} new, {count['present']} there already"
        for labeler, count in counts.items()
    ]
    said += _reported(read.left_out)
    if not said:
        named = ", ".join(map(str, asked.files))
        raise ConvertError(f"{named}: no label was found; is this what the tool exported?")
    return said


def _reported(left_out: Mapping[str, int]) -> list[str]:
    return [f"left out: {count} {reason}" for reason, count in left_out.items() if count]


def _trl_out(root: Path, asked: argparse.Namespace) -> list[str]:
    said = []
    if asked.unpaired:
        signals = files.read_lines(root / PAIRS / "signals.jsonl", Signal)
        rows = [(trl.layout_of(signal), trl.unpaired(signal)) for signal in signals]
        return _by_layout(asked.out, "signals", rows)
    for split in selection.SPLITS:
        pairs = files.read_lines(root / PAIRS / f"{split}.jsonl", Pair)
        rows = [(trl.layout_of(p), trl.preference(p, implicit=asked.implicit)) for p in pairs]
        said += _by_layout(asked.out, split, rows)
    return said


def _by_layout(out: Path, name: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Write rows to one file a layout: TRL takes no mixture."""
    said = []
    for layout in sorted({layout for layout, _ in rows}):
        path = out / layout / f"{name}.jsonl"
        count = files.write_lines(path, [row for at, row in rows if at == layout])
        said.append(f"{path}: {count} rows")
    return said or [f"{name}: no rows"]


def _pairs_csv_out(root: Path, asked: argparse.Namespace) -> list[str]:
    said = []
    for split in selection.SPLITS:
        pairs = files.read_lines(root / PAIRS / f"{split}.jsonl", Pair)
        files.write_text(asked.out / f"{split}.csv", csv_pairs.write(pairs))
        said.append(f"{asked.out / split}.csv: {len(pairs)} pairs")
    return said


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert", description="completions and labels to other tools and back"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for tool in ("argilla", "label-studio", "csv"):
        out = verbs.add_parser(f"{tool}-out", help="write tasks, or with --labels what was said")
        out.add_argument("out", type=Path)
        out.add_argument("--labels", action="store_true", help="of data/labels, with their tasks")
        out.add_argument("--criterion", help="what is asked; with --labels, those of it alone")
        out.add_argument("--role", action="append", default=[], help="of the prompts")
        out.add_argument("--sampler", action="append", default=[], help="of the completions")
        out.add_argument("--completions", type=_count, help="tasks with this number of them")
        out.add_argument("--first", type=_count, help="at most this number of tasks, by hash")
        out.add_argument("--users", type=Path, help="JSON: labelers and their ids in the tool")
        back = verbs.add_parser(f"{tool}-in", help="add what the tool exported to data/labels")
        back.add_argument("files", type=Path, nargs="+")
        back.add_argument("--revise", action="store_true", help="changed labels are new revisions")
        if tool == "csv":
            back.add_argument("--criterion", help="of rows that state none")
            continue
        back.add_argument("--users", type=Path, help="JSON: labelers and their ids in the tool")
        back.add_argument(
            "--strict-order", action="store_true", help="an order without ranks counts"
        )
        if tool == "label-studio":
            out.add_argument("--pairwise", action="store_true", help="two at a time")
    trained = verbs.add_parser("trl-out", help="write data/pairs for TRL")
    trained.add_argument("out", type=Path)
    form = trained.add_mutually_exclusive_group()
    form.add_argument("--implicit", action="store_true", help="prompt and answer as one text")
    form.add_argument("--unpaired", action="store_true", help="of data/pairs/signals.jsonl")
    table = verbs.add_parser("pairs-csv-out", help="write data/pairs as tables")
    table.add_argument("out", type=Path)
    return parser


VERBS = {
    "argilla-out": _argilla_out,
    "argilla-in": _argilla_in,
    "label-studio-out": _label_studio_out,
    "label-studio-in": _label_studio_in,
    "csv-out": _csv_out,
    "csv-in": _csv_in,
    "trl-out": _trl_out,
    "pairs-csv-out": _pairs_csv_out,
}


def run(words: Sequence[str], root: Path) -> list[str]:
    """Do what a command line says, in a repository, and return what to print."""
    asked = _parser().parse_args(words)
    return VERBS[asked.verb](root, asked)


@refusal.in_one_line
def main() -> None:
    """Do what the command line says."""
    print("\n".join(run(sys.argv[1:], Path())))


if __name__ == "__main__":
    sys.exit(main())
