"""Let a policy answer prompts, and note each answer's reward and how likely it was.

    python -m stages.grade base models/base models/base models/reward data/prompts data/graded/base

Reads   models/base           the reference
        models/base again, or a policy, models/policies/<name>: whose answers, the proposal
        models/reward         what grades them
        data/prompts          train.jsonl, validation.jsonl
Writes  data/graded/<name>    graded.jsonl, one completion a line, a prompt's together; and pairs
                              by their rewards, train.jsonl and validation.jsonl
Params  graders.<name>, base, seed
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.lib import drawing, graded, models, reward_model, selection
from stages.lib.base import Base
from stages.lib.graded import WHOLE, Graded
from stages.lib.records import Name
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed, Strict


class Grader(Strict):
    """An entry of `graders`."""

    proposal: Name
    """Whose answers: models/base, or models/policies/<name>."""
    reward: Name
    """Folder of the reward model."""
    roles: Annotated[list[Literal["align", "validation"]], Field(min_length=1)]
    """Whose prompts are answered."""
    categories: list[Name]
    """Which prompts are answered; none named means all."""
    completions: Annotated[int, Field(ge=2)]
    """A prompt."""
    max_tokens: Annotated[int, Field(ge=1)]
    """A completion, EOS included."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once."""
    min_p_chosen: Annotated[float, Field(ge=0.5, le=1)]
    """Pairs less sure by the reward model are left out."""


def run(
    grader: Grader,
    base: Base,
    seed: Seed,
    *,
    name: str,
    base_folder: Path,
    proposal: Path,
    reward: Path,
    prompts: Path,
    out: Path,
) -> dict[str, float]:
    """Write the graded completions and their pairs; return sizes and the mean reward."""
    asked = selection.chosen(prompts, grader.roles, grader.categories, section=f"graders.{name}")
    lm = models.load_adapted(base_folder, proposal, base)
    drawn = drawing.draw(
        lm, asked, WHOLE, base, model=base_folder, adapter=proposal, name=name, seed=seed,
        completions=grader.completions, max_tokens=grader.max_tokens,
        batch_tokens=grader.batch_tokens,
    )  # fmt: skip
    bare = proposal.resolve() == base_folder.resolve()
    rows = graded.grade(
        lm, asked, drawn, reward_model.load(lm, reward, name="reward"),
        proposal=None if bare else models.POLICY, name=name, batch_tokens=grader.batch_tokens,
    )  # fmt: skip
    made = list(graded.pairs(rows, min_p_chosen=grader.min_p_chosen))
    with files.whole_folder(out) as folder:
        files.write_lines(folder / graded.FILE, rows)
        for split in ("train", "validation"):
            own = [pair for pair in made if graded.split_of(pair.role) == split]
            files.write_lines(folder / f"{split}.jsonl", own)
    return numbers(rows) | {"pairs": float(len(made))}


def numbers(rows: Sequence[Graded]) -> dict[str, float]:
    """Return sizes, the mean reward, and how far the proposal is from the base."""
    return {
        "prompts": float(len({row.prompt_id for row in rows})),
        "completions": float(len(rows)),
        "tokens": float(sum(len(row.ids) for row in rows)),
        "reward": statistics.fmean(row.reward for row in rows),
        "kl_sequence": statistics.fmean(row.logp_proposal - row.logp_reference for row in rows),
    }


if __name__ == "__main__":
    entry.main(run, "graders.{name}", "base", "seed", shared=entry.everyone)
