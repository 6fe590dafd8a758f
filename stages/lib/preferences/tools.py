"""What goes out to a labelling tool and comes back: tasks of completions, and labels on them.

A tool ranks one prompt's completions; what else a label has travels beside its answers as one text
of JSON, so that the way back is exact. Thumbs and written answers have no place in such a task:
they are counted, and the table of labels (`csv_labels`) holds them.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.lib import order
from stages.lib.preferences.form import competition, refuse
from stages.lib.records import AnyLabel, Completion, Ranking, Skip, SourcePrompt
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, check

JUNK = "junk"
"""Reason of a junk completion where the tool's user gives none."""

REST = (
    "confidence", "junk", "note", "ms_active", "submitted", "instructions_sha", "task_sha",
    "revision", "repeat", "scores", "preferences", "shown", "reason",
)  # fmt: skip
"""What of a label travels as JSON; of these, what the tool has a place for is left out of it."""


class ToolError(Refusal):
    """Labels or completions that a tool's format cannot hold."""


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt with completions to rank, and what was said of them."""

    criterion: str
    prompt: SourcePrompt
    completions: list[Completion]
    """In the order the tool shows them."""
    repeat: bool = False
    """Asked again to see whether labelers agree with themselves."""
    labels: list[Ranking | Skip] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Name of the task, the same whenever it is made."""
        parts = (self.criterion, self.prompt.id, *sorted(c.id for c in self.completions))
        digest = hashlib.sha256("\n".join((*parts, str(self.repeat))).encode()).hexdigest()[:12]
        return f"{self.criterion}:{self.prompt.id}:{digest}"


@dataclass(frozen=True, slots=True)
class Known:
    """Prompts and completions that labels may be about, by id."""

    prompts: Mapping[str, SourcePrompt]
    completions: Mapping[str, Completion]

    def require(self, prompt_id: Any, texts: Mapping[str, str | None], where: str) -> None:
        """Refuse a task that is not about this project's own texts.

        Args:
            prompt_id: of the task.
            texts: completion id to text as the tool has it; None where it has none.
            where: of the task.

        Raises:
            RecordError: a prompt or completion is not known, or a text was changed.
        """
        if prompt_id not in self.prompts:
            refuse(where, f"is about prompt {prompt_id}, which the prompts folder does not have")
        for cid, text in texts.items():
            known = self.completions.get(cid)
            if known is None or known.prompt_id != prompt_id:
                refuse(where, f"has completion {cid}, which prompt {prompt_id} does not have")
            if text is not None and text != known.text:
                refuse(where, f"has another text of completion {cid} than the completions folder")


@dataclass(frozen=True, slots=True)
class Read:
    """What came back from a tool."""

    labels: list[tuple[str, AnyLabel]]
    """Each with where it stands."""
    left_out: Counter[str]
    """What was no finished label of a person, by reason."""


def open_tasks(known: Known, criterion: str) -> list[Task]:
    """Return a task for each prompt with two or more completions, unlabeled.

    Completions are in the order of a hash, so that no sampler stands first.
    """
    of_prompt: dict[str, list[Completion]] = defaultdict(list)
    for completion in known.completions.values():
        of_prompt[completion.prompt_id].append(completion)
    return [
        Task(criterion, known.prompts[prompt_id], _hashed(some))
        for prompt_id, some in sorted(of_prompt.items())
        if len(some) > 1
    ]


def labeled_tasks(
    known: Known, labels: Iterable[tuple[str, AnyLabel]]
) -> tuple[list[Task], Counter[str]]:
    """Return a task for each set of completions that labels rank, with them; count the rest.

    Args:
        known: what labels are about.
        labels: each with where it stands.

    Raises:
        RecordError: a label is about something else.
    """
    left_out: Counter[str] = Counter()
    tasks: dict[tuple[object, ...], Task] = {}
    for where, label in labels:
        if isinstance(label, Skip) and label.task != "ranking":
            left_out[f"skip_of_{label.task}"] += 1
        elif not isinstance(label, Ranking | Skip) or not label.shown:
            left_out[label.kind] += 1
        else:
            known.require(label.prompt_id, dict.fromkeys(label.shown), where)
            key = label.criterion, label.prompt_id, tuple(sorted(label.shown)), label.repeat
            if key not in tasks:
                shown = _hashed([known.completions[cid] for cid in label.shown])
                prompt = known.prompts[label.prompt_id]
                tasks[key] = Task(label.criterion, prompt, shown, label.repeat)
            tasks[key].labels.append(label)
    return [tasks[key] for key in sorted(tasks, key=str)], left_out


def _hashed(completions: Collection[Completion]) -> list[Completion]:
    return sorted(completions, key=lambda c: order.by_hash(c.id))


def rest_of(label: Ranking | Skip, *, held: Collection[str]) -> str:
    """Return what the tool has no place for as JSON, which `label_of` reads.

    Args:
        label: any.
        held: fields that the tool holds itself.
    """
    plain = label.model_dump(mode="json", include=set(REST) - set(held))
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)


def rest_from(text: Any, where: str) -> dict[str, Any]:
    """Read what `rest_of` wrote; nothing where a person left it blank.

    Raises:
        RecordError: it is no such JSON.
    """
    if not text or (isinstance(text, str) and not text.strip()):
        return {}
    try:
        found = json.loads(text)
    except (TypeError, json.JSONDecodeError):
        found = None
    if not isinstance(found, dict) or found.keys() - set(REST):
        refuse(where, f"its field `record` is no JSON that was written here: {str(text)[:40]!r}")
    return found


def ranking_of(
    places: Mapping[str, float],
    junk: Collection[str],
    rest: Mapping[str, Any],
    common: Mapping[str, Any],
    where: str,
) -> Ranking:
    """Return a ranking that was made or kept in a tool.

    Args:
        places: completion id to place, less is better; of junk too, if the tool has them placed.
        junk: ids.
        rest: from `rest_from`.
        common: criterion, prompt_id, labeler, and what the tool says itself.
        where: of the task.

    Raises:
        RecordError: it is no ranking.
    """
    ranked = {cid: place for cid, place in places.items() if cid not in junk}
    reasons = rest.get("junk") or {}
    plain = {"shown": [*places], **common, **rest} | {
        "schema_version": 1,
        "kind": "ranking",
        "ranks": competition(ranked),
        "junk": {cid: reasons.get(cid, JUNK) for cid in junk},
    }
    plain.pop("reason", None)
    found: Ranking = check({"revision": 1} | plain, Ranking, where, RecordError)
    return found


def skip_of(
    shown: Sequence[str], rest: Mapping[str, Any], common: Mapping[str, Any], where: str
) -> Skip:
    """Return a task that was passed over in a tool.

    Raises:
        RecordError: the reason is blank.
    """
    plain = {"shown": [*shown], **common, **rest} | {
        "schema_version": 1,
        "kind": "skip",
        "task": "ranking",
    }
    for key in ("junk", "scores", "preferences"):
        plain.pop(key, None)
    found: Skip = check({"revision": 1} | plain, Skip, where, RecordError)
    return found


def listed(value: Any, where: str, name: str) -> list[Any]:
    """Return a list.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(value, list):
        refuse(where, f"{name} must be a list, not {type(value).__name__}")
    return value


def object_of(value: Any, where: str, name: str) -> dict[str, Any]:
    """Return an object.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(value, dict):
        refuse(where, f"{name} must be an object, not {type(value).__name__}")
    return value
