r"""Anthropic's helpful and harmless transcripts: rows `chosen`, `rejected`.

    "\n\nHuman: How …?\n\nAssistant: Well, …\n\nHuman: …?\n\nAssistant: …"

Both transcripts share all but the last turn, which is an assistant's (Bai et al. 2022,
arXiv:2204.05862; https://github.com/anthropics/hh-rlhf). One space after the colon belongs to the
form. The set names neither models nor workers: the labeler and the sampler are the set, and the
order in which the two were shown is not known.

Two texts that are equal, and ones that are blank, are judgements too and stay, unless `skip` names
them: the gate of stage pairs removes equal ones, and an empty answer is one that a model gave.
"""

import re
from collections.abc import Iterable
from typing import Literal

from stages.lib.importers import Row
from stages.lib.preferences.form import (
    Collector,
    Given,
    PreferenceSet,
    conversation,
    refuse,
    text,
)

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


class HhRlhf(PreferenceSet):
    """Transcripts of which all but the last turn are the prompt."""

    adapter: Literal["hh_rlhf"]
    skip: list[Literal["turns", "diverging", "blank", "identical"]]
    """Rows left out and counted. `turns`: those of a transcript do not alternate, a speaker goes
    twice or a turn before the last is blank; `diverging`: the two differ before their last turn:
    such rows are refused where they are not named. `blank`, `identical`: an answer is empty, both
    are equal: such rows are kept where they are not named."""


def gather(entry: HhRlhf, rows: Iterable[Row], into: Collector) -> None:
    """Add every row.

    Raises:
        RecordError: a row is no two transcripts, or has a fault that `skip` does not name.
    """
    for where, count, row in rows:
        both = [_turns(text(row, side, where), side, where) for side in ("chosen", "rejected")]
        found = _fault(both, entry.skip)
        if found:
            into.fault(where, *found, entry.skip)
            continue
        item = into.prompt(conversation(both[0][:-1], where), where, own_id=str(count))
        places = [
            Given(turns[-1]["content"], None, f"{count}:{at}") for at, turns in enumerate(both)
        ]
        chosen, rejected = item.add(places)
        item.rank({chosen: 1, rejected: 2}, worker=None)


def _turns(transcript: str, side: str, where: str) -> list[dict[str, str]]:
    before, *rest = TURN.split(transcript)
    if before or not rest:
        refuse(where, f"{side} must begin with '\\n\\nHuman:'")
    return [
        {"role": ROLES[speaker], "content": said.removeprefix(" ")}
        for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]


def _fault(both: list[list[dict[str, str]]], skip: list[str]) -> tuple[str, str] | None:
    for turns in both:
        roles = [turn["role"] for turn in turns]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            return "turns", f"its turns go {', '.join(roles)}, and not by turns to an assistant's"
        if not all(turn["content"].strip() for turn in turns[:-1]):
            return "turns", "a turn before the last is blank"
    if both[0][:-1] != both[1][:-1]:
        return "diverging", "chosen and rejected differ before their last turn"
    answers = [turns[-1]["content"] for turns in both]
    if "blank" in skip and not all(answer.strip() for answer in answers):
        return "blank", "an answer is blank"
    if "identical" in skip and answers[0] == answers[1]:
        return "identical", "chosen and rejected are equal"
    return None
