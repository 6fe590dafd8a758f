"""Label Studio: tasks and annotations, as its JSON import and export have them.

Two kinds of task. `ranker`: `List` and `Ranker` with a `Bucket` for every rank and one for junk, so
that ties have a place and nothing is ranked until it is dragged; `pairwise`: two texts and
`Pairwise`, which knows no tie and no junk (labelstud.io/tags/ranker, /tags/list, /tags/pairwise;
/guide/export, "Label Studio JSON format of annotated tasks").

    {"data": {"prompt": …, "prompt_id": …, "criterion": …,
              "items": [{"id": …, "title": "A", "body": …}, …]},
     "annotations": [{"completed_by": 3, "was_cancelled": false, "lead_time": 12.5, "result": [
         {"from_name": "rank", "to_name": "items", "type": "ranker",
          "value": {"ranker": {"rank_1": ["<id>"], "rank_2": […], "junk": […]}}},
         {"from_name": "note", "to_name": "prompt", "type": "textarea", "value": {"text": […]}},
         {"from_name": "record", …}]}]}

A cancelled annotation is a skip, its note the reason. An empty bucket between two full ones makes
no difference. Drafts and predictions, which are models', are counted and not read. **A `Ranker`
without buckets saves the order shown where nobody touched it**; such a result is refused unless
`strict_order` says that it was meant. In a pairwise task a tie, junk, or more than two completions
are refused on the way out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any
from xml.sax.saxutils import quoteattr

from stages.lib.importers import Row
from stages.lib.preferences.form import number, refuse
from stages.lib.preferences.tools import (
    JUNK,
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

CANCELLED = "cancelled in Label Studio"
UNRANKED = "_"
"""Column of what lies in no bucket; an internal name of the frontend's."""
TEXTS = """\
  <TextArea name="note" toName="prompt" placeholder="Note, or why you skip" maxSubmissions="1"/>
  <TextArea name="record" toName="prompt" placeholder="Leave blank" maxSubmissions="1"/>
"""


def ranker_config(size: int, question: str) -> str:
    """Return the labeling configuration for tasks of up to `size` completions."""
    buckets = "".join(
        f'    <Bucket name="rank_{rank}" title="{rank}{" (best)" if rank == 1 else ""}"/>\n'
        for rank in range(1, size + 1)
    )
    return f"""\
<View>
  <Header value={quoteattr(question)}/>
  <Text name="prompt" value="$prompt"/>
  <List name="items" value="$items" title="Not yet ranked"/>
  <Ranker name="rank" toName="items">
{buckets}    <Bucket name="junk" title="Nonsense"/>
  </Ranker>
{TEXTS}</View>
"""


def pairwise_config(question: str) -> str:
    """Return the labeling configuration for tasks of two completions."""
    return f"""\
<View>
  <Header value={quoteattr(question)}/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="choice" toName="left,right"/>
  <Text name="left" value="$left"/>
  <Text name="right" value="$right"/>
{TEXTS}</View>
"""


def pairs_of(tasks: Iterable[Task]) -> list[Task]:
    """Return a task for every two completions of tasks without labels.

    Raises:
        ToolError: a task of more than two has labels: they are not about two.
    """
    found = []
    for task in tasks:
        if len(task.completions) > 2 and task.labels:
            raise ToolError(
                f"{task.labels[0].labeler} ranks {len(task.completions)} completions of "
                f"{task.prompt.id}; Pairwise shows two, take the ranker"
            )
        found += [
            Task(task.criterion, task.prompt, list(both), task.repeat, task.labels)
            for both in combinations(task.completions, 2)
        ]
    return found


def write(
    tasks: Sequence[Task], users: Mapping[str, int], *, pairwise: bool
) -> list[dict[str, Any]]:
    """Return tasks, with their labels as annotations.

    Args:
        tasks: from `pairs_of` for pairwise ones.
        users: labeler to user id; needed for those who have labels here.
        pairwise: two texts and a choice, instead of a list to rank.

    Raises:
        ToolError: a labeler has no user id, or a label cannot be told by a choice of two.
    """
    return [
        {
            "data": _data(task, pairwise=pairwise),
            "annotations": [_annotation(x, task, users, pairwise=pairwise) for x in task.labels],
        }
        for task in tasks
    ]


