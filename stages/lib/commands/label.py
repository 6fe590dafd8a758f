"""Serve the labelling page to one labeler of this machine, or write it as one file for another.

    python -m stages.lib.commands.label ann [--criterion helpful] [--task thumbs] [--port 8765]
    python -m stages.lib.commands.label ann --export ann.html

Reads params.yaml (labelers, samplers), data/prompts and data/completions; writes the labeler's file
in the folder that labelers.people.reads names. What it asks beside the page is nothing: no MLflow,
no model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.lib import selection
from stages.lib.commands import refusal
from stages.lib.labelers import people
from stages.lib.labelers.people import People
from stages.lib.labelling import page, plan, server
from stages.lib.labelling.book import Book
from stages.lib.labelling.page import Sheet
from stages.lib.records import Completion, Prompt
from stages.lib.runtime import files, params
from stages.lib.runtime.params import ParamError
from stages.lib.runtime.schema import Refusal

PROMPTS, COMPLETIONS = Path("data/prompts"), Path("data/completions")
ENTRY = "labelers.people"
CRITERIA = ("helpful", "honest", "harmless", "overall")
PORT = 8765


class LabelError(Refusal):
    """Nobody can label so."""


def open_session(
    labeler: str, criterion: str | None = None, task: str | None = None
) -> tuple[Sheet, Book]:
    """Return what a labeler's page shows, and their file.

    Args:
        labeler: who labels.
        criterion: instead of that of params.yaml.
        task: likewise.

    Raises:
        Refusal: there is nothing to label yet, or this labeler may not.
    """
    settings = params.read()
    asked: People = params.load(ENTRY, People)
    asked = _overridden(asked, criterion, task)
    require_labeler(labeler, asked, params.section(settings, "labelers"))
    prompts, completions = _given(asked, settings)
    folder = Path(asked.reads)
    gold = _gold(asked, labeler, folder)
    sheet = Sheet(
        labeler=labeler,
        kind=asked.task,
        criterion=asked.criterion,
        tasks=plan.tasks(asked, labeler, prompts, completions, gold),
        instructions=page.instructions(Path(asked.guide)),
        tie_warning=asked.tie_warning,
        file=str(folder / f"{labeler}.jsonl"),
    )
    if not sheet.tasks:
        raise LabelError(
            f"params.yaml: {ENTRY}: no prompt falls to {labeler}; raise `overlap` or `prompts`"
        )
    return sheet, Book(folder / f"{labeler}.jsonl")


def _overridden(asked: People, criterion: str | None, task: str | None) -> People:
    known = sorted({*CRITERIA, asked.criterion})
    if criterion is not None and criterion not in known:
        raise LabelError(
            f"CRITERION={criterion}: labels of a misspelt criterion would count for nothing; it "
            f"is one of {', '.join(known)}, or another that {ENTRY}.criterion names"
        )
    kinds = ("ranking", "thumbs", "demonstration")
    if task is not None and task not in kinds:
        raise LabelError(f"TASK={task}: must be one of {', '.join(kinds)}")
    given = {"criterion": criterion, "task": task}
    return asked.model_copy(update={key: value for key, value in given.items() if value})


def require_labeler(labeler: str, asked: People, labelers: dict[str, Any]) -> None:
    """Check that a name can stand for one person.

    Raises:
        LabelError: it is no name, is a labeler's of another kind, is none of the team, or differs
            from a colleague's in case only.
    """
    if not people.is_name(labeler):
        raise LabelError(
            f"LABELER={labeler}: a name begins with a letter or digit and has letters, digits and "
            "_ . # - only, as in `make label LABELER=ann`"
        )
    if labeler in labelers:
        raise LabelError(
            f"LABELER={labeler}: params.yaml has labelers.{labeler}; take a name of your own"
        )
    if asked.team and labeler not in asked.team and labeler != asked.gold:
        raise LabelError(
            f"LABELER={labeler}: {ENTRY}.team has {', '.join(asked.team)}; add the name there"
        )
    if asked.overlap > len(asked.team) > 0:
        raise ParamError(
            f"params.yaml: {ENTRY}.overlap is {asked.overlap}, and the team has {len(asked.team)}"
        )
    for file in sorted(Path(asked.reads).glob("*.jsonl")):
        if file.stem != labeler and file.stem.casefold() == labeler.casefold():
            raise LabelError(
                f"LABELER={labeler}: {file} is there, and one person under two names would vote "
                f"twice; LABELER={file.stem}, or take another name"
            )


def _given(asked: People, settings: dict[str, Any]) -> tuple[list[Prompt], list[Completion]]:
    samplers = settings.get("samplers") or {}
    for name in asked.samplers:
        if name not in samplers:
            raise ParamError(
                f"params.yaml: {ENTRY}.samplers: there is no samplers.{name}; there are "
                f"{', '.join(samplers) or 'none'}"
            )
    paths = [PROMPTS / f"{split}.jsonl" for split in selection.SPLITS]
    for path in paths:
        if not path.is_file():
            raise LabelError(f"{path}: no such file; `dvc repro sample` makes what is labeled")
    prompts = selection.every(PROMPTS)
    if asked.task == "demonstration":
        return prompts, []
    found = files.entry_files(COMPLETIONS, samplers, section="samplers")
    shown = asked.samplers or sorted(found)
    return prompts, [row for name in shown for row in files.read_lines(found[name], Completion)]


def _gold(asked: People, labeler: str, folder: Path) -> set[tuple[object, ...]]:
    """What the answer key ranks; nothing where the key is about to be made, or is not asked for."""
    if asked.gold is None or asked.task != "ranking" or labeler == asked.gold:
        return set()
    file = folder / f"{asked.gold}.jsonl"
    if not file.is_file():
        raise LabelError(
            f"params.yaml: {ENTRY}.gold is {asked.gold}, and there is no {file}; whoever makes the "
            f"answer key begins: `make label LABELER={asked.gold}`"
        )
    return plan.gold_subjects([label for _, label in people.read(file)], asked.criterion)


def greeting(sheet: Sheet, kept: Book, url: str) -> list[str]:
    """Return what a labeler reads in the terminal."""
    done = {label.subject for label in kept.labels()}
    left = sum(task.subject not in done for task in sheet.tasks)
    lines = [
        *kept.repaired,
        f"{len(sheet.tasks)} tasks for {sheet.labeler} ({sheet.kind}, {sheet.criterion}), "
        f"{left} to do",
    ]
    wasted = sum(task.prompt.role in ("validation", "test") for task in sheet.tasks)
    if sheet.kind == "demonstration" and wasted:
        lines.append(
            f"{wasted} of their prompts have role validation or test, and no policy learns from "
            f"those; {ENTRY}.roles says which are asked"
        )
    return [*lines, f"open {url}", f"answers go to {sheet.file}; Ctrl-C ends"]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the labelling page of one labeler")
    parser.add_argument("labeler", help="who labels; names their file")
    parser.add_argument("--criterion", help="helpful, honest, harmless or overall")
    parser.add_argument("--task", help="ranking, thumbs or demonstration")
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: a free one")
    parser.add_argument("--export", type=Path, help="write the page as one file instead")
    return parser.parse_args(argv)


@refusal.in_one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C, or write one file."""
    given = _arguments(argv)
    sheet, kept = open_session(given.labeler, given.criterion, given.task)
    if given.export:
        files.write_text(given.export, page.export(sheet, kept.labels()))
        print(
            f"{given.export}: {len(sheet.tasks)} tasks; what {sheet.labeler} downloads from it "
            f"takes the place of {sheet.file}"
        )
        return
    serving = server.Server(given.port, sheet, kept)
    before = len(kept.labels())
    server.serve(serving, greeting(sheet, kept, serving.url))
    print(
        f"\n{len(kept.labels()) - before} lines more in {sheet.file}; `dvc repro` takes them in",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
