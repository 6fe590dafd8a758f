"""OpenAssistant's message trees (Köpf et al. 2023, arXiv:2304.07327).

Three forms, told apart by the row: a tree (`message_tree_id`, `prompt` with nested `replies`), its
first message with nested `replies`, and single messages (`message_id`, `parent_id`), as on the hub;
fields as in https://github.com/LAION-AI/Open-Assistant, oasst-data/oasst_data/schemas.py. The
replies of assistants to one message are ranked by people: `rank` 0 is best. What is written here is
the consensus of several people, who are not named: the labeler is the set.

Authors (`user_id`), quality labels and emojis are not read. Replies of prompters are ranked by
nobody; they lead on to further replies.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from stages.lib.importers import Row
from stages.lib.preferences.form import (
    Collector,
    Given,
    PreferenceSet,
    conversation,
    refuse,
)
from stages.lib.records import Text
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict, check

Mark = Literal["deleted", "synthetic", "rejected"]
PERSON = "person"
"""Sampler of what no model wrote."""
ROLES = {"prompter": "user", "assistant": "assistant"}


class OpenAssistant(PreferenceSet):
    """Trees or messages; each message with two or more ranked replies is a prompt."""

    adapter: Literal["open_assistant"]
    languages: list[Text]
    """Of the messages, as `lang` has them; none named takes all."""
    keep: list[Mark]
    """Messages that stay although they are marked `deleted`, `synthetic` (a model wrote them) or
    `rejected` by reviewers. Others so marked are left out, with all that follows them, and
    counted."""


class Node(Strict):
    """A message; what else one has is not read."""

    model_config = ConfigDict(extra="ignore")

    message_id: Text
    parent_id: Text | None = None
    text: str
    role: Literal["prompter", "assistant"]
    lang: Text | None = None
    deleted: bool | None = None
    synthetic: bool | None = None
    model_name: Text | None = None
    review_result: bool | None = None
    rank: Annotated[int, Field(ge=0)] | None = None

    def marks(self) -> list[Mark]:
        """What speaks against it."""
        told: dict[Mark, bool] = {
            "deleted": bool(self.deleted),
            "synthetic": bool(self.synthetic),
            "rejected": self.review_result is False,
        }
        return [mark for mark, holds in told.items() if holds]


class Tree:
    """Messages by parent, each with the row it came from."""

    def __init__(self) -> None:
        self.roots: list[Node] = []
        self.replies: defaultdict[str, list[Node]] = defaultdict(list)
        self.rows: dict[str, str] = {}

    def add(self, node: Node, where: str) -> None:
        """Add a message.

        Raises:
            RecordError: there is another of its id.
        """
        if node.message_id in self.rows:
            refuse(where, f"message {node.message_id} stands at {self.rows[node.message_id]} too")
        self.rows[node.message_id] = where
        (self.roots if node.parent_id is None else self.replies[node.parent_id]).append(node)


def gather(entry: OpenAssistant, rows: Iterable[Row], into: Collector) -> None:
    """Add every message with ranked replies.

    Left out and counted are marked messages and ones in other languages, each with what `follows`
    it; `unranked` replies; and sets of replies of which fewer than two are ranked (`alone`).

    Raises:
        RecordError: a row is of neither form, or a message's parent is missing.
    """
    tree = _tree(rows)
    for parent in sorted(tree.replies.keys() - tree.rows.keys()):
        child = tree.replies[parent][0].message_id
        refuse(tree.rows[child], f"message {child} answers {parent}, which no row has")
    waiting: list[list[Node]] = [[root] for root in reversed(tree.roots)]
    while waiting:
        path = waiting.pop()
        reason = _reason(path[-1], entry)
        if reason:
            into.left_out[reason] += 1
            into.left_out["follows"] += sum(1 for _ in _below(path[-1], tree))
            continue
        replies = tree.replies[path[-1].message_id]
        waiting += [[*path, reply] for reply in reversed(replies)]
        _add(path, [r for r in replies if _reason(r, entry) is None], tree, into)


def _tree(rows: Iterable[Row]) -> Tree:
    tree = Tree()
    for where, _, row in rows:
        nested: list[tuple[Any, str | None]] = [(row.get("prompt", row), None)]
        while nested:
            plain, parent = nested.pop()
            if not isinstance(plain, dict):
                refuse(where, "a message must be an object")
            node: Node = check(plain, Node, where, RecordError)
            if parent is not None and node.parent_id != parent:
                refuse(
                    where, f"message {node.message_id} is a reply to {parent} but says otherwise"
                )
            tree.add(node, where)
            replies = plain.get("replies") or []
            nested += [(reply, node.message_id) for reply in reversed(replies)]
    return tree


def _reason(node: Node, entry: OpenAssistant) -> str | None:
    if entry.languages and node.lang not in entry.languages:
        return "language"
    return next((mark for mark in node.marks() if mark not in entry.keep), None)


def _below(node: Node, tree: Tree) -> Iterator[Node]:
    for reply in tree.replies[node.message_id]:
        yield reply
        yield from _below(reply, tree)


def _add(path: list[Node], replies: list[Node], tree: Tree, into: Collector) -> None:
    answers = [reply for reply in replies if reply.role == "assistant"]
    ranked = [reply for reply in answers if reply.rank is not None]
    into.left_out["unranked"] += len(answers) - len(ranked)
    into.left_out["alone"] += len(ranked) == 1
    if len(ranked) < 2:
        return
    where = tree.rows[path[-1].message_id]
    turns = [{"role": ROLES[node.role], "content": node.text} for node in path]
    item = into.prompt(conversation(turns, where), where, own_id=path[-1].message_id)
    given = [Given(r.text, _author(r), r.message_id) for r in ranked]
    ids = item.add(given)
    item.rank(dict(zip(ids, (r.rank or 0 for r in ranked), strict=True)), worker=None)


def _author(node: Node) -> str:
    return (node.model_name or "model") if node.synthetic else PERSON
