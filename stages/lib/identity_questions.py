"""Lets a policy go on with beginnings that differ only in the group of people they name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib import answering, identities, models, sampling, scorers
from stages.lib.answering import Subject
from stages.lib.identities import CONTROL, Filled, Group
from stages.lib.identity_answers import IdentityAnswer
from stages.lib.order import by_hash
from stages.lib.runtime import processes
from stages.lib.runtime.schema import Refusal, Strict
from stages.lib.sampling import Decoding, Draw, Request
from stages.lib.tokens import encode_prompt


class Naming(Strict):
    """`evaluate.identities`: beginnings that every group is named in, one after the other."""

    beginnings: Annotated[int, Field(ge=2)]
    """How many, the first by hash; intervals resample them."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a beginning and group."""
    tokens: Annotated[int, Field(ge=1)]
    """A completion."""


@dataclass(frozen=True, slots=True)
class Question:
    """A beginning with a group in it, and the words for that group."""

    filled: Filled
    group: Group


def choose(path: Path, naming: Naming | None) -> list[Question]:
    """Return the first beginnings by hash with every group in them; none where none is wanted.

    Raises:
        IdentitiesError: the file cannot be used.
        Refusal: it has fewer beginnings, or less than two groups to compare.
    """
    if naming is None:
        return []
    given = identities.read(path)
    if len(given.beginnings) < naming.beginnings:
        raise Refusal(
            f"params.yaml: evaluate.identities.beginnings is {naming.beginnings}, but {path} has "
            f"{len(given.beginnings)}; ask for fewer or write more"
        )
    named = [key for key, group in given.groups.items() if group.dimension != CONTROL]
    if len(named) < 2:
        raise Refusal(
            f"{path}: groups: {len(named)} beside those of dimension {CONTROL}; a gap between "
            "groups needs two"
        )
    first = sorted(given.beginnings, key=by_hash)[: naming.beginnings]
    return [
        Question(filled, given.groups[filled.group])
        for filled in identities.beginnings(given)
        if filled.template in first
    ]


def answer(
    subject: Subject,
    questions: Sequence[Question],
    naming: Naming,
    decoding: Decoding,
    *,
    seed: int,
    batch_tokens: int,
) -> list[tuple[Question, Draw, str]]:
    """Draw every completion; return each with its text, in the order of questions and indices."""
    lm = subject.policy
    # The id that selects the random numbers is the beginning's, without the group. So the groups
    # of one beginning are compared under the same noise, as policies are: where the name changes
    # no probability it changes no answer, and what differs is due to it. Beginnings stay
    # independent of each other, which is all that the gap's intervals and its null ask for.
    requests: dict[Request, list[Question]] = {}
    for q in questions:
        ids = encode_prompt(lm, q.filled.text)
        requests.setdefault(Request(q.filled.template, ids, naming.samples), []).append(q)
    drawn = {"max_tokens": naming.tokens, "seed": seed}

    def work(some: list[Request]) -> list[list[Draw]]:
        with models.adapter(lm, subject.adapter):
            found = sampling.sample(
                lm, some, decoding, **drawn, batch_tokens=batch_tokens, label="identities",
                kept=answering.kept_draws(subject, decoding, **drawn),
            )  # fmt: skip
        return sampling.by_request(found, some)

    told = processes.shared(list(requests), work, cost=lambda request: len(request.ids))
    draws = [draw for own in told for draw in own]
    said: dict[Question, list[tuple[Question, Draw, str]]] = {q: [] for q in questions}
    # By place: the draws of all groups of a beginning bear the same id.
    owners = [request for request in requests for _ in range(request.samples)]
    for draw, owner in zip(draws, owners, strict=True):
        for q in requests[owner]:
            said[q].append((q, draw, sampling.text(lm, draw)))
    return [one for own in said.values() for one in own]


def score(
    answered: Sequence[tuple[Question, Draw, str]],
    names: Sequence[scorers.ScorerName],
    words: Path,
) -> list[IdentityAnswer]:
    """Return each completion with the scores of it alone: a scorer may mind the group's name."""
    texts = [text for _, _, text in answered]
    harm = {name: scorers.scorer(name, words)(texts) for name in names}
    return [
        IdentityAnswer(
            beginning=q.filled.template,
            group=q.filled.group,
            dimension=q.filled.dimension,
            index=draw.index,
            prompt=q.filled.text,
            text=text,
            finish=draw.finish,
            names_again=names_group(text, q.group),
            scores={name: round(values[i], 6) for name, values in harm.items()},
        )
        for i, (q, draw, text) in enumerate(answered)
    ]


def names_group(text: str, group: Group) -> bool:
    """Whether a text has a group's name: deaf person, deaf people, or deaf alone."""
    adjective = re.sub(r" (person|people)$", "", group.person)
    either = "|".join(re.escape(words) for words in (group.person, group.people, adjective))
    return re.search(rf"\b({either})\b", text, re.IGNORECASE) is not None
