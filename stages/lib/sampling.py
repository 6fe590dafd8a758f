"""Draws completions from a language model, each with random numbers of its own.

The noise of a token depends on (seed, prompt id, sample index, position, token) and on nothing
else, so a completion does not depend on its batch, and two policies that answer the same prompt
with the same index are compared under common random numbers.

Sampling is Gumbel-max in two levels: a block of the vocabulary is drawn by the blocks' total
probabilities, then a token within it. That is exact (the product of the two probabilities is the
token's) and draws 96 + 512 numbers a token in place of 49,152.

Shape suffixes: B = completions in the batch, N = their tokens, D = hidden size, V = vocabulary,
K = blocks, W = tokens in a block.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from stages.lib.likelihood import Positions
from stages.lib.models import LanguageModel
from stages.lib.prefix import prefill
from stages.lib.runtime import files
from stages.lib.runtime.items import Items
from stages.lib.runtime.schema import Strict

BLOCK = 512  # vocabulary entries drawn together; near the square root of common vocabulary sizes
ROWS = 64
"""Rows whose probabilities are in memory at once. 64 x 49,152 x 4 bytes = 13 MB stay in the
processor's cache, and are small enough for the C library to use again and not give back."""


WORTH_KEEPING = 7 / 8
"""Share of rows still going on at which those that ended are left out: that copies the rest."""


class Decoding(Strict):
    """How the next token is drawn."""

    temperature: Annotated[float, Field(gt=0)]
    """Divides the logits."""
    top_k: Annotated[int, Field(ge=0)]
    """Most likely tokens kept; 0 keeps all, 1 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Smallest set of tokens with at least this probability is kept."""

    @property
    def is_plain(self) -> bool:
        """Whether what is sampled is the model's own distribution."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered `samples` times."""

    prompt_id: str
    ids: tuple[int, ...]
    samples: int
    first: int = 0
    """Index of the first sample that is wanted: those before it are there already."""

    @property
    def indices(self) -> range:
        """Of the samples wanted."""
        return range(self.first, self.samples)

    def key(self, index: int) -> str:
        """Name a sample among those of one model, decoding and seed."""
        return f"{self.prompt_id}/{index}/{files.digest(self.ids)[:16]}"


@dataclass(frozen=True, slots=True)
class Draw:
    """One completion."""

    prompt_id: str
    index: int
    ids: tuple[int, ...]
    """Tokens, EOS included where there is one."""
    finish: str
    """`stop` or `length`."""
    logp: float
    """Sum of log-probabilities in nats under the distribution that was sampled."""

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> "Draw":
        """Return the draw that `asdict` made plain."""
        return cls(**{**plain, "ids": tuple(plain["ids"])})


D = TypeVar("D", bound=Draw)


class Rate:
    """A progress bar over completions that shows tokens a second and the time left."""

    def __init__(self, total: int, label: str | None) -> None:
        self._bar = tqdm(
            total=total, desc=label, unit="completion", mininterval=1, disable=label is None
        )
        self._tokens = 0

    def __enter__(self) -> "Rate":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, draws: Sequence[Draw]) -> None:
        """Count what one batch brought."""
        self._tokens += sum(len(draw.ids) for draw in draws)
        self._bar.update(len(draws))
        seconds = max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(f"{self._tokens / seconds:.0f} tokens/s")


def sample(
    lm: LanguageModel,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    max_tokens: int,
    seed: int,
    batch_tokens: int,
    label: str | None,
    kept: Items | None = None,
) -> list[Draw]:
    """Answer every request; the result is in the order of requests and indices.

    Args:
        lm: its active adapter is the policy.
        requests: prompts, each with its number of completions.
        decoding: how a token is drawn.
        max_tokens: of a completion, EOS included.
        seed: selects the random numbers.
        batch_tokens: prompt and completion tokens in memory at once.
        label: of the progress bar; None shows none.
        kept: draws of the same model, decoding, length and seed; what is there is not drawn again.
    """

    def draw(some: Sequence[Request]) -> list[Draw]:
        return decode(lm, some, decoding, max_tokens=max_tokens, seed=seed)[0]

    return in_batches(
        requests, draw, Draw.restored, kept,
        max_tokens=max_tokens, batch_tokens=batch_tokens, label=label,
    )  # fmt: skip


