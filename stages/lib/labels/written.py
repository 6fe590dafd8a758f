"""Answers that labelers wrote to demonstrations, none to a prompt that anything is judged on."""

from collections import Counter
from collections.abc import Iterable

from stages.lib.labels.consensus import split_of
from stages.lib.labels.reading import Given
from stages.lib.records import Demonstration, Written


def demonstrations(
    answers: Iterable[Written], given: Given
) -> tuple[list[Demonstration], dict[str, int]]:
    """Return the answers with their prompts' own words, sorted by id.

    Args:
        answers: those that count, one a labeler, prompt and criterion.
        given: the prompts they are to.

    Returns:
        The demonstrations, and how many are left out because the prompt has role `validation` or
        `test`, or because it has a near-duplicate that does (`leak`).
    """
    left_out = Counter(validation=0, test=0, leak=0)
    found = []
    for answer in answers:
        prompt = given.prompts[answer.prompt_id]
        split = split_of(prompt.role)
        if split != "train":
            left_out[split] += 1
        elif prompt.cluster in given.leaking:
            left_out["leak"] += 1
        else:
            found.append(
                Demonstration(
                    id=f"{prompt.id}:{answer.labeler}:{answer.criterion}",
                    form=prompt.form,
                    category=prompt.category,
                    source=prompt.source,
                    text=prompt.text,
                    messages=prompt.messages,
                    answer=answer.answer,
                )
            )
    return sorted(found, key=lambda one: one.id), dict(left_out)
