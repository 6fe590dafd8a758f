"""Graded completions as tensors, a prompt's together, for objectives that weigh one by the others.

Shape suffixes: G = prompts, N = completions of each.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.lib.graded import FILE, Graded
from stages.lib.models import LanguageModel
from stages.lib.records import Role
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.tokens import TokenSequence, encode_prompt


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
