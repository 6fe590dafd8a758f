"""Which tasks a labeler is given, and in what order: derived from params, prompts and names alone.

Nothing here is drawn. Who gets a prompt, which rankings are asked twice and how answers are
shuffled are hashes of names, so that two machines agree and added prompts move no task.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal

from stages.lib import order
from stages.lib.labelers import people
from stages.lib.labelers.people import People
from stages.lib.labelers.ranks import by_prompt
from stages.lib.records import AnyLabel, Completion, Prompt, Ranking, Skip
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.params import ParamError

Kind = Literal["ranking", "thumbs", "demonstration"]
KEYS = 9  # digits that rank an answer; InstructGPT's labelers ranked 4 to 9
GAP = 20  # tasks between a ranking and its repeat: enough to forget which was which


@dataclass(frozen=True)
class Task:
    """One thing that a labeler is asked."""

    kind: Kind
    criterion: str
    prompt: Prompt
    shown: tuple[Completion, ...]
    """In the order of the page; one for thumbs, none for an answer to be written."""
    repeat: bool = False

    @cached_property
    def subject(self) -> tuple[object, ...]:
        """What the labels that answer this task are about."""
        return Skip(
            schema_version=1,
            kind="skip",
            task=self.kind,
            criterion=self.criterion,
            prompt_id=self.prompt.id,
            labeler="anybody",
            shown=[completion.id for completion in self.shown],
            repeat=self.repeat,
            reason="only to name the subject",
            revision=1,
        ).subject

    @cached_property
    def sha(self) -> str:
        """SHA-256 of what is shown, `people.shown_sha`."""
        return people.shown_sha(self.criterion, self.prompt, self.shown)

    @cached_property
    def id(self) -> str:
        """Short name of the task and of the texts in it."""
        return _sha256([self.subject, self.sha])[:16]


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tasks(
    asked: People,
    labeler: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    gold: Collection[tuple[object, ...]] = (),
) -> list[Task]:
    """Return a labeler's tasks in the order they are asked.

    Args:
        asked: `labelers.people`, with the criterion and kind of this session.
        labeler: who is asked.
        prompts: all there are.
        completions: of the samplers that are shown.
        gold: subjects of the rankings that everybody is measured against.

    Raises:
        ParamError: no prompt fits, or one has more completions than the page has keys.
    """
    everything = _open(asked, prompts, by_prompt(completions))
    chosen = everything[: asked.prompts]
    own = [one for one in chosen if labeler in assigned(asked, one[0].id, labeler)]
    if asked.task != "ranking":
        return _each(asked, labeler, own)
    mine = {prompt.id for prompt, _ in own}
    rankings = [
        task
        for prompt, some in everything
        for task in [_ranking(asked, labeler, prompt, some, repeat=False)]
        if prompt.id in mine or task.subject in gold
    ]
    return _with_repeats(asked, labeler, rankings)


def _open(
    asked: People, prompts: Sequence[Prompt], answers: dict[str, list[Completion]]
) -> list[tuple[Prompt, list[Completion]]]:
    """Every prompt that may be asked about, with its completions, in the order of hashes."""
    # Two answers make a ranking, one can be judged by itself, and a prompt alone be answered.
    needed = {"ranking": 2, "thumbs": 1, "demonstration": 0}[asked.task]
    found = [
        (prompt, answers.get(prompt.id, []))
        for prompt in sorted(prompts, key=lambda one: order.by_hash(one.id))
        if prompt.role in asked.roles
        and (not asked.categories or prompt.category in asked.categories)
        and len(answers.get(prompt.id, [])) >= needed
    ]
    if not found:
        with_answers = f" and {needed} completions or more" if needed else ""
        raise ParamError(
            "params.yaml: labelers.people: no prompt has one of the roles "
            f"{', '.join(asked.roles)}, one of the categories "
            f"({', '.join(asked.categories) or 'any'}){with_answers}"
        )
    for prompt, some in found:
        if asked.task == "ranking" and len(some) > KEYS:
            raise ParamError(
                f"params.yaml: labelers.people.samplers: prompt {prompt.id} has {len(some)} "
                f"completions, and the page ranks {KEYS} at most; name fewer samplers"
            )
    return found


def assigned(asked: People, prompt_id: str, labeler: str) -> list[str]:
    """Return who labels a prompt: the `overlap` of the team with the highest hashes with it.

    Rendezvous hashing (Thaler and Ravishankar 1998): another prompt changes nothing here, and a
    new colleague only takes prompts over. Without a team, and for gold's own labels, it is
    whoever comes.
    """
    if not asked.team or labeler == asked.gold:
        return [labeler]
    ordered = sorted(asked.team, key=lambda name: order.by_hash(f"{name}\n{prompt_id}"))
    return ordered[: asked.overlap]


def shuffled(
    completions: Iterable[Completion], labeler: str, criterion: str, *, repeat: bool = False
) -> tuple[Completion, ...]:
    """Return a prompt's completions in the order that one labeler sees them."""
    again = "again" if repeat else ""
    key = f"{labeler}\n{criterion}\n{again}"
    return tuple(sorted(completions, key=lambda one: order.by_hash(f"{key}\n{one.id}")))


