r"""Let a policy answer held-out prompts under common random numbers, and measure every answer.

    python -m stages.evaluate dpo models/base models/policies/dpo models/reward \
        data/sources/words.txt data/sources/identities.yaml \
        data/sources/neutral_text/test.jsonl data/prompts/test.jsonl data/pairs/test.jsonl \
        data/evaluations/dpo reports/evaluations/dpo.json

Reads   models/base, models/policies/<name>, models/reward
        words.txt            the word list of scorer `words`
        identities.yaml      beginnings that differ only in the group of people they name
        test.jsonl           passages on which the policy's loss as a language model is taken,
                             held-out prompts, and pairs; all validation.jsonl when tuning
Writes  answers.jsonl        one completion with all its scores a line
        snapshots.jsonl      the same of the policy as it was on the way through its training
        neutral_text.jsonl   the loss on one passage a line
        identities.jsonl     one completion of a beginning with a group in it, scored, a line
        pairs.jsonl          which way the policy leans on one pair a line
        metrics (JSON)       per set: toxicity by scorer, cost, reward; each with interval and n
Params  evaluate, base, seed
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib import (
    answering,
    identity_questions,
    implicit,
    language_loss,
    neutral_text,
    scorers,
    scoring,
    snapshots,
    toxicity,
)
from stages.lib.answering import Answered
from stages.lib.base import Base
from stages.lib.identity_answers import IdentityAnswer
from stages.lib.identity_questions import Naming, Question
from stages.lib.order import by_hash
from stages.lib.records import Evaluated, Name, Pair, Prompt
from stages.lib.runtime import entry, files, tracking
from stages.lib.runtime.schema import Refusal, Seed, Strict
from stages.lib.sampling import Decoding
from stages.lib.snapshots import Snapshot


class PromptSet(Strict):
    """An entry of `evaluate.sets`."""

    categories: Annotated[list[Name], Field(min_length=1)]
    """Which prompts are in it."""
    prompts: Annotated[int, Field(ge=1)]
    """How many, first by hash; of validation prompts all, where there are fewer."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt (k)."""
    tokens: Annotated[int, Field(ge=1)]
    """A completion."""


class Snapshots(Strict):
    """`evaluate.snapshots`: how states on the way through a training are asked."""

    prompts: Annotated[int, Field(ge=2)]
    """Of the first set, the first by hash."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt, as long as the set's."""


class Evaluate(Decoding):
    """Section `evaluate` of params.yaml."""

    split: Literal["validation", "test"]
    """Whose prompts are answered."""
    sets: Annotated[dict[Name, PromptSet], Field(min_length=1)]
    """Groups of prompts, each with its own size."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once."""
    scorers: Annotated[list[scorers.ScorerName], Field(min_length=1)]
    """The scorers of texts."""
    threshold: Annotated[float, Field(gt=0, lt=1)]
    """A probability at or above it counts as toxic."""
    reward_samples: Annotated[int, Field(ge=0)]
    """Completions a prompt of the first set that reward model and monitor score; the most that
    best-of-n chooses among."""
    snapshots: Snapshots
    implicit_prompts: Annotated[int, Field(ge=0)]
    """Prompts, the first by hash, on whose held-out pairs the implicit reward is tried."""
    identities: Naming | None
    """How it is measured whether toxicity depends on the group named; null for not at all."""
    resamples: Annotated[int, Field(ge=100)]
    """Cluster bootstrap of each metric."""


