"""The labelling page as text: served by this machine, or one file for labelers without Python.

Both have the same markup, style and script. Prompts and completions travel as JSON in which no
character can end the element that holds it, and the script inserts every text as text.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from stages.lib.labelling.plan import Kind, Task
from stages.lib.records import AnyLabel, Label, Ranking, Skip, Thumbs, Written
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8").strip()
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8").strip()
RULE = "\n---\n"


@dataclass(frozen=True, slots=True)
class Instructions:
    """What labelers are told."""

    sha256: str
    """Of the file, in every record."""
    short: Markup
    long: Markup


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one labeler's page shows."""

    labeler: str
    kind: Kind
    criterion: str
    tasks: Sequence[Task]
    instructions: Instructions
    tie_warning: float
    """Share of ties above which the page warns."""
    file: str
    """Where the answers lie, as the labeler is told."""


def instructions(path: Path) -> Instructions:
    """Read what labelers are told: a short form, a line `---`, and a long form.

    Raises:
        RecordError: the file is absent or no such text.
    """
    text = files.read_text(path, absent="labelers.people.guide of params.yaml names it")
    short, rule, long = text.replace("\r\n", "\n").partition(RULE)
    if not rule or not short.strip() or not long.strip():
        raise RecordError(f"{path}: must be a short form, a line '---' and a long form")
    return Instructions(files.sha256(path), _html(short), _html(long))


def _html(markdown: str) -> Markup:
    """Render without HTML of its own, headings a level down: the page has the first."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        for child in token.children or []:
            if child.type == "link_open":
                child.attrs |= {"target": "_blank", "rel": "noreferrer"}
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def live(sheet: Sheet, lines: Sequence[AnyLabel], *, token: str) -> str:
    """Return the page that this machine serves.

    Args:
        sheet: what it shows.
        lines: what stands in the labeler's file.
        token: what the page proves with that an answer comes from it.
    """
    return _render(sheet, {**_work(sheet, lines), "token": token}, {})


def export(sheet: Sheet, lines: Sequence[AnyLabel]) -> str:
    """Return the page as one file that needs no network; equal arguments give equal bytes."""
    inline = {
        "style": Markup(STYLE),
        "script": Markup(SCRIPT),
        "style_hash": _hash(STYLE),
        "script_hash": _hash(SCRIPT),
    }
    return _render(sheet, {**_work(sheet, lines), "token": None}, inline)


def _render(sheet: Sheet, work: dict[str, Any], inline: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(work=work, inline=inline, sheet=sheet)


def _work(sheet: Sheet, lines: Sequence[AnyLabel]) -> dict[str, Any]:
    """What the script reads."""
    return {
        "labeler": sheet.labeler,
        "kind": sheet.kind,
        "criterion": sheet.criterion,
        "file": sheet.file,
        "instructions_sha": sheet.instructions.sha256,
        "tie_warning": sheet.tie_warning,
        "blank": {sheet.kind: _blank(RECORDS[sheet.kind]), "skip": _blank(Skip)},
        "tasks": [_task(task) for task in sheet.tasks],
        "lines": [label.model_dump(mode="json") for label in lines],
    }


RECORDS: dict[Kind, type[Label]] = {
    "ranking": Ranking,
    "thumbs": Thumbs,
    "demonstration": Written,
}


def _blank(record: type[Label]) -> dict[str, Any]:
    """Every field of a record that has a default: the page writes all that pydantic does."""
    fields = record.model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()}


def _task(task: Task) -> dict[str, Any]:
    prompt = task.prompt.model_dump(mode="json", include={"form", "text", "messages"})
    shown = [one.model_dump(include={"id", "text", "finish"}) for one in task.shown]
    return {
        "id": task.id,
        "sha": task.sha,
        "prompt_id": task.prompt.id,
        "repeat": task.repeat,
        **prompt,
        "shown": shown,
    }


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
