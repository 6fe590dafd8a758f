"""UltraFeedback: answers of several models, rated by GPT-4 (Cui et al. 2023, arXiv:2310.01377).

Two forms. That of openbmb/UltraFeedback (https://github.com/OpenBMB/UltraFeedback) has
`instruction` and `completions`, each with `model`, `response`, `overall_score`,
`fine-grained_score` (the mean of four ratings) and `annotations`, an aspect's with `Rating`, "1" to
"5" or "N/A". That of HuggingFaceH4/ultrafeedback_binarized has `prompt_id`, `chosen` and
`rejected`, two conversations that share all but the last turn, with `score_chosen` and
`score_rejected`.

Ratings become ranks, equal ones a tie. Each model was given a system prompt of its own
(`custom_system_prompt`), which is not part of the prompt that they share and is not read; nor are
critiques and rationales. Ratings were given one answer at a time, so no order was shown.
"""

from collections.abc import Iterable
from typing import Any, Literal

from stages.lib.importers import Row, reach
from stages.lib.preferences.form import (
    Collector,
    Given,
    PreferenceSet,
    conversation,
    messages_of,
    number,
    refuse,
    text,
)
from stages.lib.records import Message

RATER = "gpt-4"

Aspect = Literal[
    "overall", "fine_grained", "instruction_following", "honesty", "truthfulness", "helpfulness"
]
COLUMNS = {"overall": "overall_score", "fine_grained": "fine-grained_score"}


class UltraFeedback(PreferenceSet):
    """Rows of an instruction and its rated completions."""

    adapter: Literal["ultrafeedback"]
    aspect: Aspect
    """Which rating ranks: the overall score, the mean of the four aspects, or one of them."""
    skip: list[Literal["unrated", "few"]]
    """Left out and counted, and refused where not named. `unrated`: a completion without that
    rating, while the others stay; `few`: a row with fewer than two rated completions."""


class UltraFeedbackBinarized(PreferenceSet):
    """Rows of two conversations with a score each."""

    adapter: Literal["ultrafeedback_binarized"]
    skip: list[Literal["diverging", "scores"]]
    """Rows left out and counted, and refused where not named. `diverging`: the two differ before
    their last turn; `scores`: one is missing, or chosen has the lower."""


def gather(entry: UltraFeedback, rows: Iterable[Row], into: Collector) -> None:
    """Add every row.

    Raises:
        RecordError: a row is not of this form, or has a fault that `skip` does not name.
    """
    for where, count, row in rows:
        rated = []
        for at, one in enumerate(_completions(row, where)):
            score = number(_rating(one, entry.aspect, where))
            if score is None:
                what = f"completion {at + 1} has no rating for {entry.aspect}"
                into.fault(where, "unrated", what, entry.skip)
            else:
                given = Given(text(one, "response", where), text(one, "model", where), "")
                rated.append((given, score))
        if len(rated) < 2:
            into.fault(where, "few", f"has {len(rated)} rated completions", entry.skip)
            continue
        asked = text(row, "instruction", where)
        body = conversation([{"role": "user", "content": asked}], where)
        item = into.prompt(body, where, own_id=str(count))
        ids = item.add([given for given, _ in rated])
        if len(set(ids)) < len(ids):
            refuse(where, "a model gives the same completion twice")
        scores = dict(zip(ids, (score for _, score in rated), strict=True))
        item.rank({cid: -s for cid, s in scores.items()}, worker=RATER, scores=scores)


def _completions(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    found = reach(row, "completions", where)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        refuse(where, "completions must be a list of objects")
    return found


def _rating(one: dict[str, Any], aspect: Aspect, where: str) -> Any:
    column = COLUMNS.get(aspect, f"annotations.{aspect}.Rating")
    return reach(one, column, where)


def gather_binarized(entry: UltraFeedbackBinarized, rows: Iterable[Row], into: Collector) -> None:
    """Add every row.

    Raises:
        RecordError: a row is not of this form, or has a fault that `skip` does not name.
    """
    for where, count, row in rows:
        both = [
            messages_of(reach(row, side, where), where, side) for side in ("chosen", "rejected")
        ]
        scores = [number(reach(row, f"score_{side}", where)) for side in ("chosen", "rejected")]
        if both[0][:-1] != both[1][:-1]:
            because = "chosen and rejected differ before their last turn"
            into.fault(where, "diverging", because, entry.skip)
            continue
        chosen, rejected = scores
        if chosen is None or rejected is None or chosen < rejected:
            because = f"scores of chosen and rejected are {chosen} and {rejected}"
            into.fault(where, "scores", because, entry.skip)
            continue
        item = into.prompt(_prompt(both[0], where), where, own_id=text(row, "prompt_id", where))
        ids = item.add(
            [Given(c[-1]["content"], None, f"{count}:{at}") for at, c in enumerate(both)]
        )
        given = dict(zip(ids, (chosen, rejected), strict=True))
        item.rank({cid: -s for cid, s in given.items()}, worker=RATER, scores=given)


def _prompt(turns: list[dict[str, str]], where: str) -> list[Message]:
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        refuse(where, "chosen must be a conversation that ends with an assistant's turn")
    return conversation(turns[:-1], where)
