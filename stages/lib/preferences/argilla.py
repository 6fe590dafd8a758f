"""Argilla: records with a ranking question, as its server's API has them.

Out: the body of `POST /api/v1/datasets/{id}/records/bulk`, at most 500 items a request; in: the
answer of `GET /api/v1/datasets/{id}/records?include=responses` (argilla-server,
api/schemas/v1/records.py, responses.py and records_bulk.py; docs.argilla.io, "Add, update, and
delete records").

    {"items": [{"external_id": …, "fields": {"prompt": …, "completion_1": …, …},
                "metadata": {"prompt_id": …, "criterion": …, "completion_1": "<id>", …},
                "responses": [{"user_id": …, "status": "submitted", "values": {
                    "ranking": {"value": [{"value": "completion_1", "rank": 2}, …]},
                    "junk": {"value": ["completion_3"]}, "note": …, "record": …}}]}]}

The server takes a submitted ranking only where every option is ranked, and one response a person
and record: so a dataset has one number of completions, what is junk is ranked as well and ticked in
the question `junk`, and of a labeler's revisions only the last goes out. A discarded response is a
skip, its note the reason. Drafts, and suggestions, which are models', are counted and not read.

**The Python SDK's `to_json` and `to_dict` drop the ranks and keep the order alone** (argilla,
responses.py, `__ranking_from_model_value`), so ties are lost; and the page lets a labeler submit
the order shown (argilla 5712). Such a file is refused unless `strict_order` says that no one tied.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.lib.importers import Row
from stages.lib.preferences.form import refuse
from stages.lib.preferences.tools import (
    Known,
    Read,
    Task,
    ToolError,
    listed,
    object_of,
    ranking_of,
    rest_from,
    rest_of,
    skip_of,
)
from stages.lib.records import AnyLabel, Ranking, Skip

DISCARDED = "discarded in Argilla"


def settings(size: int) -> str:
    """Return Python that makes the dataset for tasks of `size` completions."""
    slots = _slots(size)
    return f"""\
import argilla as rg

client = rg.Argilla(api_url="<url>", api_key="<key>")
slots = {slots}
settings = rg.Settings(
    guidelines=open("data/labels/instructions.md").read(),
    fields=[rg.TextField(name="prompt"), *[rg.TextField(name=slot) for slot in slots]],
    questions=[
        rg.RankingQuestion(name="ranking", values=slots, title="Best to worst; ties share a rank"),
        rg.MultiLabelQuestion(name="junk", labels=slots, required=False, title="Nonsense"),
        rg.TextQuestion(name="note", required=False),
        rg.TextQuestion(name="record", required=False, title="Leave blank (for the way back)"),
    ],
    allow_extra_metadata=True,
)
dataset = rg.Dataset(name="plumbline", settings=settings, client=client).create()
# Then send the items, at most 500 a request, with the key in the header X-Argilla-Api-Key:
#   POST <url>/api/v1/datasets/{{dataset.id}}/records/bulk
# and when all is labeled, save what this answers, and give it to `convert argilla-in`:
#   GET  <url>/api/v1/datasets/{{dataset.id}}/records?include=responses&limit=1000
"""


def _slots(size: int) -> list[str]:
    return [f"completion_{number}" for number in range(1, size + 1)]


def write(tasks: Sequence[Task], users: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """Return tasks as records, and how many labels a later revision stands for.

    Args:
        tasks: with the same number of completions each.
        users: labeler to user id, a UUID; needed for those who have labels here.

    Raises:
        ToolError: tasks differ in size, or a labeler has no user id.
    """
    for task in tasks:
        if len(task.completions) != len(tasks[0].completions):
            first = tasks[0]
            raise ToolError(
                f"prompt {first.prompt.id} has {len(first.completions)} completions and "
                f"{task.prompt.id} has {len(task.completions)}; a dataset of Argilla has one "
                "number for all: make one for each, by --completions"
            )
    kept = [_last(task.labels) for task in tasks]
    superseded = sum(len(task.labels) - len(last) for task, last in zip(tasks, kept, strict=True))
    items = [_record(task, last, users) for task, last in zip(tasks, kept, strict=True)]
    return {"items": items}, superseded


def _last(labels: Sequence[Ranking | Skip]) -> list[Ranking | Skip]:
    by_labeler: dict[str, Ranking | Skip] = {}
    for label in labels:
        before = by_labeler.get(label.labeler, label)
        by_labeler[label.labeler] = max(before, label, key=lambda one: one.revision)
    return list(by_labeler.values())


def _record(
    task: Task, labels: Sequence[Ranking | Skip], users: Mapping[str, str]
) -> dict[str, Any]:
    slot_of = dict(
        zip((c.id for c in task.completions), _slots(len(task.completions)), strict=True)
    )
    texts = {slot_of[c.id]: c.text for c in task.completions}
    ids = {slot: cid for cid, slot in slot_of.items()}
    about = {"prompt_id": task.prompt.id, "criterion": task.criterion, "repeat": task.repeat}
    return {
        "external_id": task.id,
        "fields": {"prompt": task.prompt.plain(), **texts},
        "metadata": about | ids,
        "responses": [_response(label, slot_of, users) for label in labels],
    }


def _response(
    label: Ranking | Skip, slot_of: Mapping[str, str], users: Mapping[str, str]
) -> dict[str, Any]:
    if label.labeler not in users:
        raise ToolError(f"{label.labeler} has no user id; name it in the file of --users")
    values: dict[str, Any] = {}
    held = ["note"] if label.note else []
    if label.note:
        values["note"] = label.note
    if isinstance(label, Ranking):
        last = len(label.ranks) + 1
        ranks = {**label.ranks, **dict.fromkeys(label.junk, last)}
        values["ranking"] = [{"value": slot_of[cid], "rank": r} for cid, r in ranks.items()]
        values["junk"] = [slot_of[cid] for cid in label.junk]
        if not label.junk:
            del values["junk"]
    values["record"] = rest_of(label, held=held)
    return {
        "user_id": users[label.labeler],
        "status": "submitted" if isinstance(label, Ranking) else "discarded",
        "values": {question: {"value": value} for question, value in values.items()},
    }


def read(
    rows: Iterable[Row], known: Known, users: Mapping[str, str], *, strict_order: bool
) -> Read:
    """Return the labels of records.

    Args:
        rows: the items, each with where it stands.
        known: what labels may be about.
        users: user id to labeler; one that is not named is called by their id.
        strict_order: read an order without ranks as one without ties.

    Raises:
        RecordError: a record is not of this project, or a response is no ranking.
    """
    found = Read([], Counter())
    for where, _, row in rows:
        record = object_of(row, where, "a record")
        about = object_of(record.get("metadata"), where, "metadata")
        slots = sorted((k for k in about if k.startswith("completion_")), key=_number_of)
        fields = object_of(record.get("fields"), where, "fields")
        ids = {slot: str(about[slot]) for slot in slots}
        known.require(about.get("prompt_id"), {ids[s]: fields.get(s) for s in slots}, where)
        found.left_out["suggestions"] += len(record.get("suggestions") or [])
        for response in _responses(record, where):
            label = _label(response, about, ids, users, where, strict_order)
            if label is None:
                found.left_out["draft"] += 1
            else:
                found.labels.append((where, label))
    return Read(found.labels, +found.left_out)


def _number_of(slot: str) -> int:
    number = slot.removeprefix("completion_")
    return int(number) if number.isdigit() else 0


def _responses(record: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the responses of the API's form; those of the SDK's are put into it."""
    given = record.get("responses") or []
    if not isinstance(given, dict):
        return [object_of(one, where, "a response") for one in listed(given, where, "responses")]
    by_user: dict[str, dict[str, Any]] = defaultdict(dict)
    for question, answers in given.items():
        for answer in listed(answers, where, question):
            one = object_of(answer, where, question)
            by_user[str(one.get("user_id"))][question] = {"value": one.get("value")}
    return [{"user_id": u, "status": "submitted", "values": v} for u, v in by_user.items()]


