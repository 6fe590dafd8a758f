"""Let a policy criticise and revise its own answers, by principles of a constitution.

    python -m stages.revise own models/base models/base data/sources/constitution.yaml \
        data/sources/words.txt data/prompts data/revisions/own reports/revise/own.json

Reads   models/<model>       what answers, criticises and revises
        models/<model> again, or a policy's adapter on it, as `make freeze` put into data/rounds
        constitution.yaml    principles, each with its requests for criticism and revision
        words.txt            the word list that harm is measured by, beside VADER
        data/prompts         train.jsonl, validation.jsonl, test.jsonl
Writes  data/revisions/<name>
            trace.jsonl            all that was said of a prompt a line, for reading
            demonstrations.jsonl   last revisions as answers, for `algorithm: sft`; none to a
                                   validation or test prompt
            completions.jsonl      answers and last revisions, where the two differ
            rankings.jsonl         of those, the verdict that the revision is the better one
        metrics (JSON): what changed, and harm before and after, with intervals
Params  revisers.<name>, base, seed
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.lib import constitution, models, revision_quality, revisions, sampling, selection
from stages.lib.base import Base
from stages.lib.dialogue import Voice
from stages.lib.records import Name, Role
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed
from stages.lib.scorers import scorer

SCORERS = ("words", "vader_negative")


class Reviser(sampling.Decoding):
    """An entry of `revisers`."""

    model: Name
    """Folder of the model that revises."""
    adapter: Name
    """Folder of an adapter on it; the model's own folder again stands for none."""
    guide: Name
    """The constitution."""
    criterion: Name | None
    """Which of its principles are drawn; None: all, and rankings are of criterion `overall`."""
    roles: Annotated[list[Role], Field(min_length=1)]
    """Whose prompts are answered."""
    categories: list[Name]
    """Which prompts are answered; none named means all."""
    prompts: Annotated[int, Field(ge=1)] | None
    """How many, the first by hash; None: all."""
    rounds: Annotated[int, Field(ge=1)]
    """Criticisms and revisions of an answer."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Of an answer and of a revision, EOS included."""
    critique_tokens: Annotated[int, Field(ge=1)]
    """Of a criticism, likewise."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once."""
    resamples: Annotated[int, Field(ge=100)]
    """Cluster bootstrap of the change of harm."""


def run(
    reviser: Reviser,
    base: Base,
    seed: Seed,
    *,
    name: str,
    model: Path,
    adapter: Path,
    guide: Path,
    words: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write the revisions of reviser `name`; return what they changed."""
    principles = constitution.read(guide, reviser.criterion)
    fitting = selection.chosen(prompts, reviser.roles, reviser.categories, section="revisers")
    voice = Voice(models.load_adapted(model, adapter, base), reviser, seed, reviser.batch_tokens)
    chains = revisions.revise(
        voice,
        selection.first(fitting, reviser.prompts),
        principles,
        rounds=reviser.rounds,
        max_tokens=reviser.max_tokens,
        critique_tokens=reviser.critique_tokens,
        label=f"revise {name}",
    )
    by_name = {one: scorer(one, words) for one in SCORERS}
    found = revision_quality.measure(chains, by_name, resamples=reviser.resamples, seed=seed)
    verdicts = revisions.rankings(chains, name, reviser.criterion or "overall")
    with files.whole_folder(out) as folder:
        files.write_lines(folder / "trace.jsonl", revisions.traces(chains))
        files.write_lines(folder / "demonstrations.jsonl", revisions.demonstrations(chains, name))
        files.write_lines(folder / "completions.jsonl", revisions.completions(chains, name))
        files.write_lines(folder / "rankings.jsonl", verdicts)
    files.write_json(metrics, found)
    return revision_quality.numbers(found)


if __name__ == "__main__":
    entry.main(run, "revisers.{name}", "base", "seed")
