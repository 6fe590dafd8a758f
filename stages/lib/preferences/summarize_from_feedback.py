r"""OpenAI's comparisons of summaries (Stiennon et al. 2020, arXiv:2009.01325).

Rows of `comparisons/*.json` (https://github.com/openai/summarize-from-feedback, README): `info`
with `id` and either `post`, `title` and `subreddit` (TL;DR) or `article` (CNN/DM); `summaries`, two
with `text` and `policy`; `choice`, 0 or 1; `worker`; `extra.confidence`. The prompt is laid out as
the paper's models were given it (`query.format_str` in utils/experiment_helpers.py), so that a
summary goes on where it stops.

`extra.confidence` is on a scale that the README does not explain; it goes into the label's note as
it is. The workers' notes on summaries, `batch` and `split` are not read. In which order the two
were shown is not said. Rows of `axis_evals` compare nothing and are refused.
"""

from collections.abc import Iterable
from typing import Any, Literal

from stages.lib.importers import Row, reach
from stages.lib.preferences.form import Collector, Given, PreferenceSet, refuse, text

POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
ARTICLE = "Article:\n{article}\n\nTL;DR:\n"


class SummarizeFromFeedback(PreferenceSet):
    """Rows of two summaries and a worker's choice."""

    adapter: Literal["summarize_from_feedback"]
    skip: list[Literal["identical"]]
    """Rows left out and counted, and refused where not named. `identical`: one policy's text is
    compared with itself."""


def gather(entry: SummarizeFromFeedback, rows: Iterable[Row], into: Collector) -> None:
    """Add every row.

    Raises:
        RecordError: a row is not of this form, or has a fault that `skip` does not name.
    """
    for where, _, row in rows:
        found = reach(row, "summaries", where)
        if not isinstance(found, list) or len(found) != 2:
            refuse(where, "summaries must be a list of two")
        choice = reach(row, "choice", where)
        if type(choice) is not int or choice not in (0, 1):
            refuse(where, f"choice must be 0 or 1, not {choice!r}")
        item = into.prompt(_prompt(row, where), where, own_id=text(row, "info.id", where))
        ids = item.add([Given(text(s, "text", where), text(s, "policy", where), "") for s in found])
        if ids[0] == ids[1]:
            into.fault(where, "identical", "compares a summary with itself", entry.skip)
            continue
        item.rank(
            {ids[choice]: 1, ids[1 - choice]: 2},
            worker=text(row, "worker", where),
            note=_note(row),
        )


def _prompt(row: dict[str, Any], where: str) -> str:
    info = reach(row, "info", where)
    if not isinstance(info, dict):
        refuse(where, "info must be an object")
    if info.get("post") is not None:
        keys = ("subreddit", "title", "post")
        return POST.format(**{key: text(row, f"info.{key}", where) for key in keys})
    return ARTICLE.format(article=text(row, "info.article", where))


def _note(row: dict[str, Any]) -> str | None:
    extra = row.get("extra")
    confidence = extra.get("confidence") if isinstance(extra, dict) else None
    return None if confidence is None else f"extra.confidence {confidence}"
