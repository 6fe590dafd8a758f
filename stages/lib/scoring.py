"""Every score of an answer: harm by each scorer, reward and monitor, and whether it refuses.

A score is of the completion alone, never of its prompt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.lib import refusals, reward_model, scorers
from stages.lib.answering import Answered, Subject
from stages.lib.records import Evaluated

Rewards = tuple[float | None, float | None]
"""Of reward model and monitor; None where none was asked for."""


def score(
    answered: Sequence[Answered], names: Sequence[scorers.ScorerName], words: Path,
    rewards: Sequence[Rewards],
) -> list[Evaluated]:  # fmt: skip
    """Return each answer with all its scores."""
    texts = [answer.text for answer in answered]
    harm = {name: scorers.scorer(name, words)(texts) for name in names}
    return [
        record(answer, {name: values[i] for name, values in harm.items()}, *rewards[i])
        for i, answer in enumerate(answered)
    ]


def by_reward(
    subject: Subject, folder: Path, answered: Sequence[Answered], asked: Sequence[int]
) -> list[Rewards]:
    """Return reward and monitor score of each answer.

    Args:
        subject: whose base the reward models are adapters of.
        folder: of reward model and monitor.
        answered: the answers.
        asked: places of those that are scored.
    """
    result: list[Rewards] = [(None, None)] * len(answered)
    if not asked:
        return result
    texts = [answered[i].as_answer() for i in asked]
    reward, monitor = reward_model.load_both(subject.reference, folder)
    scores = _normalised(reward, texts, label="reward")
    watched: list[float | None] = [None] * len(asked)
    if monitor:
        watched = list(_normalised(monitor, texts, label="monitor"))
    for i, own, watch in zip(asked, scores, watched, strict=True):
        result[i] = (round(own, 5), None if watch is None else round(watch, 5))
    return result


def _normalised(
    scorer: reward_model.Scorer, texts: Sequence[reward_model.Answer], *, label: str
) -> list[float]:
    raw = reward_model.shared_raw(scorer, texts, label=label)
    return [scorer.normalise(score) for score in raw]


def record(
    answer: Answered, harm: Mapping[str, float], reward: float | None, monitor: float | None
) -> Evaluated:
    """Return one line of data/evaluations."""
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
