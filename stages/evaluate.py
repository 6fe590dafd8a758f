r"""Let a policy answer held-out prompts under common random numbers, and measure every answer.

    python -m stages.evaluate dpo models/base models/policies/dpo models/reward \
        data/sources/words.txt data/prompts/test.jsonl data/evaluations/dpo.jsonl \
        reports/evaluations/dpo.json

Reads   models/base, models/policies/<name>, models/reward
        words.txt            the word list of scorer `words`
        test.jsonl           held-out prompts (validation.jsonl when tuning)
Writes  evaluations.jsonl    one completion with all its scores a line
        metrics (JSON)       per set: toxicity by scorer, cost, reward; each with interval and n
Params  evaluate, base, seed
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib import answering, refusals, reward_model, scorers, toxicity
from stages.lib.answering import Answered
from stages.lib.base import Base
from stages.lib.order import by_hash
from stages.lib.records import Evaluated, Name, Prompt
from stages.lib.runtime import entry, files, tracking
from stages.lib.runtime.schema import Refusal, Strict
from stages.lib.sampling import Decoding


class PromptSet(Strict):
    """An entry of `evaluate.sets`."""

    categories: Annotated[list[Name], Field(min_length=1)]
    """Which prompts are in it."""
    prompts: Annotated[int, Field(ge=1)]
    """How many, first by hash."""
    samples: Annotated[int, Field(ge=1)]
    """Completions a prompt (k)."""
    tokens: Annotated[int, Field(ge=1)]
    """A completion."""


class Evaluate(Decoding):
    """Section `evaluate` of params.yaml."""

    split: Literal["validation", "test"]
    """Whose prompts are answered."""
    sets: Annotated[dict[Name, PromptSet], Field(min_length=1)]
    """Groups of prompts, each with its own size."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once."""
    independent: scorers.ScorerName
    """The scorer of the verdict."""
    scorers: list[scorers.ScorerName]
    """Further scorers."""
    threshold: Annotated[float, Field(gt=0, lt=1)]
    """A probability at or above it counts as toxic."""
    reward_samples: Annotated[int, Field(ge=0)]
    """Completions a prompt of the first set that reward model and monitor score."""
    resamples: Annotated[int, Field(ge=100)]
    """Cluster bootstrap of each metric."""


def run(
    evaluate: Evaluate,
    base: Base,
    seed: int,
    *,
    name: str,
    base_folder: Path,
    policy_folder: Path,
    reward_folder: Path,
    words: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write the scored completions of policy `name` and their summary."""
    available = files.read_lines(prompts, Prompt)
    chosen = {key: choose(available, key, one) for key, one in evaluate.sets.items()}
    subject = answering.open_subject(base_folder, policy_folder, base)
    answered = [
        answer
        for key, one in evaluate.sets.items()
        for answer in answering.answer(
            subject, chosen[key], key, evaluate, samples=one.samples, tokens=one.tokens, seed=seed,
            batch_tokens=evaluate.batch_tokens,
        )
    ]  # fmt: skip
    rewards = score_by_reward(evaluate, subject, reward_folder, answered)
    harm = score_by_text(evaluate, words, [a.text for a in answered])
    rows = [
        record(answer, {scorer: values[i] for scorer, values in harm.items()}, *rewards[i])
        for i, answer in enumerate(answered)
    ]
    summary = toxicity.summarise(
        rows,
        list(harm),
        probabilities=scorers.PROBABILITIES,
        threshold=evaluate.threshold,
        resamples=evaluate.resamples,
        seed=seed,
    )
    files.write_lines(out, rows)
    files.write_json(metrics, summary)
    tracking.about(f"align@{name}")
    tracking.table(for_reading(rows, evaluate.independent), "completions.json")
    return numbers(summary)


def choose(available: Sequence[Prompt], name: str, one: PromptSet) -> list[Prompt]:
    """Return the prompts of a set: the first by hash, so that more prompts elsewhere move none.

    Raises:
        Refusal: the split has fewer such prompts than the set asks for.
    """
    fitting = [p for p in available if p.category in one.categories]
    if len(fitting) < one.prompts:
        raise Refusal(
            f"params.yaml: evaluate.sets.{name}.prompts is {one.prompts}, but the split has "
            f"{len(fitting)} "
            f"prompts of {', '.join(one.categories)}; ask for fewer or raise "
            "prompts.split.shares.test"
        )
    return sorted(fitting, key=lambda p: by_hash(p.id))[: one.prompts]


def score_by_text(evaluate: Evaluate, words: Path, texts: list[str]) -> dict[str, list[float]]:
    """Return every scorer's harm of every text; only the completion is scored, never the prompt."""
    names = dict.fromkeys([evaluate.independent, *evaluate.scorers])
    return {name: scorers.scorer(name, words)(texts) for name in names}


def score_by_reward(
    evaluate: Evaluate, subject: answering.Subject, folder: Path, answered: Sequence[Answered]
) -> list[tuple[float | None, float | None]]:
    """Return reward and monitor score of each answer, None where none was asked for."""
    result: list[tuple[float | None, float | None]] = [(None, None)] * len(answered)
    first = next(iter(evaluate.sets))
    asked = [
        i for i, a in enumerate(answered) if a.set == first and a.index < evaluate.reward_samples
    ]
    if not asked:
        return result
    texts = [answered[i].as_answer() for i in asked]
    reward, monitor = reward_model.load_both(subject.reference, folder)
    scores = reward_model.scores(reward, texts, label="reward")
    watched: list[float | None] = [None] * len(asked)
    if monitor:
        watched = list(reward_model.scores(monitor, texts, label="monitor"))
    for i, score, watch in zip(asked, scores, watched, strict=True):
        result[i] = (round(score, 5), None if watch is None else round(watch, 5))
    return result


def record(
    answer: Answered, harm: dict[str, float], reward: float | None, monitor: float | None
) -> Evaluated:
    """Return one line of the output."""
    return Evaluated(
        prompt_id=answer.prompt.id,
        cluster=answer.prompt.cluster,
        set=answer.set,
        category=answer.prompt.category,
        prompt=answer.prompt.body(),
        index=answer.index,
        text=answer.text,
        finish=answer.finish,
        tokens=answer.tokens,
        scores={name: round(value, 6) for name, value in harm.items()},
        nll=round(answer.drift.nll, 5),
        kl_k1=round(answer.drift.k1, 5),
        kl_k3=round(answer.drift.k3, 5),
        kl_exact=round(answer.drift.exact, 5),
        refusal=refusals.classify(answer.text) if answer.prompt.form == "chat" else None,
        reward=reward,
        monitor=monitor,
    )


def for_reading(rows: Sequence[Evaluated], scorer: str) -> list[dict[str, object]]:
    """Return the first answers of each prompt for a table that the MLflow UI shows."""
    return [
        {
            "set": row.set,
            "prompt_id": row.prompt_id,
            "prompt": row.prompt if isinstance(row.prompt, str) else row.prompt[-1].content,
            "completion": row.text,
            scorer: row.scores[scorer],
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
    entry.main(run, "evaluate", "base", "seed")
