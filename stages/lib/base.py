"""Section `base` of params.yaml, apart from the code that loads models so that it imports fast."""

from typing import Literal

from stages.lib.runtime.schema import Strict


class Base(Strict):
    """How models/base is held in memory."""

    quantisation: Literal["nf4", "none"]
    """4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314)."""
    weights: Literal["auto", "packed", "rounded"]
    """Packed 4-bit weights, or the same values held in `dtype`; auto packs on a GPU."""
    dtype: Literal["bfloat16", "float32"]
    """Of activations and of weights that are not packed."""
