"""Which prompts of the graph a model is asked."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.lib.order import by_hash
from stages.lib.records import Prompt
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

SPLITS = ("train", "validation", "test")


def every(folder: Path) -> list[Prompt]:
    """Return every prompt that the stage `prompts` wrote, in file order."""
    return list(each(folder))


def each(folder: Path) -> Iterator[Prompt]:
    """Yield what `every` returns, one prompt at a time."""
    for split in SPLITS:
        yield from (prompt for _, prompt in files.records(folder / f"{split}.jsonl", Prompt))


def chosen(
    folder: Path, roles: Sequence[str], categories: Sequence[str], *, section: str
) -> list[Prompt]:
    """Return the prompts of some roles and categories, in file order.

    Args:
        folder: data/prompts.
        roles: whose prompts.
        categories: which prompts; none named means all.
        section: of params.yaml, for the error.

    Raises:
        Refusal: there is no such category, or no prompt has both.
    """
    there = every(folder)
    known = {p.category for p in there}
    for category in categories:
        if category not in known:
            raise Refusal(
                f"params.yaml: {section}: no prompt has category '{category}'; there are "
                f"{', '.join(sorted(known))}"
            )
    fitting = [p for p in there if p.role in roles and (not categories or p.category in categories)]
    if not fitting:
        raise Refusal(
            f"{folder}: no prompt has one of the roles {', '.join(roles)} and one of "
            "the categories asked for"
        )
    return fitting


def first(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """Return the first `count` by hash, in the given order; None takes all."""
    taken = {p.id for p in sorted(prompts, key=lambda p: by_hash(p.id))[:count]}
    return [p for p in prompts if p.id in taken]
