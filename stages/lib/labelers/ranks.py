"""Scores of one prompt's completions to a ranking record."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stages.lib.records import Completion, Preference, Ranking
from stages.lib.shelf import Shelf


def by_prompt(completions: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Return each prompt's completions, of all samplers, in order of id."""
    grouped: dict[str, list[Completion]] = defaultdict(list)
    for completion in sorted(completions, key=lambda c: c.id):
        grouped[completion.prompt_id].append(completion)
    return dict(sorted(grouped.items()))


def each_prompt(completions: Iterable[Completion]) -> Iterator[tuple[str, list[Completion]]]:
    """Yield the items of `by_prompt`, with no more than one of them in memory."""
    shelf = Shelf(Completion)
    shelf.add(0, (("", completion) for completion in completions))
    for prompt_id, (some,) in shelf.by_prompt():
        yield prompt_id, sorted((completion for _, completion in some), key=lambda c: c.id)


def competition(scores: Mapping[str, float], *, tie: float) -> dict[str, int]:
    """Rank by score, highest first; scores that round to the same multiple of `tie` share a rank.

    Competition ranks: scores 3, 2, 2, 1 give 1, 2, 2, 4.
    """
    steps = {key: round(value / tie) for key, value in scores.items()}
    return {key: 1 + sum(other > step for other in steps.values()) for key, step in steps.items()}


def ranking(
    prompt_id: str,
    labeler: str,
    criterion: str,
    scores: Mapping[str, float],
    *,
    tie: float,
    preferences: Sequence[Preference] | None = None,
) -> Ranking:
    """Return a model labeler's ranking; it calls nothing junk.

    Args:
        prompt_id: whose completions; `labeler` and `criterion` likewise as in the record.
        labeler: see there.
        criterion: see there.
        scores: completion id to what is ranked by, higher is better.
        tie: scores that round to the same multiple of it share a rank.
        preferences: how sure the labeler is of each pair, where it compares two at a time.
    """
    return Ranking(
        schema_version=1,
        kind="ranking",
        criterion=criterion,
        prompt_id=prompt_id,
        labeler=labeler,
        shown=list(scores),
        ranks=competition(scores, tie=tie),
        junk={},
        scores={key: round(value, 6) for key, value in scores.items()},
        preferences=None if preferences is None else list(preferences),
        revision=1,
    )
