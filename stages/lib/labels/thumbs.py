"""Thumbs up and down to one verdict a completion."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from stages.lib.labels.reading import Given
from stages.lib.records import Signal, Thumbs


def signals(thumbs: Iterable[Thumbs], given: Given) -> tuple[list[Signal], dict[str, int]]:
    """Return what the majority says of each completion, by criterion, sorted by prompt and id.

    Args:
        thumbs: those that count, one a labeler, completion and criterion.
        given: the completions they are about.

    Returns:
        The signals, of prompts of every role, and how many completions are left out as a `tie`,
        or as a `leak`: the prompt has a near-duplicate in another split.
    """
    votes: dict[tuple[str, str], list[Thumbs]] = defaultdict(list)
    for thumb in thumbs:
        votes[thumb.completion_id, thumb.criterion].append(thumb)
    left_out = Counter(tie=0, leak=0)
    found = []
    for (completion_id, criterion), some in votes.items():
        up = sum(thumb.up for thumb in some)
        if given.prompts[some[0].prompt_id].cluster in given.leaking:
            left_out["leak"] += 1
        elif 2 * up == len(some):
            left_out["tie"] += 1
        else:
            found.append(_signal(completion_id, criterion, some, up, given))
    return sorted(found, key=lambda one: (one.prompt_id, one.id)), dict(left_out)


def _signal(
    completion_id: str, criterion: str, some: list[Thumbs], up: int, given: Given
) -> Signal:
    answer = given.completions[completion_id]
    prompt = given.prompts[answer.prompt_id]
    return Signal(
        id=f"{completion_id}:{criterion}",
        prompt_id=prompt.id,
        cluster=prompt.cluster,
        role=prompt.role,
        category=prompt.category,
        criterion=criterion,
        prompt=prompt.body(),
        completion_id=completion_id,
        text=answer.text,
        finish=answer.finish,
        up=2 * up > len(some),
        share=max(up, len(some) - up) / len(some),
        votes=len(some),
        labelers=sorted(thumb.labeler for thumb in some),
    )
