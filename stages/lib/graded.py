"""Completions with their rewards and log-probabilities, which offline methods learn from."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from stages.lib import likelihood, models, sampling
from stages.lib.models import LanguageModel
from stages.lib.records import Message, Name, Pair, Prompt, Role
from stages.lib.reward_model import Answer, Scorer
from stages.lib.runtime import processes
from stages.lib.runtime.schema import Strict
from stages.lib.sampling import Decoding, Draw
from stages.lib.tokens import TokenSequence, encode_prompt

FILE = "graded.jsonl"
WHOLE = Decoding(temperature=1.0, top_k=0, top_p=1.0)
"""Of the whole vocabulary at temperature 1: what is drawn is the model's own distribution, and so
are all log-probabilities."""
PairSplit = Literal["train", "validation"]


class Graded(Strict):
    """One completion of a proposal, with all that a method needs to learn from it."""

    id: Name
    prompt_id: Name
    cluster: Name
    role: Role
    category: Name
    prompt: str | list[Message]
    index: Annotated[int, Field(ge=0)]
    """Which of the prompt's completions."""
    ids: Annotated[list[int], Field(min_length=1)]
    """Tokens as they were drawn, EOS included: encoded again a text may become others."""
    text: str
    finish: Literal["stop", "length"]
    score: float
    """Of the reward model as it gives it: differences are log-odds."""
    reward: float
    """The same with mean 0 and standard deviation 1 on the base's own completions."""
    logp_reference: float
    """log p(completion | prompt) in nats under the base; logp_proposal under what drew it."""
    logp_proposal: float


def grade(
    lm: LanguageModel,
    asked: Sequence[Prompt],
    drawn: Sequence[Sequence[Draw]],
    scorer: Scorer,
    *,
    proposal: str | None,
    name: str,
    batch_tokens: int,
) -> list[Graded]:
    """Return every completion with its reward and its log-probabilities; processes share them.

    Both log-probabilities come from one way of reading, not from the drawing: where the proposal is
    the base they are equal, to the last bit.

    Args:
        lm: base, proposal and reward model.
        asked: prompts.
        drawn: the completions of each.
        scorer: the reward model.
        proposal: adapter that drew them; None for the base.
        name: of the grader, for ids.
        batch_tokens: in memory at once.
    """

    def work(some: list[tuple[Prompt, Sequence[Draw]]]) -> list[list[Graded]]:
        flat = [
            TokenSequence(encode_prompt(lm, prompt.body()), draw.ids)
            for prompt, own in some
            for draw in own
        ]
        logps = {
            adapter: _logps(lm, flat, adapter, batch_tokens=batch_tokens)
            for adapter in dict.fromkeys((None, proposal))
        }
        answers = [
            Answer(prompt.body(), sampling.text(lm, draw), draw.finish)
            for prompt, draws in some
            for draw in draws
        ]
        scores = scorer.raw(answers, label="reward")
        rows = zip(answers, scores, logps[None], logps[proposal], strict=True)
        return [
            [_row(prompt, draw, name, scorer, *next(rows)) for draw in draws]
            for prompt, draws in some
        ]

    told = processes.shared(
        list(zip(asked, drawn, strict=True)), work,
        cost=lambda one: sum(len(draw.ids) for draw in one[1]),
    )  # fmt: skip
    return [row for own in told for row in own]


def _logps(
    lm: LanguageModel, flat: list[TokenSequence], adapter: str | None, *, batch_tokens: int
) -> list[float]:
    label = "log-probabilities of the " + ("base" if adapter is None else "proposal")
    with models.adapter(lm, adapter), models.training_precision(lm):
        return likelihood.all_logps(lm, flat, batch_tokens=batch_tokens, label=label).tolist()


def _row(
    prompt: Prompt,
    draw: Draw,
    name: str,
    scorer: Scorer,
    answer: Answer,
    score: float,
    reference: float,
    own: float,
) -> Graded:
    return Graded(
        id=f"{prompt.id}/{name}-{draw.index}", prompt_id=prompt.id, cluster=prompt.cluster,
        role=prompt.role, category=prompt.category, prompt=prompt.body(), index=draw.index,
        ids=list(draw.ids), text=answer.text, finish=answer.finish, score=round(score, 5),
        reward=round(scorer.normalise(score), 5), logp_reference=round(reference, 4),
        logp_proposal=round(own, 4),
    )  # fmt: skip


def pairs(rows: Sequence[Graded], *, min_p_chosen: float) -> Iterator[Pair]:
    """Yield the pairs of each prompt's completions, the better by reward first.

    A trained reward model's difference of scores is the log-odds that one is better, so that

        p_chosen = sigmoid(score of chosen - score of rejected)

    Args:
        rows: completions, a prompt's together.
        min_p_chosen: pairs less sure are left out, and so are two equal texts.
    """
    for _, group in itertools.groupby(rows, key=lambda row: row.prompt_id):
        own = list(group)
        for one, other in itertools.combinations(own, 2):
            better, worse = (one, other) if one.score >= other.score else (other, one)
            p_chosen = 1 / (1 + math.exp(worse.score - better.score))
            alike = (one.text, one.finish) == (other.text, other.finish)
            if p_chosen >= min_p_chosen and not alike:
                yield _pair(better, worse, p_chosen, weight=1 / math.comb(len(own), 2))


def _pair(better: Graded, worse: Graded, p_chosen: float, *, weight: float) -> Pair:
    return Pair(
        id=f"{better.id}:{worse.index}", prompt_id=better.prompt_id, cluster=better.cluster,
        role=better.role, category=better.category, criterion="reward", prompt=better.prompt,
        chosen_id=better.id, rejected_id=worse.id, chosen=better.text, rejected=worse.text,
        chosen_finish=better.finish, rejected_finish=worse.finish, p_chosen=p_chosen,
        weight=weight, margin=better.score - worse.score, votes=1, labelers=["reward"], junk=False,
    )  # fmt: skip


def split_of(role: Role) -> PairSplit:
    """Return the file that a role's pairs go to: what is learned from, or what is looked at."""
    return "validation" if role == "validation" else "train"


def prompt_of(row: Graded) -> Prompt:
    """Return the prompt of a completion as the graph has it, but for where it came from."""
    chat = not isinstance(row.prompt, str)
    body = {"messages": row.prompt} if chat else {"text": row.prompt}
    return Prompt(
        id=row.prompt_id, form="chat" if chat else "continuation", category=row.category,
        source=FILE, role=row.role, cluster=row.cluster, **body,
    )  # fmt: skip