def _ranking(
    asked: People, labeler: str, prompt: Prompt, some: Iterable[Completion], *, repeat: bool
) -> Task:
    shown = shuffled(some, labeler, asked.criterion, repeat=repeat)
    return Task("ranking", asked.criterion, prompt, shown, repeat)


def _with_repeats(asked: People, labeler: str, rankings: Sequence[Task]) -> list[Task]:
    """Ask a share of the rankings again, each GAP tasks later, half of all where there are few.

    The last ones are never repeated, nor is a lone one: they would come again at once.
    """
    gap = min(GAP, len(rankings) // 2)
    if gap == 0:
        return list(rankings)
    later: dict[int, Task] = {}
    for place, task in enumerate(rankings[: len(rankings) - gap]):
        drawn = order.place(f"again\n{labeler}\n{asked.criterion}\n{task.prompt.id}")
        if drawn < asked.repeats:
            again = _ranking(asked, labeler, task.prompt, task.shown, repeat=True)
            later[place + gap] = again
    found: list[Task] = []
    for place, task in enumerate(rankings):
        found.append(task)
        if place in later:
            found.append(later[place])
    return found


def _each(
    asked: People, labeler: str, own: Sequence[tuple[Prompt, list[Completion]]]
) -> list[Task]:
    """One task a completion, or one a prompt where the answer is to be written.

    The first answer of every prompt comes before the second of any, so that each is judged by
    itself and not against its neighbour.
    """
    if asked.task == "demonstration":
        return [Task("demonstration", asked.criterion, prompt, ()) for prompt, _ in own]
    columns = [
        [Task("thumbs", asked.criterion, prompt, (one,)) for one in order_of]
        for prompt, some in own
        for order_of in [shuffled(some, labeler, asked.criterion)]
    ]
    return [task for row in zip_longest(*columns) for task in row if task]


def gold_subjects(labels: Iterable[AnyLabel], criterion: str) -> set[tuple[object, ...]]:
    """Return what the answer key ranks by this criterion; of each the highest revision counts."""
    last: dict[tuple[object, ...], AnyLabel] = {}
    for label in labels:
        key = label.subject
        last[key] = max(last.get(key, label), label, key=lambda one: one.revision)
    return {
        key
        for key, label in last.items()
        if isinstance(label, Ranking) and label.criterion == criterion and not label.repeat
    }


def require_answers(label: AnyLabel, task: Task, labeler: str, instructions_sha: str) -> None:
    """Check that a label says what was asked of whom.

    Raises:
        RecordError: it differs from the task, or a text of it is blank.
    """
    shown = [one.id for one in task.shown]
    said = label.about
    for field, found, wanted in (
        ("labeler", label.labeler, labeler),
        ("instructions_sha", label.instructions_sha, instructions_sha),
        ("task_sha", label.task_sha, task.sha),
        ("subject", label.subject, task.subject),
        ("shown", said, shown),
    ):
        if found != wanted:
            raise RecordError(f"label.{field} is {found!r}, and the task has {wanted!r}")
    _require_readable(label)


def _require_readable(label: AnyLabel) -> None:
    plain = label.model_dump(mode="python")
    texts = {key: plain[key] for key in ("note", "answer", "reason") if key in plain}
    texts |= {f"junk.{key}": reason for key, reason in plain.get("junk", {}).items()}
    for field, text in texts.items():
        if text is not None and not text.strip():
            raise RecordError(f"label.{field} is blank; write something, or leave it out")
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise RecordError(f"label.{field} holds half of a character; type it again") from None
