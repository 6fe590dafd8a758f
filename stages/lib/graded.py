"""Completions with their rewards and log-probabilities, which offline methods learn from.

Shape suffixes: G = prompts, N = completions of each.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.lib import likelihood, models, sampling
from stages.lib.models import LanguageModel
from stages.lib.records import Message, Name, Pair, Prompt, Role
from stages.lib.reward_model import Answer, Scorer
from stages.lib.runtime import files, processes
from stages.lib.runtime.files import RecordError
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


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt's completions."""

    prompt_id: str
    sequences: tuple[TokenSequence, ...]
    reward_N: Tensor
    reference_N: Tensor
    """Log-probabilities in nats; proposal_N likewise."""
    proposal_N: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Several prompts' completions, as many of each."""

    sequences: list[TokenSequence]
    reward_GN: Tensor
    reference_GN: Tensor
    proposal_GN: Tensor

    def log_target(self, temperature: float) -> Tensor:
        """Return log P_GN of the target p(y) exp(r / temperature), which is not normalised."""
        return self.reference_GN + self.reward_GN / temperature


def read(folder: Path, role: Role, lm: LanguageModel, *, max_tokens: int) -> list[Group]:
    """Return the completions of one role, a group each prompt.

    Raises:
        RecordError: there are none, prompts have different numbers of them, or one is longer than
            `max_tokens` with its prompt.
    """
    path = folder / FILE
    if not path.is_file():
        raise RecordError(f"{folder}: no {FILE}; name a folder of stage grade, data/graded/<name>")
    found = groups(lm, [row for row in files.read_lines(path, Graded) if row.role == role])
    sizes = {len(own.sequences) for own in found}
    if len(sizes) != 1:
        of = f"{min(sizes)} to {max(sizes)} completions of a prompt" if sizes else "no completions"
        raise RecordError(
            f"{path}: {of} of role {role}; as many of each, as stage grade draws them"
        )
    longest, prompt_id = max((len(s), g.prompt_id) for g in found for s in g.sequences)
    if longest > max_tokens:
        raise RecordError(
            f"{path}: prompt {prompt_id} has {longest} tokens with its completion; max_tokens is "
            f"{max_tokens}"
        )
    return found


def groups(lm: LanguageModel, rows: Sequence[Graded]) -> list[Group]:
    """Return completions, a prompt's together, as groups."""
    return [group(lm, list(own)) for _, own in itertools.groupby(rows, key=lambda r: r.prompt_id)]


def prompt_of(row: Graded) -> Prompt:
    """Return the prompt of a completion as the graph has it, but for where it came from."""
    chat = not isinstance(row.prompt, str)
    body = {"messages": row.prompt} if chat else {"text": row.prompt}
    return Prompt(
        id=row.prompt_id, form="chat" if chat else "continuation", category=row.category,
        source=FILE, role=row.role, cluster=row.cluster, **body,
    )  # fmt: skip


def group(lm: LanguageModel, rows: Sequence[Graded]) -> Group:
    """Return the completions of one prompt as tensors."""
    prompt = encode_prompt(lm, rows[0].prompt)
    return Group(
        rows[0].prompt_id,
        tuple(TokenSequence(prompt, tuple(row.ids)) for row in rows),
        torch.tensor([row.reward for row in rows]),
        torch.tensor([row.logp_reference for row in rows]),
        torch.tensor([row.logp_proposal for row in rows]),
    )


def collate(groups: Sequence[Group]) -> Batch:
    """Join groups into one batch."""
    return Batch(
        [s for g in groups for s in g.sequences],
        torch.stack([g.reward_N for g in groups]),
        torch.stack([g.reference_N for g in groups]),
        torch.stack([g.proposal_N for g in groups]),
    )


def effective_share(log_weight_GN: Tensor) -> Tensor:
    """Return each prompt's effective sample size over its completions: (sum w)^2 / (n sum w^2).

    1 where all weigh alike, 1 / n where one outweighs the others (Kong 1992).
    """
    log_GN = log_weight_GN - log_weight_GN.amax(1, keepdim=True)
    weight_GN = log_GN.exp()
    return weight_GN.sum(1) ** 2 / weight_GN.square().sum(1) / weight_GN.shape[1]