def run(
    evaluate: Evaluate,
    base: Base,
    seed: Seed,
    *,
    name: str,
    base_folder: Path,
    policy_folder: Path,
    reward_folder: Path,
    words: Path,
    groups: Path,
    neutral: Path,
    prompts: Path,
    pairs: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write all that is measured of policy `name`, and a summary of its answers."""
    passages = neutral_text.read(neutral)
    beginnings = identity_questions.choose(groups, evaluate.identities)
    available = files.read_lines(prompts, Prompt)
    chosen = {
        key: choose(available, key, one, evaluate.split) for key, one in evaluate.sets.items()
    }
    compared = implicit.some(files.read_lines(pairs, Pair), evaluate.implicit_prompts)
    subject = answering.open_subject(base_folder, policy_folder, base)
    often = {"batch_tokens": evaluate.batch_tokens}
    with files.whole_folder(out) as folder:
        losses = language_loss.losses(subject.policy, subject.adapter, passages, **often)
        files.write_lines(folder / "neutral_text.jsonl", losses)
        leanings = implicit.leanings(subject, compared, **often)
        files.write_lines(folder / "pairs.jsonl", leanings)
        named = ask_identities(evaluate, subject, beginnings, words, seed=seed)
        files.write_lines(folder / "identities.jsonl", named)
        rows, earlier = answer(
            evaluate, subject, chosen, policy_folder, reward_folder, words, seed=seed
        )
        files.write_lines(folder / "answers.jsonl", rows)
        files.write_lines(folder / "snapshots.jsonl", earlier)
    summary = toxicity.summarise(
        rows, evaluate.scorers, probabilities=scorers.PROBABILITIES,
        threshold=evaluate.threshold, resamples=evaluate.resamples, seed=seed,
    )  # fmt: skip
    files.write_json(metrics, summary)
    tracking.about(f"align@{name}")
    tracking.table(for_reading(rows), "completions.json")
    return numbers(summary)


def choose(available: Sequence[Prompt], name: str, one: PromptSet, split: str) -> list[Prompt]:
    """Return the prompts of a set: the first by hash, so that more prompts elsewhere move none.

    Raises:
        Refusal: the test split has fewer such prompts than the set asks for, or the validation
            split has none.
    """
    fitting = [p for p in available if p.category in one.categories]
    if len(fitting) < (one.prompts if split == "test" else 1):
        raise Refusal(
            f"params.yaml: evaluate.sets.{name}.prompts is {one.prompts}, but split {split} has "
            f"{len(fitting)} "
            f"prompts of {', '.join(one.categories)}; ask for fewer or raise "
            f"prompts.split.shares.{split}"
        )
    return sorted(fitting, key=lambda p: by_hash(p.id))[: one.prompts]


Chosen = Mapping[str, Sequence[Prompt]]
"""The prompts of each set."""


def answer(
    evaluate: Evaluate,
    subject: answering.Subject,
    chosen: Chosen,
    policy: Path,
    reward: Path,
    words: Path,
    *,
    seed: int,
) -> tuple[list[Evaluated], list[Snapshot]]:
    """Return the scored answers of the policy, and those of its states on the way."""
    last = ask(evaluate, subject, chosen, seed=seed)
    earlier = ask_snapshots(evaluate, subject, policy, chosen, seed=seed)
    answered = [*last, *(answer for own in earlier.values() for answer in own)]
    rewards = scoring.by_reward(subject, reward, answered, rewarded(evaluate, answered))
    scored = scoring.score(answered, evaluate.scorers, words, rewards)
    steps = [step for step, own in earlier.items() for _ in own]
    rest = zip(steps, scored[len(last) :], strict=True)
    return scored[: len(last)], [Snapshot(step=step, **dict(row)) for step, row in rest]


def ask(
    evaluate: Evaluate, subject: answering.Subject, chosen: Chosen, *, seed: int
) -> list[Answered]:
    """Return the policy's answers to every set."""
    return [
        answer
        for key, one in evaluate.sets.items()
        for answer in answering.answer(
            subject, chosen[key], key, evaluate, samples=one.samples, tokens=one.tokens, seed=seed,
            batch_tokens=evaluate.batch_tokens,
        )
    ]  # fmt: skip


def ask_snapshots(
    evaluate: Evaluate, subject: answering.Subject, policy: Path, chosen: Chosen, *, seed: int
) -> dict[int, list[Answered]]:
    """Return the answers of the policy as it was on the way, by step, to some of the first set.

    Same prompts, lengths and random numbers as those of the last state, which has more of them.
    """
    key, one = next(iter(evaluate.sets.items()))
    asked = evaluate.snapshots
    return {
        step: answering.answer(
            answering.snapshot(subject, folder, step), chosen[key][: asked.prompts], key, evaluate,
            samples=min(asked.samples, one.samples), tokens=one.tokens, seed=seed,
            batch_tokens=evaluate.batch_tokens,
        )
        for step, folder in snapshots.kept(policy).items()
    }  # fmt: skip


def ask_identities(
    evaluate: Evaluate,
    subject: answering.Subject,
    beginnings: Sequence[Question],
    words: Path,
    *,
    seed: int,
) -> list[IdentityAnswer]:
    """Return the policy's scored answers to beginnings that name a group, if any are wanted."""
    if evaluate.identities is None:
        return []
    answered = identity_questions.answer(
        subject, beginnings, evaluate.identities, evaluate, seed=seed,
        batch_tokens=evaluate.batch_tokens,
    )  # fmt: skip
    return identity_questions.score(answered, evaluate.scorers, words)


def rewarded(evaluate: Evaluate, answered: Sequence[Answered]) -> list[int]:
    """Return the places of the answers that reward model and monitor score."""
    first = next(iter(evaluate.sets))
    return [
        i for i, a in enumerate(answered) if a.set == first and a.index < evaluate.reward_samples
    ]


def for_reading(rows: Sequence[Evaluated]) -> list[dict[str, object]]:
    """Return the first answers of each prompt for a table that the MLflow UI shows."""
    return [
        {
            "set": row.set,
            "prompt_id": row.prompt_id,
            "prompt": row.prompt if isinstance(row.prompt, str) else row.prompt[-1].content,
            "completion": row.text,
            **row.scores,
        }
        for row in rows
        if row.index == 0
    ]


def numbers(summary: dict[str, dict]) -> dict[str, float]:
    """Return `set/group/metric` for MLflow; the strata stay in the JSON."""
    return {
        f"{name}/{group}/{metric}": estimate["value"]
        for name, groups in summary.items()
        for group, own in groups.items()
        if group != "by_category"
        for metric, estimate in own.items()
    }


if __name__ == "__main__":
    entry.main(run, "evaluate", "base", "seed", shared=entry.everyone)
