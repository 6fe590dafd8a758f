"""Let a model answer prompts several times, each answer with random numbers of its own.

    python -m stages.sample base models/base data/prompts data/completions/base.jsonl

Reads   models/<model>               what answers
        data/prompts                 train.jsonl, validation.jsonl, test.jsonl
Writes  completions.jsonl            one completion a line, in the order of prompts and index
Params  samplers.<name>, base, seed
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib import models, sampling
from stages.lib.base import Base
from stages.lib.models import LanguageModel
from stages.lib.records import Completion, Name, Prompt, Role
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Refusal
from stages.lib.sampling import Draw, Request
from stages.lib.tokens import encode_prompt


class Sampler(sampling.Decoding):
    """An entry of `samplers`."""

    model: Name
    """Folder of the model that answers."""
    roles: Annotated[list[Role], Field(min_length=1)]
    """Whose prompts are answered."""
    categories: list[Name]
    """Which prompts are answered; none named means all."""
    completions: Annotated[int, Field(ge=1)]
    """A prompt."""
    max_tokens: Annotated[int, Field(ge=1)]
    """A completion, EOS included."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once."""


def run(
    sampler: Sampler, base: Base, seed: int, *, name: str, model: Path, prompts: Path, out: Path
) -> dict[str, float]:
    """Write the completions; return their number, length, and share cut at the limit."""
    asked = chosen_prompts(sampler, prompts)
    lm = models.load(model, base)
    requests = [Request(p.id, encode_prompt(lm, p.body()), sampler.completions) for p in asked]
    draws = sampling.sample(
        lm,
        requests,
        sampler,
        max_tokens=sampler.max_tokens,
        seed=seed,
        batch_tokens=sampler.batch_tokens,
        label=f"sample {name}",
    )
    files.write_lines(out, [completion(lm, name, draw) for draw in draws])
    lengths = [len(draw.ids) for draw in draws]
    return {
        "prompts": float(len(asked)),
        "completions": float(len(draws)),
        "tokens": float(sum(lengths)),
        "mean_tokens": sum(lengths) / len(lengths),
        "cut_share": sum(draw.finish == "length" for draw in draws) / len(draws),
    }


def chosen_prompts(sampler: Sampler, folder: Path) -> list[Prompt]:
    """Return the prompts that the sampler is to answer, in file order."""
    every = [
        p
        for split in ("train", "validation", "test")
        for p in files.read_lines(folder / f"{split}.jsonl", Prompt)
    ]
    known = {p.category for p in every}
    for category in sampler.categories:
        if category not in known:
            raise Refusal(
                f"params.yaml: samplers: no prompt has category '{category}'; there are "
                f"{', '.join(sorted(known))}"
            )
    asked = [
        p
        for p in every
        if p.role in sampler.roles and (not sampler.categories or p.category in sampler.categories)
    ]
    if not asked:
        raise Refusal(
            f"{folder}: no prompt has one of the roles {', '.join(sampler.roles)} and one of "
            "the categories asked for"
        )
    return asked


def completion(lm: LanguageModel, sampler: str, draw: Draw) -> Completion:
    """Return a draw as a record; its text is without the token that ended it."""
    return Completion(
        id=f"{draw.prompt_id}/{sampler}-{draw.index}",
        prompt_id=draw.prompt_id,
        sampler=sampler,
        index=draw.index,
        text=sampling.text(lm, draw),
        finish=draw.finish,
        tokens=len(draw.ids),
        logp=round(draw.logp, 4),
    )


if __name__ == "__main__":
    entry.main(run, "samplers.{name}", "base", "seed")
