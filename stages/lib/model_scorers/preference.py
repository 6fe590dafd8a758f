"""A scorer that is a language model, asked which of two answers fits a principle better.

The two are a policy's and the baseline's to the same prompt under the same random numbers. A model
prefers a place as well as an answer, so both orders are asked and averaged.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from stages.lib import constitution, scores
from stages.lib.base import Base
from stages.lib.constitution import Principle
from stages.lib.labelers import judge, questions
from stages.lib.model_scorers.said import Said
from stages.lib.order import by_hash
from stages.lib.records import Evaluated, Name, SourcePrompt
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, Strict
from stages.lib.scores import ByPolicy


class Preference(Strict):
    """An entry of `scorers`: a language model brought by `fetch`."""

    kind: Literal["preference"]
    reads: Name
    """Folder of the model that judges."""
    guide: Name
    """The constitution: file of principles."""
    criterion: Name
    """What is asked; each comparison draws a principle of it by hash, the same for every policy."""
    set: Name
    """Of `evaluate.sets`, that whose answers are compared."""
    prompts: Annotated[int, Field(ge=1)] | None
    """How many of its prompts, the first by hash; null: all."""
    form: questions.Form
    """Asked through the model's chat template, or as a text to go on with."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """Tokens in memory at once."""

    @property
    def sets(self) -> list[str]:
        """The set, as other kinds name theirs."""
        return [self.set]


class Couple(NamedTuple):
    """A policy's answer beside the baseline's, and what they are compared by."""

    policy: str
    own: Evaluated
    other: Evaluated
    principle: Principle

    def questions(self) -> tuple[str, str]:
        """The question with the policy's answer as (A), and with the baseline's as (A)."""
        before, own, other = as_prompt(self.own), self.own.text, self.other.text
        return (
            questions.question(before, self.principle, own, other),
            questions.question(before, self.principle, other, own),
        )


def score(scorer: Preference, base: Base, answers: ByPolicy, baseline: str) -> Said:
    """Return the probability that each answer is better than the baseline's.

    Exchanging policy and baseline gives 1 minus it, and two equal texts one half, unasked.

    Raises:
        ConstitutionError: the guide is no constitution, or has no principle of the criterion.
        ModelError: the model cannot be asked in this form.
    """
    principles = constitution.read(Path(scorer.guide), scorer.criterion)
    couples = compared(scorer, answers, baseline, principles)
    groups: dict[str, list[Couple]] = defaultdict(list)
    for couple in couples:
        if couple.own.text.strip() != couple.other.text.strip():
            groups[couple.own.prompt_id].append(couple)
    orders = _orders(scorer, base, list(groups.values()))
    different = [couple for some in groups.values() for couple in some]
    p = {
        scores.key(couple.policy, couple.own): judge.label(*both, on_flip="average", clamp=None)
        for couple, both in zip(different, orders, strict=True)
    }
    return Said(
        [scores.score(who, own, p.get(scores.key(who, own), 0.5)) for who, own, _, _ in couples],
        asks=f"being better than the answer of {baseline} by a principle of '{scorer.criterion}', "
        "by the mean of both orders",
        reads="the prompt and both answers, all of them",
        texts=len(different),
        cut=0,
        sets=scorer.sets,
        prompts=scorer.prompts,
        measures=judge.measures([c.principle.id for c in different], orders),
    )


def compared(
    scorer: Preference, answers: ByPolicy, baseline: str, principles: Sequence[Principle]
) -> list[Couple]:
    """Return every answer that is compared, beside the baseline's.

    Prompt and index draw the principle, so that no other prompt and no policy has a say in it.

    Raises:
        Refusal: the set has fewer prompts than are asked for.
        RecordError: the baseline has no such answer.
    """
    theirs = {(r.prompt_id, r.index): r for r in answers[baseline] if r.set == scorer.set}
    there = len({prompt for prompt, _ in theirs})
    if scorer.prompts is not None and there < scorer.prompts:
        raise Refusal(
            f"params.yaml: scorers: {scorer.prompts} prompts of set {scorer.set} are asked for, of "
            f"which {there} are evaluated; ask for fewer, or for all with `prompts: null`"
        )
    found = []
    for policy, own in scores.compared(answers, scorer.sets, scorer.prompts, baseline):
        other = theirs.get((own.prompt_id, own.index))
        if other is None:
            raise RecordError(
                f"completion {own.index} of prompt {own.prompt_id} is evaluated for {policy}, not "
                f"for {baseline}; evaluate both again"
            )
        drawn = int(by_hash(f"{own.prompt_id}|{own.index}"), 16) % len(principles)
        found.append(Couple(policy, own, other, principles[drawn]))
    return found


def as_prompt(row: Evaluated) -> SourcePrompt:
    """Return what was answered, in the form in which questions take it."""
    chat = not isinstance(row.prompt, str)
    return SourcePrompt(
        id=row.prompt_id,
        form="chat" if chat else "continuation",
        category=row.category,
        source="evaluated",
        text=None if chat else row.prompt,
        messages=row.prompt if chat else None,
    )


def _orders(
    scorer: Preference, base: Base, groups: Sequence[Sequence[Couple]]
) -> list[tuple[float, float]]:
    """Return p(A) in both orders of each couple, groups in order."""
    if not groups:
        return []
    p = questions.probabilities(
        Path(scorer.reads),
        base,
        [[text for couple in some for text in couple.questions()] for some in groups],
        form=scorer.form,
        thinking_tokens=0,
        batch_tokens=scorer.batch_tokens,
    )
    return list(zip(p[0::2], p[1::2], strict=True))