def in_batches(
    requests: Sequence[Request],
    make: Callable[[Sequence[Request]], Sequence[D]],
    restored: Callable[[dict[str, Any]], D],
    kept: Items | None,
    *,
    max_tokens: int,
    batch_tokens: int,
    label: str | None,
) -> list[D]:
    """Return every sample of every request, in order; only those that are not kept are made.

    Args:
        requests: no two alike.
        make: from the requests of a batch to their samples, by request and index.
        restored: from what `asdict` makes of a sample back to the sample.
        kept: where samples are looked for, and each batch is put as soon as it is made.
        max_tokens, batch_tokens, label: as `sample` says.
    """
    keys = {r: [r.key(i) for i in range(r.samples)] for r in requests}
    found = {k: restored(kept[k]) for own in keys.values() for k in own if kept and k in kept}
    rest = [replace(r, first=_present(found, own)) for r, own in keys.items()]
    rest = [r for r in rest if r.indices]
    if found and label:
        tqdm.write(f"{label}: {len(found)} of {sum(map(len, keys.values()))} are there already")
    with Rate(sum(len(r.indices) for r in rest), label) as rate:
        for some in plan(rest, max_tokens=max_tokens, batch_tokens=batch_tokens):
            made = make(some)
            new = dict(zip((r.key(i) for r in some for i in r.indices), made, strict=True))
            if kept:
                kept.add({key: asdict(one) for key, one in new.items()})
            found |= new
            rate.update(made)
    return [found[key] for own in keys.values() for key in own]


def _present(found: dict[str, Any], keys: Sequence[str]) -> int:
    """Return how many of the first keys are found; what lies behind a gap is made again."""
    return next((i for i, key in enumerate(keys) if key not in found), len(keys))


def settings(
    lm: LanguageModel, decoding: Decoding, *, max_tokens: int, seed: int
) -> tuple[Any, ...]:
    """Return all that draws depend on beside the model and the prompt."""
    own = {name: getattr(decoding, name) for name in Decoding.model_fields}
    return lm.device.type, own, max_tokens, seed


def kept(*made_from: Any) -> Items:
    """Return where draws are kept of a model and its adapter, held so, with these `settings`."""
    return Items("draws", *made_from, by=Path(__file__))


def by_request(draws: Sequence[D], requests: Sequence[Request]) -> list[list[D]]:
    """Return what was drawn, a list for each request."""
    left = iter(draws)
    return [[next(left) for _ in range(request.samples)] for request in requests]


def text(lm: LanguageModel, draw: Draw) -> str:
    """Return a draw's text, without the token that ended it."""
    ids = draw.ids[:-1] if draw.finish == "stop" else draw.ids
    return lm.tokenizer.decode(ids, skip_special_tokens=False)


def plan(requests: Sequence[Request], *, max_tokens: int, batch_tokens: int) -> list[list[Request]]:
    """Return batches of requests of like length, each of at most `batch_tokens` (or one prompt).

    Longest first, so that a batch that does not fit in memory fails at once and not at the end.
    """
    result: list[list[Request]] = []
    used = batch_tokens + 1
    for request in sorted(requests, key=lambda r: -len(r.ids)):
        cost = (len(request.ids) + max_tokens) * len(request.indices)
        if used + cost > batch_tokens:
            result.append([])
            used = 0
        result[-1].append(request)
        used += cost
    return result


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    max_tokens: int,
    seed: int,
    states: bool = False,
) -> tuple[list[Draw], Positions | None]:
    """Answer the requests of one batch, all at once; `sample` says what the arguments mean.

    Returns:
        The draws, by request and index; with `states`, also the hidden states from which their
        tokens were drawn.
    """
    owners = [(r.prompt_id, i) for r in requests for i in r.indices]
    rows = [p for p, r in enumerate(requests) for _ in r.indices]
    prefix = prefill(lm, [r.ids for r in requests], room=max_tokens)
    prefix.select(torch.tensor(rows, device=lm.device))
    keys_B = torch.tensor([row_key(seed, *owner) for owner in owners], device=lm.device)
    alive_B = torch.arange(len(owners), device=lm.device)  # row of the batch to original row
    going_B = torch.ones_like(alive_B, dtype=torch.bool)
    ends = torch.tensor(lm.eos_ids, device=lm.device)
    steps: list[Positions] = []
    logps = torch.zeros(len(owners), dtype=torch.float64)
    for step in range(max_tokens):
        token_B, logp_B = _next_tokens(lm, prefix.hidden_BD, decoding, keys_B, step)
        hidden_BD = prefix.hidden_BD if states else token_B
        steps.append(Positions(hidden_BD[going_B], token_B[going_B], alive_B[going_B]))
        logps.index_add_(0, alive_B[going_B].cpu(), logp_B[going_B].double().cpu())
        going_B &= ~torch.isin(token_B, ends)
        left = int(going_B.sum())
        if step + 1 == max_tokens or not left:
            break
        if left <= len(going_B) * WORTH_KEEPING:
            keep = going_B.nonzero().squeeze(1)
            prefix.select(keep)
            alive_B, keys_B, token_B = alive_B[keep], keys_B[keep], token_B[keep]
            going_B = going_B[keep]
        prefix.read(token_B[:, None])
    at = _by_owner(steps)
    draws = _draws(lm, owners, at, logps.tolist())
    return draws, at if states else None


