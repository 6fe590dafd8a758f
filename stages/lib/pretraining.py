"""Preference-model pretraining: a reward model learns from votes before it learns from our labels.

Askell et al. 2021 (arXiv:2112.00861), section 4. What it learns on is plentiful and about something
else; what it is for is fewer of our own pairs. tests/bench_pretraining.py measures what that is
worth.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.lib import importers, reward_quality
from stages.lib.base import Base
from stages.lib.importers import HubSource
from stages.lib.lora import ScorerTraining
from stages.lib.preferences import stack_exchange
from stages.lib.preferences.stack_exchange import Answered, Question
from stages.lib.records import Name, Pair, Role
from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    from stages.lib.models import LanguageModel


class Pretrain(ScorerTraining):
    """An entry of section `pretrain`."""

    reads: Name
    """A file of rows or a folder of such files; of a hub dataset the folder where a copy of it,
    owner/name, may lie."""
    hub: HubSource | None
    """A dataset of the hub in place of files."""
    max_tokens: Annotated[int, Field(ge=2)]
    """Of question and answer together; see `too_long`."""
    question_tokens: Annotated[int, Field(ge=1)]
    """A question; longer ones are left out with their answers, and counted."""
    too_long: Literal["leave_out", "cut"]
    """What becomes of an answer that does not fit: left out, or its end cut off; both counted."""
    max_answers: Annotated[int, Field(ge=2)]
    """Of a question, the first by hash; k of them are k (k - 1) / 2 pairs at most."""
    min_difference: Annotated[int, Field(ge=1)]
    """Of two answers' scores, for a pair."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of the questions that is measured on and not learned from, by hash."""
    resamples: Annotated[int, Field(ge=100)]
    """Cluster bootstrap of the accuracy."""
    bins: Annotated[int, Field(ge=2)]
    """Of the calibration curve."""

    @model_validator(mode="after")
    def _room_for_answers(self) -> "Pretrain":
        if self.question_tokens >= self.max_tokens:
            raise ValueError(
                f"question_tokens {self.question_tokens} leaves no room for an answer in "
                f"max_tokens {self.max_tokens}"
            )
        return self


COLUMNS = ("step", "loss", "accuracy", "margin", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True)
class Task:
    """One pretraining: what it reads, and where its results go."""

    base: Base
    seed: int
    base_folder: Path
    reads: Path
    out: Path
    curves: Path

    def inputs(self, knobs: Pretrain) -> tuple[Any, ...]:
        """Return all that the result depends on, code included, for `training.checkpoints`."""
        return knobs, self.base, self.seed, self.base_folder, self.reads, Path(__file__).parent


def train(knobs: Pretrain, task: Task) -> dict[str, Any]:
    """Train a reward model on the pairs of questions; write it to `task.out`, and its curves.

    Its normaliser is fitted to the answers held out: the base has answered nothing here.

    Returns:
        Sizes, what was left out by reason, and the quality on the questions held out.
    """
    from stages.lib import models, reward_model, training
    from stages.lib.groups import group
    from stages.lib.reward_trainer import fit_scorer, new_head

    gathered = stack_exchange.gather(rows(knobs, task.reads))
    lm = models.load(task.base_folder, task.base)
    questions, left_out = fitting(lm, gathered.questions, knobs)
    learned, held_out = both_sides(questions, knobs, task.reads)
    groups = group(lm, learned, max_tokens=knobs.max_tokens)
    with training.checkpoints("pretrain", *task.inputs(knobs)) as place:
        head = new_head(lm, knobs, groups, seed=task.seed)
        logged = fit_scorer(lm, head, knobs, groups, seed=task.seed, checkpoints=place)
        scorer = reward_model.fitted(lm, head, answers(held_out), max_tokens=knobs.max_tokens)
        reward_model.save(scorer, task.out)
        training.write_curves(task.curves, logged, COLUMNS)
    return {
        "steps": len(logged),
        "train_pairs": len(learned),
        "train_prompts": len(groups),
        "left_out": dict(sorted((gathered.left_out + left_out).items())),
    } | reward_quality.measure(
        scorer, held_out, seed=task.seed, resamples=knobs.resamples, bins=knobs.bins
    )


