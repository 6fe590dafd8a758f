"""Runs each prompt once and lets all of its completions share the result.

With eight completions of a prompt as long as themselves, that is near half of the tokens.

Shape suffixes: P = prompts, B = completions, T = tokens, D = hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from stages.lib import attention
from stages.lib.models import LanguageModel
from stages.lib.runtime import processes
from stages.lib.tokens import TokenSequence


@dataclass(slots=True)
class Prefix:
    """What a model has read so far: prompts, padded left so that all end at the same place."""

    lm: LanguageModel
    cache: DynamicCache
    hidden_BD: Tensor
    """State after the last token read, from which the next one is predicted."""
    pad_B: Tensor
    """Padding before each row's prompt."""
    width: int
    """Tokens read, padding included."""

    def select(self, rows_B: Tensor) -> None:
        """Keep these rows, in this order; a row named twice is there twice."""
        self.cache.batch_select_indices(rows_B)
        self.hidden_BD, self.pad_B = self.hidden_BD[rows_B], self.pad_B[rows_B]

    def read(self, ids_BT: Tensor) -> Tensor:
        """Read further tokens, padded right; return the state after each, hidden_BTD."""
        end = self.width + ids_BT.shape[1]
        places_T = torch.arange(end, device=ids_BT.device)[None, :]
        hidden_BTD = self.lm.backbone(
            input_ids=ids_BT,
            attention_mask=(places_T >= self.pad_B[:, None]).long(),
            position_ids=(places_T[:, self.width :] - self.pad_B[:, None]).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.hidden_BD, self.width = hidden_BTD[:, -1], end
        return hidden_BTD


def prefill(lm: LanguageModel, prompts: Sequence[tuple[int, ...]], *, room: int = 0) -> Prefix:
    """Read each prompt once; `select` then makes as many rows of it as it has completions.

    Args:
        lm: that reads.
        prompts: token ids.
        room: for tokens that are read one by one, without gradients; 0 where gradients flow.
    """
    width = max(map(len, prompts))
    pads = [width - len(ids) for ids in prompts]
    ids_PT = torch.tensor(
        [[lm.pad_id] * pad + list(ids) for pad, ids in zip(pads, prompts, strict=True)],
        device=lm.device,
    )
    prefix = Prefix(
        lm,
        attention.roomy_cache(lm.model.config, room=room)
        if room
        else DynamicCache(config=lm.model.config),
        torch.empty(0),
        torch.tensor(pads, device=lm.device),
        0,
    )
    prefix.read(ids_PT)
    return prefix


def with_completions(
    lm: LanguageModel, sequences: Sequence[TokenSequence]
) -> tuple[Prefix, Tensor, Tensor]:
    """Read the prompts of sequences, each once.

    Returns:
        prefix: one row a sequence, ready to read its completion.
        ids_BT: completions, padded right.
        lengths_B: their tokens.
    """
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(s.prompt for s in sequences))}
    prefix = prefill(lm, list(row))
    prefix.select(torch.tensor([row[s.prompt] for s in sequences], device=lm.device))
    lengths_B = torch.tensor([len(s.completion) for s in sequences], device=lm.device)
    width = int(lengths_B.max())
    if processes.divides_base():
        width = max(width, 2)  # or of single tokens alone one process would have nothing to read
    ids_BT = torch.tensor(
        [list(s.completion) + [lm.pad_id] * (width - len(s.completion)) for s in sequences],
        device=lm.device,
    )
    return prefix, ids_BT, lengths_B
