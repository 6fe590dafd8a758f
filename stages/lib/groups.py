"""Preference pairs as a trainer wants them: grouped by prompt, each completion encoded once.

The k(k-1)/2 pairs of a prompt share its k completions. A batch holds whole prompts, runs every
completion once and compares them in pairs: three times fewer tokens than two sequences a pair at
k = 4, and no pair of a prompt is seen in another step than its siblings, which overfits within an
epoch (Ouyang et al. 2022, section 3.5).

Shape suffixes: B = unique sequences of the batch, P = pairs.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.lib.models import LanguageModel
from stages.lib.records import Pair
from stages.lib.runtime import processes
from stages.lib.runtime.files import RecordError
from stages.lib.tokens import TokenSequence, encode


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt's pairs."""

    prompt_id: str
    cluster: str
    sequences: tuple[TokenSequence, ...]
    pairs: tuple[Pair, ...]
    chosen: tuple[int, ...]
    """Index into `sequences` of each pair's chosen completion."""
    rejected: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that one pass reads."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True, slots=True)
class Batch:
    """Several prompts' pairs; indices count through all of the batch's sequences."""

    sequences: list[TokenSequence]
    chosen_P: Tensor
    rejected_P: Tensor
    p_chosen_P: Tensor
    weight_P: Tensor
    whole_weight: float
    """Summed weight of all pairs of the batch, of which another process may have a share."""

    @property
    def count(self) -> int:
        """Pairs that count; 0 where this process has no share."""
        return int((self.weight_P > 0).sum())


def group(
    lm: LanguageModel, pairs: Sequence[Pair], *, max_tokens: int, max_pairs: int | None = None
) -> list[Group]:
    """Encode pairs and gather them by prompt, in the order of first appearance.

    Args:
        lm: its tokenizer encodes.
        pairs: of any number of prompts.
        max_tokens: of prompt and completion together.
        max_pairs: of a prompt; the surest and then widest ones are kept. None keeps all.

    Raises:
        TooLong: a sequence has more than `max_tokens`.
        RecordError: chosen and rejected of a pair are the same tokens.
    """
    by_prompt: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt_id].append(pair)
    return [
        _one(lm, sorted(some, key=lambda p: (-p.p_chosen, -p.margin, p.id))[:max_pairs], max_tokens)
        for some in by_prompt.values()
    ]


def _one(lm: LanguageModel, pairs: Sequence[Pair], max_tokens: int) -> Group:
    place: dict[TokenSequence, int] = {}
    chosen, rejected = [], []
    for pair in pairs:
        both = []
        for text, finish, cid in (
            (pair.chosen, pair.chosen_finish, pair.chosen_id),
            (pair.rejected, pair.rejected_finish, pair.rejected_id),
        ):
            sequence = encode(
                lm, pair.prompt, text, finish, max_tokens=max_tokens, where=f"completion {cid}"
            )
            both.append(place.setdefault(sequence, len(place)))
        if both[0] == both[1]:
            raise RecordError(
                f"pair {pair.id}: chosen and rejected are the same tokens; leave it out"
            )
        chosen.append(both[0])
        rejected.append(both[1])
    first = pairs[0]
    return Group(
        first.prompt_id, first.cluster, tuple(place), tuple(pairs), tuple(chosen), tuple(rejected)
    )


def collate_share(groups: Sequence[Group]) -> Batch:
    """Join this process's share of a batch; where that is nothing, one group of weight 0."""
    whole = collate(groups)
    if mine := processes.share(groups):
        return replace(collate(mine), whole_weight=whole.whole_weight)
    idle = collate(groups[:1])
    return replace(idle, weight_P=torch.zeros_like(idle.weight_P), whole_weight=whole.whole_weight)


def collate(groups: Sequence[Group]) -> Batch:
    """Join groups into one batch."""
    sequences: list[TokenSequence] = []
    chosen: list[int] = []
    rejected: list[int] = []
    for one in groups:
        chosen += [len(sequences) + i for i in one.chosen]
        rejected += [len(sequences) + i for i in one.rejected]
        sequences += one.sequences
    pairs = [pair for one in groups for pair in one.pairs]
    weight_P = torch.tensor([pair.weight for pair in pairs])
    return Batch(
        sequences,
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.tensor([pair.p_chosen for pair in pairs]),
        weight_P,
        float(weight_P.sum()),
    )
