"""Attention on a processor: query heads that share a key head share its products.

transformers' own ways are slow there where many short sequences go on by one token: for 256 of
them (9 heads on 3, 40 tokens) torch's fused kernel takes 5.4 ms a layer and this 0.6 ms; the plain
form copies keys and values once for each query head.

Shape suffixes: B = sequences, H = query heads, K = key heads, G = query heads of a key head,
T = tokens that read, S = tokens read, D = size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import eager_mask

GROUPED = "grouped"
PLAIN = {"llama", "mistral", "qwen2", "qwen3"}
"""Kinds of models whose attention is softmax(q k / sqrt(d) + mask) v and nothing more."""


def grouped(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what the tokens read, out_BTHD; transformers' interface of attention functions."""
    rows, heads, reading, size = query_BHTD.shape
    shared, read = key_BKSD.shape[1:3]
    query_BKRD = query_BHTD.reshape(rows, shared, -1, size)  # R = G x T
    scores_BKRS = query_BKRD @ key_BKSD.transpose(2, 3) * scaling
    if attention_mask is not None:
        apart = scores_BKRS.view(rows, shared, -1, reading, read) + attention_mask[:, :, None]
        scores_BKRS = apart.view(rows, shared, -1, read)
    belief_BKRS = scores_BKRS.softmax(-1, dtype=torch.float32).to(query_BHTD.dtype)
    belief_BKRS = torch.nn.functional.dropout(belief_BKRS, dropout, module.training)
    out_BHTD = (belief_BKRS @ value_BKSD).view(rows, heads, reading, size)
    return out_BHTD.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped)
AttentionMaskInterface.register(GROUPED, eager_mask)


def roomy_cache(config: Any, *, room: int) -> DynamicCache:
    """Return a cache that is written in place for `room` tokens after the first that it is given.

    transformers' own copies all that it holds at every token. No gradient flows through this one.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room behind them."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write further keys and values, and return all so far."""
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, size = key_states.shape
            self._all = key_states.new_empty(2, rows, heads, end + self.room, size)
        self._all[0, :, :, start:end] = key_states
        self._all[1, :, :, start:end] = value_states
        self.keys, self.values = self._all[:, :, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        end = self.get_seq_length()
        few = self._all
        self._all = few.new_empty(2, len(indices), *few.shape[2:])
        self._all[:, :, :, :end] = few[:, indices, :, :end]
        self.keys, self.values = self._all[:, :, :, :end]