def rows(knobs: Pretrain, reads: Path) -> Iterator[importers.Row]:
    """Return the rows of the files that `reads` names, or of the hub dataset."""
    if knobs.hub is None:
        return stack_exchange.rows(reads)
    return islice(importers.hub_rows(knobs.hub, reads), knobs.hub.rows)


def fitting(
    lm: "LanguageModel", questions: Sequence[Question], knobs: Pretrain
) -> tuple[list[Question], Counter[str]]:
    """Return the questions with the answers that fit `max_tokens`, and what was left out or cut."""
    counts: Counter[str] = Counter()
    kept = []
    for question in questions:
        few = replace(question, answers=stack_exchange.first_answers(question, knobs.max_answers))
        counts["answer_beyond_max_answers"] += len(question.answers) - len(few.answers)
        own = _fitted(lm, few, knobs, counts)
        if own is not None:
            kept.append(own)
    return kept, +counts


def _fitted(
    lm: "LanguageModel", question: Question, knobs: Pretrain, counts: Counter[str]
) -> Question | None:
    """Return a question with the answers that fit; None where fewer than two are left."""
    from stages.lib.tokens import encode_prompt

    length = len(encode_prompt(lm, question.prompt))
    if length > knobs.question_tokens:
        counts["question_too_long"] += 1
        return None
    room = knobs.max_tokens - length
    distinct: dict[tuple[int, ...], Answered] = {}
    for answer in question.answers:
        if len(_tokens(lm, answer)) > room:
            counts["answer_too_long" if knobs.too_long == "leave_out" else "answer_cut"] += 1
            if knobs.too_long == "leave_out":
                continue
            answer = _cut(lm, answer, room)
        if _tokens(lm, answer) in distinct:
            counts["answer_equal_in_tokens"] += 1
        else:
            distinct[_tokens(lm, answer)] = answer
    if len(distinct) < 2:
        counts["question_with_fewer_than_two_fitting_answers"] += 1
        return None
    return replace(question, answers=tuple(distinct.values()))


def _tokens(lm: "LanguageModel", answer: Answered) -> tuple[int, ...]:
    from stages.lib.tokens import encode_completion

    return encode_completion(lm, answer.text, answer.finish)


def _cut(lm: "LanguageModel", answer: Answered, room: int) -> Answered:
    """Return the beginning of an answer that has at most `room` tokens, one or more; no EOS."""
    ends = lm.tokenizer(
        answer.text, add_special_tokens=False, return_offsets_mapping=True
    ).offset_mapping
    for _, end in reversed(ends[:room]):
        shorter = replace(answer, text=answer.text[:end], finish="length")
        if len(_tokens(lm, shorter)) <= room:  # cut apart, words may be other tokens, and more
            return shorter
    raise ValueError(f"answer {answer.id} cannot be cut to {room} tokens")


def both_sides(
    questions: Sequence[Question], knobs: Pretrain, reads: Path
) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to learn from and those to measure on; no question is in both.

    Raises:
        Refusal: one side has too few.
    """
    sides: dict[Role, list[Pair]] = {"reward": [], "test": []}
    for question in questions:
        role: Role = "test" if stack_exchange.held_out(question, knobs.held_out) else "reward"
        sides[role] += stack_exchange.pairs(question, role, min_difference=knobs.min_difference)
    sizes = {role: len({pair.prompt_id for pair in some}) for role, some in sides.items()}
    if sizes["reward"] < knobs.batch_prompts or sizes["test"] < 2:
        raise Refusal(
            f"{reads}: {sizes['reward']} questions with pairs to learn from and {sizes['test']} "
            f"held out; batch_prompts {knobs.batch_prompts} and an interval ask for more"
        )
    return sides["reward"], sides["test"]


def answers(pairs: Sequence[Pair]) -> list[Any]:
    """Return the answers of pairs, each once."""
    from stages.lib.reward_model import Answer

    found = {}
    for pair in pairs:
        found[pair.chosen_id] = Answer(pair.prompt, pair.chosen, pair.chosen_finish)
        found[pair.rejected_id] = Answer(pair.prompt, pair.rejected, pair.rejected_finish)
    return list(found.values())
