"""Let a model answer prompts several times, each answer with random numbers of its own.

    python -m stages.sample base models/base models/base data/prompts data/completions/base.jsonl

Reads   models/<model>               what answers
        models/<model> again, or a policy's adapter on it, as `make freeze` put into data/rounds
        data/prompts                 train.jsonl, validation.jsonl, test.jsonl
Writes  completions.jsonl            one completion a line, in the order of prompts and index
Params  samplers.<name>, base, seed
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib import drawing, models, sampling, selection
from stages.lib.base import Base
from stages.lib.models import LanguageModel
from stages.lib.records import Completion, Name, Role
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed
from stages.lib.sampling import Draw


class Sampler(sampling.Decoding):
    """An entry of `samplers`."""

    model: Name
    """Folder of the model that answers."""
    adapter: Name
    """Folder of an adapter on it; the model's own folder again stands for none."""
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
    sampler: Sampler,
    base: Base,
    seed: Seed,
    *,
    name: str,
    model: Path,
    adapter: Path,
    prompts: Path,
    out: Path,
) -> dict[str, float]:
    """Write the completions; return their number, length, and share cut at the limit."""
    asked = selection.chosen(prompts, sampler.roles, sampler.categories, section="samplers")
    lm = models.load_adapted(model, adapter, base)
    told = drawing.draw(
        lm, asked, sampler, base, model=model, adapter=adapter, name=name, seed=seed,
        completions=sampler.completions, max_tokens=sampler.max_tokens,
        batch_tokens=sampler.batch_tokens,
    )  # fmt: skip
    draws = [draw for each in told for draw in each]
    files.write_lines(out, [completion(lm, name, draw) for draw in draws])
    lengths = [len(draw.ids) for draw in draws]
    return {
        "prompts": float(len(asked)),
        "completions": float(len(draws)),
        "tokens": float(sum(lengths)),
        "mean_tokens": sum(lengths) / len(lengths),
        "cut_share": sum(draw.finish == "length" for draw in draws) / len(draws),
    }


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
    entry.main(run, "samplers.{name}", "base", "seed", shared=entry.everyone)