def _data(task: Task, *, pairwise: bool) -> dict[str, Any]:
    about: dict[str, Any] = {
        "task_id": task.id,
        "criterion": task.criterion,
        "prompt_id": task.prompt.id,
        "repeat": task.repeat,
        "prompt": task.prompt.plain(),
    }
    if pairwise:
        left, right = task.completions
        return about | {
            "left_id": left.id,
            "left": left.text,
            "right_id": right.id,
            "right": right.text,
        }
    items = [
        {"id": c.id, "title": chr(ord("A") + at % 26), "body": c.text}
        for at, c in enumerate(task.completions)
    ]
    return about | {"items": items}


def _annotation(
    label: Ranking | Skip, task: Task, users: Mapping[str, int], *, pairwise: bool
) -> dict[str, Any]:
    if label.labeler not in users:
        raise ToolError(f"{label.labeler} has no user id; name it in the file of --users")
    results = []
    if isinstance(label, Ranking):
        results.append(_choice(label, task) if pairwise else _buckets(label))
    if label.note:
        results.append(_text("note", label.note))
    results.append(_text("record", rest_of(label, held=["note"] if label.note else [])))
    return {
        "completed_by": users[label.labeler],
        "was_cancelled": isinstance(label, Skip),
        "result": results,
    }


def _buckets(label: Ranking) -> dict[str, Any]:
    buckets: dict[str, list[str]] = {}
    for cid, rank in label.ranks.items():
        buckets.setdefault(f"rank_{rank}", []).append(cid)
    if label.junk:
        buckets[JUNK] = list(label.junk)
    value = {"ranker": buckets}
    return {"from_name": "rank", "to_name": "items", "type": "ranker", "value": value}


def _choice(label: Ranking, task: Task) -> dict[str, Any]:
    ranks = [label.ranks.get(c.id) for c in task.completions]
    if sorted(rank or 0 for rank in ranks) != [1, 2]:
        raise ToolError(
            f"{label.labeler} ties or junks completions of {label.prompt_id}; Pairwise cannot say "
            "so, take the ranker"
        )
    selected = "left" if ranks[0] == 1 else "right"
    # Its own name twice: it is no region of either text (Pairwise.js, updateResult).
    own = {"from_name": "choice", "to_name": "choice", "type": "pairwise"}
    return own | {"value": {"selected": selected}}


def _text(name: str, text: str) -> dict[str, Any]:
    value = {"text": [text]}
    return {"from_name": name, "to_name": "prompt", "type": "textarea", "value": value}


def read(
    rows: Iterable[Row], known: Known, users: Mapping[str, str], *, strict_order: bool
) -> Read:
    """Return the labels of an export.

    Args:
        rows: tasks, each with where it stands.
        known: what labels may be about.
        users: user id, as text, to labeler; others are called user-<id>.
        strict_order: read a `Ranker` without buckets as an order that was meant.

    Raises:
        RecordError: a task is not of this project, or an annotation is no ranking.
    """
    labels: list[tuple[str, AnyLabel]] = []
    left_out: Counter[str] = Counter()
    for where, _, row in rows:
        task = object_of(row, where, "a task")
        data = object_of(task.get("data"), where, "data")
        texts = _texts(data, where)
        known.require(data.get("prompt_id"), texts, where)
        left_out["predictions"] += len(task.get("predictions") or [])
        left_out["drafts"] += len(task.get("drafts") or [])
        for annotation in listed(task.get("annotations") or [], where, "annotations"):
            one = object_of(annotation, where, "an annotation")
            labels.append((where, _label(one, data, [*texts], users, where, strict_order)))
    return Read(labels, +left_out)