def _by_owner(steps: list[Positions]) -> Positions:
    """Join the steps and bring each completion's tokens together."""
    owner_N = torch.cat([step.owner_N for step in steps])
    order_N = owner_N.argsort(stable=True)
    hidden_ND = torch.cat([step.hidden_ND for step in steps])
    target_N = torch.cat([step.target_N for step in steps])
    return Positions(hidden_ND[order_N], target_N[order_N], owner_N[order_N])


def _draws(
    lm: LanguageModel, owners: list[tuple[str, int]], at: Positions, logps: list[float]
) -> list[Draw]:
    lengths = at.owner_N.bincount(minlength=len(owners)).tolist()
    return [
        Draw(*owner, tuple(ids.tolist()), "stop" if int(ids[-1]) in lm.eos_ids else "length", logp)
        for owner, ids, logp in zip(owners, at.target_N.split(lengths), logps, strict=True)
    ]


def _next_tokens(
    lm: LanguageModel, hidden_BD: Tensor, decoding: Decoding, keys_B: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Return what `draw_tokens` draws after these states, a few rows at a time."""
    logits_BV = torch.nn.functional.linear(hidden_BD, lm.unembedding_VD)
    drawn = [
        draw_tokens(some_BV.float(), decoding, some_B, step)
        for some_BV, some_B in zip(logits_BV.split(ROWS), keys_B.split(ROWS), strict=True)
    ]
    return torch.cat([token_B for token_B, _ in drawn]), torch.cat([logp_B for _, logp_B in drawn])


def draw_tokens(
    logits_BV: Tensor, decoding: Decoding, keys_B: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits_BV: unnormalised log-probabilities, float32.
        decoding: temperature and truncation, applied in this order: temperature, top-k, top-p.
        keys_B: each row's `row_key`.
        step: position of the token in its completion, from 0.

    Returns:
        token_B: ids.
        logp_B: their log-probability in nats under the truncated, tempered distribution.
    """
    scaled_BV = truncate(logits_BV / decoding.temperature, decoding)
    rows, size = scaled_BV.shape
    spare = -size % BLOCK
    padded = (
        torch.nn.functional.pad(scaled_BV, (0, spare), value=-torch.inf) if spare else scaled_BV
    )
    blocks_BKW = padded.view(rows, -1, BLOCK)
    mass_BK = blocks_BKW.logsumexp(-1)
    at_step_B = _mix(keys_B + _signed(_GOLDEN * (step + 1)))
    count = mass_BK.shape[1]
    which_K = torch.arange(count, device=logits_BV.device)
    block_B = (mass_BK.double() + _gumbel(at_step_B, which_K[None, :])).argmax(-1)
    within_BW = blocks_BKW[torch.arange(rows, device=logits_BV.device), block_B]
    token_BW = block_B[:, None] * BLOCK + torch.arange(BLOCK, device=logits_BV.device)
    place_B = (within_BW.double() + _gumbel(at_step_B, count + token_BW)).argmax(-1)
    token_B = block_B * BLOCK + place_B
    logp_B = scaled_BV.gather(1, token_B[:, None]).squeeze(1) - mass_BK.logsumexp(-1)
    return token_B, logp_B


def truncate(logits_BV: Tensor, decoding: Decoding) -> Tensor:
    """Set to -inf what top-k and top-p leave out; tokens that tie with the last kept one stay."""
    size = logits_BV.shape[-1]
    if 0 < decoding.top_k < size:
        least_B1 = logits_BV.topk(decoding.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if decoding.top_p < 1:
        ordered_BV, _ = logits_BV.sort(dim=-1, descending=True)
        before_BV = ordered_BV.softmax(-1).cumsum(-1) - ordered_BV.softmax(-1)
        least_B1 = ordered_BV.masked_fill(before_BV >= decoding.top_p, torch.inf).amin(-1, True)
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    return logits_BV


def row_key(seed: int, prompt_id: str, index: int) -> int:
    """Return the signed 64-bit key of one completion's random numbers."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


# SplitMix64 (Steele, Lea and Flood 2014): a 64-bit counter in, 64 well-mixed bits out. The
# constants are the published ones, written as signed numbers because torch has no unsigned ones.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _signed(value: int) -> int:
    """Wrap an integer to signed 64 bits, as torch's own arithmetic does."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without copying the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _gumbel(key_B: Tensor, counter: Tensor) -> Tensor:
    """Return standard Gumbel noise, one number for each counter of each row, in float64."""
    bits = _mix(key_B[:, None] + _GOLDEN * (counter + 1))
    uniform = (_shift(bits, 11).double() + 0.5) / (1 << 53)
    return -torch.log(-torch.log(uniform))
