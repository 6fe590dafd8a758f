"""A model answers prompts of the graph; what it said before is found again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.lib import sampling
from stages.lib.base import Base
from stages.lib.models import LanguageModel
from stages.lib.order import by_hash
from stages.lib.records import Prompt
from stages.lib.runtime import processes
from stages.lib.sampling import Decoding, Draw, Request
from stages.lib.tokens import encode_prompt


def draw(
    lm: LanguageModel,
    asked: Sequence[Prompt],
    decoding: Decoding,
    base: Base,
    *,
    model: Path,
    adapter: Path,
    name: str,
    completions: int,
    max_tokens: int,
    batch_tokens: int,
    seed: int,
) -> list[list[Draw]]:
    """Return the completions of each prompt; several processes share them.

    Args:
        lm: `model` with `adapter` at work, held as `base` says.
        asked: the prompts.
        decoding: how a token is drawn.
        base: section `base` of params.yaml.
        model: folder of the model.
        adapter: folder of the adapter; the model's own again stands for none.
        name: of who answers. A bare model is drawn under `seed` itself, whatever it is called.
        completions: a prompt.
        max_tokens: a completion, EOS included.
        batch_tokens: in memory at once.
        seed: selects the random numbers.
    """
    bare = adapter.resolve() == model.resolve()
    drawn = {"max_tokens": max_tokens, "seed": seed if bare else own_seed(seed, name)}
    own = sampling.settings(lm, decoding, **drawn)
    kept = sampling.kept(model, None if bare else adapter, base, own)

    requests = [Request(p.id, encode_prompt(lm, p.body()), completions) for p in asked]
    return answers(
        lm, requests, decoding, **drawn, batch_tokens=batch_tokens, label=f"sample {name}",
        kept=kept,
    )  # fmt: skip


def answers(
    lm: LanguageModel, requests: Sequence[Request], decoding: Decoding, **drawn: Any
) -> list[list[Draw]]:
    """Return what `sampling.sample` draws, a list for each request; processes share them."""

    def work(some: list[Request]) -> list[list[Draw]]:
        return sampling.by_request(sampling.sample(lm, some, decoding, **drawn), some)

    return processes.shared(requests, work, cost=lambda request: len(request.ids))


def own_seed(seed: int, name: str) -> int:
    """Return a seed for a policy that answers beside its base.

    Under the base's random numbers one that is near it says the same, and no pair would differ.
    """
    return seed + int(by_hash(name)[:8], 16)