def _label(
    response: Mapping[str, Any],
    about: Mapping[str, Any],
    ids: Mapping[str, str],
    users: Mapping[str, str],
    where: str,
    strict_order: bool,
) -> AnyLabel | None:
    if response.get("status") == "draft":
        return None
    values = object_of(response.get("values") or {}, where, "values")
    said = {name: object_of(one, where, name).get("value") for name, one in values.items()}
    rest = rest_from(said.get("record"), where)
    user = str(response.get("user_id"))
    common = {
        "criterion": about.get("criterion"),
        "prompt_id": about.get("prompt_id"),
        "labeler": users.get(user, user),
        "repeat": bool(about.get("repeat", False)),
        "submitted": response.get("updated_at"),
    }
    if said.get("note"):
        common["note"] = said["note"]
        rest.pop("note", None)
    if response.get("status") == "discarded":
        if "reason" not in rest:
            common.pop("note", None)  # it is the reason
        return skip_of(
            [*ids.values()], {"reason": said.get("note") or DISCARDED} | rest, common, where
        )
    places = _places(said.get("ranking"), ids, where, strict_order)
    junk = [_id_of(slot, ids, where) for slot in listed(said.get("junk") or [], where, "junk")]
    shown = {cid: places[cid] for cid in ids.values() if cid in places}
    return ranking_of(shown, junk, rest, common, where)


def _places(
    ranking: Any, ids: Mapping[str, str], where: str, strict_order: bool
) -> dict[str, float]:
    places: dict[str, float] = {}
    for at, one in enumerate(listed(ranking, where, "ranking"), start=1):
        rank: Any = at
        slot = one
        if isinstance(one, dict):
            slot, rank = one.get("value"), one.get("rank")
        elif not strict_order:
            refuse(
                where,
                "its ranking has no ranks: the SDK's export drops them, and ties with them; take "
                "the API's, or say --strict-order if nobody tied",
            )
        if type(rank) is not int:
            refuse(where, f"ranks {slot} as {rank!r}, which is no rank")
        places[_id_of(slot, ids, where)] = rank
    if len(places) != len(ids):
        refuse(where, f"ranks {len(places)} of {len(ids)} completions")
    return places


def _id_of(slot: Any, ids: Mapping[str, str], where: str) -> str:
    if slot not in ids:
        refuse(where, f"names {slot}, which its metadata does not have ({', '.join(ids)})")
    return ids[slot]