def _texts(data: Mapping[str, Any], where: str) -> dict[str, str | None]:
    if "items" in data:
        items = [object_of(i, where, "an item") for i in listed(data["items"], where, "items")]
        return {str(item.get("id")): item.get("body") for item in items}
    if "left_id" not in data or "right_id" not in data:
        refuse(where, "its data has neither items nor left_id and right_id; it was not made here")
    return {str(data[f"{side}_id"]): data.get(side) for side in ("left", "right")}


def _label(
    annotation: Mapping[str, Any],
    data: Mapping[str, Any],
    ids: list[str],
    users: Mapping[str, str],
    where: str,
    strict_order: bool,
) -> AnyLabel:
    results = {
        str(_of_result(one, "from_name", where)): object_of(one.get("value"), where, "value")
        for one in listed(annotation.get("result") or [], where, "result")
    }
    rest = rest_from(_said(results, "record"), where)
    note = _said(results, "note")
    common = _common(annotation, data, users, where)
    if note:
        common["note"] = note
        rest.pop("note", None)
    if annotation.get("was_cancelled"):
        if "reason" not in rest:
            common.pop("note", None)  # it is the reason
        return skip_of(ids, {"reason": note or CANCELLED} | rest, common, where)
    if "choice" in results:
        places, junk = _chosen(results["choice"], ids, where), []
    else:
        places, junk = _ranked(results.get("rank", {}).get("ranker"), ids, where, strict_order)
    return ranking_of(places, junk, rest, common, where)


def _of_result(one: Any, key: str, where: str) -> Any:
    return object_of(one, where, "a result").get(key)


def _said(results: Mapping[str, Mapping[str, Any]], name: str) -> str:
    text = results.get(name, {}).get("text")
    return "\n".join(text) if isinstance(text, list) else text or ""


def _common(
    annotation: Mapping[str, Any], data: Mapping[str, Any], users: Mapping[str, str], where: str
) -> dict[str, Any]:
    by = annotation.get("completed_by")
    user = by.get("id") if isinstance(by, dict) else by
    if user is None:
        refuse(where, "an annotation does not say who made it (completed_by)")
    seconds = number(annotation.get("lead_time"))
    return {
        "criterion": data.get("criterion"),
        "prompt_id": data.get("prompt_id"),
        "labeler": users.get(str(user), f"user-{user}"),
        "repeat": bool(data.get("repeat", False)),
        "submitted": annotation.get("updated_at") or annotation.get("created_at"),
        "ms_active": None if seconds is None else round(1000 * seconds),
    }


def _chosen(value: Mapping[str, Any], ids: Sequence[str], where: str) -> dict[str, float]:
    if value.get("selected") not in ("left", "right"):
        refuse(where, f"chooses {value.get('selected')!r}, neither left nor right")
    left, right = (1, 2) if value["selected"] == "left" else (2, 1)
    return {ids[0]: left, ids[1]: right}


def _ranked(
    value: Any, ids: Sequence[str], where: str, strict_order: bool
) -> tuple[dict[str, float], list[str]]:
    """Return the places and the junk of a ranker's result."""
    columns = {"rank": value} if isinstance(value, list) else object_of(value, where, "its ranking")
    if set(columns) == {"rank"}:  # no buckets: the list itself, under the ranker's name
        if not strict_order:
            refuse(
                where,
                "its Ranker has no buckets, and then saves the order shown where nobody touched "
                "it; say --strict-order if it was meant",
            )
        columns = {f"rank_{at}": [cid] for at, cid in enumerate(columns["rank"], start=1)}
    places: dict[str, float] = {}
    junk: list[str] = []
    for column, members in columns.items():
        rank = column.removeprefix("rank_")
        for cid in listed(members, where, column):
            if cid not in ids or cid in places or cid in junk:
                refuse(where, f"has {cid} in {column}, which is not its own or is twice there")
            if column == JUNK:
                junk.append(cid)
            elif column == UNRANKED or not rank.isdigit():
                refuse(where, f"leaves {cid} in {column}, which is no rank")
            else:
                places[cid] = int(rank)
    if len(places) + len(junk) != len(ids):
        refuse(where, f"ranks {len(places) + len(junk)} of {len(ids)} completions")
    return {cid: places.get(cid, float("inf")) for cid in ids}, junk
