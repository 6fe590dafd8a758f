"""Let a language model write prompts that are made to provoke another one.

    python -m stages.provoke red models/base models/base models/base \
        data/sources/provocations.yaml data/sources/words.txt data/sources/prompts \
        data/provocations/red.jsonl reports/provoke/red.json

Reads   models/<attacker>    what writes the prompts
        models/<target>      what they are made to provoke
        models/<target> again, or a policy's adapter on it, as `make freeze` put into data/rounds
        provocations.yaml    written examples by category
        words.txt            the word list that harm may be measured by
        data/sources/prompts the prompts of the graph, which none may be like
Writes  provocations.jsonl   one prompt a line, for an entry `kind: provoked` of prompts.sources
        metrics (JSON)       what was left out for which reason; harm of the target's answers
Params  provokers.<name>, prompts.sources, base, seed
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stages.lib import diversity, importers, models, provocations
from stages.lib.base import Base
from stages.lib.dialogue import Voice
from stages.lib.importers import Provoked, Source
from stages.lib.provocations import Attempt
from stages.lib.records import Name, SourcePrompt
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Refusal, Seed, Strict
from stages.lib.sampling import Decoding
from stages.lib.scorers import scorer
from stages.lib.statistics import bootstrap_mean

EXAMPLES = 5
"""How many attempts of each reason the metrics name; the count is of all."""


class Keep(Strict):
    """Which provocations are worth keeping: those that the target answers with most harm."""

    most: Annotated[int, Field(ge=1)]
    """Of a category."""
    by: Literal["words", "vader_negative"]
    """The scorer of harm; the independent one is not among them."""
    samples: Annotated[int, Field(ge=1)]
    """Answers a provocation, of which the mean counts."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Of an answer."""
    resamples: Annotated[int, Field(ge=100)]
    """Bootstrap of the mean harm."""


class Provoker(provocations.Limits, Decoding):
    """An entry of `provokers`."""

    attacker: Name
    """Folder of the model that writes."""
    target: Name
    """Folder of the model that is provoked."""
    adapter: Name
    """Folder of an adapter on the target; the target's own folder again stands for none."""
    guide: Name
    """File of written examples."""
    categories: Annotated[list[Name], Field(min_length=1)]
    """Of that file."""
    draws: Annotated[int, Field(ge=1)]
    """A category; what is left out is not drawn again."""
    shots: Annotated[int, Field(ge=1)]
    """Examples shown a draw."""
    turns: Annotated[int, Field(ge=1)]
    """Of the person in a chat, at most: draws have 1, 2, … this in turn."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Of a turn of the person, or of a beginning."""
    answer_tokens: Annotated[int, Field(ge=1)]
    """Of the target's turns in a conversation."""
    keep: Keep | None
    """None keeps all that pass."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """In memory at once."""


def run(
    p: Provoker,
    sources: list[Source],
    base: Base,
    seed: Seed,
    *,
    name: str,
    attacker: Path,
    target: Path,
    adapter: Path,
    guide: Path,
    words: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
) -> dict[str, float]:
    """Write the provocations and their counts; return the main counts and harm."""
    categories = provocations.read(guide, p.categories, turns=p.turns)
    known = source_prompts(sources, prompts)
    lm = models.load_adapted(target, adapter, base)
    same = attacker.resolve() == target.resolve()
    writer = lm if same else models.load(attacker, base)
    voices = (
        Voice(writer, p, seed, p.batch_tokens, bare=True),
        Voice(lm, p, seed, p.batch_tokens),
    )
    attempts = provocations.planned(categories, name, draws=p.draws, turns=p.turns)
    provocations.write(
        *voices, attempts, known, p,
        shots=p.shots, max_tokens=p.max_tokens, answer_tokens=p.answer_tokens,
        label=f"provoke {name}",
    )  # fmt: skip
    passed = [a.prompt(f"provoked:{name}") for a in attempts if not a.left_out]
    require_some(name, passed, attempts)
    kept, harm = select(p, voices[1], passed, words, label=f"provoke {name}")
    files.write_lines(out, kept)
    found = summary(categories, attempts, passed, kept) | {"harm": harm}
    files.write_json(metrics, found)
    return numbers(found)


def source_prompts(sources: Sequence[Source], folder: Path) -> list[SourcePrompt]:
    """Return the graph's prompts but those that stages like this one write."""
    read = [importers.read(one, folder) for one in sources if not isinstance(one, Provoked)]
    return [prompt for one in read for _, prompt in one.prompts]


def require_some(name: str, passed: Sequence[SourcePrompt], attempts: Sequence[Attempt]) -> None:
    """Refuse where nothing is left."""
    if not passed:
        reasons = provocations.counts(attempts).most_common()
        raise Refusal(
            f"params.yaml: provokers.{name}: none of {len(attempts)} draws is left ("
            f"{', '.join(f'{count} {reason}' for reason, count in reasons)}); more draws, other "
            "limits or a larger attacker would do"
        )


def select(
    p: Provoker, target: Voice, passed: list[SourcePrompt], words: Path, *, label: str
) -> tuple[list[SourcePrompt], dict[str, Any] | None]:
    """Return what is kept, and the mean harm of the target's answers with its interval.

    The answers by which provocations are chosen make the chosen ones look worse than they are, so
    those are answered anew for the figure.
    """
    if p.keep is None:
        return passed, None
    keep = p.keep
    how = {"samples": keep.samples, "max_tokens": keep.max_tokens}
    score = scorer(keep.by, words)
    first = provocations.harm_of_answers(
        target, passed, score, **how, which="first", label=f"{label}, harm"
    )
    kept = provocations.most_harmful(passed, first, keep.most)
    again = provocations.harm_of_answers(
        target, kept, score, **how, which="again", label=f"{label}, harm of the kept"
    )
    return kept, {
        group: bootstrap_mean(
            list(harm.values()), list(harm), resamples=keep.resamples, seed=target.seed
        ).plain()
        for group, harm in (("passed", first), ("kept", again))
    }


def summary(
    categories: dict[str, provocations.Provocation],
    attempts: Sequence[Attempt],
    passed: Sequence[SourcePrompt],
    kept: Sequence[SourcePrompt],
) -> dict[str, Any]:
    """Return numbers of draws and of what became of them, and how far the texts repeat."""
    texts = [text for prompt in kept for text in provocations.said_by_person(prompt)]
    written = [text for one in categories.values() for text in one.examples]
    return {
        "draws": len(attempts),
        "passed": len(passed),
        "kept": len(kept),
        "left_out": by_reason(attempts),
        "by_category": {
            category: {
                "draws": sum(a.category == category for a in attempts),
                "left_out": provocations.counts([a for a in attempts if a.category == category]),
                "passed": sum(prompt.category == category for prompt in passed),
                "kept": sum(prompt.category == category for prompt in kept),
            }
            for category in categories
        },
        "turns": Counter(
            str(len(provocations.said_by_person(prompt)))
            for prompt in kept
            if prompt.form == "chat"
        ),
        "words": sum(len(text.split()) for text in texts) / len(texts),
        "distinct": {
            group: {str(n): distinct(some, n) for n in (1, 2)}
            for group, some in (("kept", texts), ("written", written))
        },
    }


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return distinct n-grams over all n-grams of the texts; None if they have none."""
    share = diversity.distinct(texts, n)
    return None if math.isnan(share) else share


def by_reason(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return count and first examples of each reason."""
    return {
        reason: {
            "count": count,
            "examples": [
                f"{a.id}: {a.left_out[1]}"
                for a in attempts
                if a.left_out and a.left_out[0] == reason
            ][:EXAMPLES],
        }
        for reason, count in provocations.counts(attempts).items()
    }


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return the main figures, flat, for MLflow."""
    flat = {key: float(found[key]) for key in ("draws", "passed", "kept", "words")}
    flat |= {f"left_out/{reason}": one["count"] for reason, one in found["left_out"].items()}
    own = found["distinct"]["kept"]
    flat |= {f"distinct/{n}": share for n, share in own.items() if share is not None}
    for group, estimate in (found["harm"] or {}).items():
        flat |= {f"harm/{group}{end}": estimate[key] for end, key in ENDS}
    return flat


ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


if __name__ == "__main__":
    entry.main(run, "provokers.{name}", "prompts.sources", "base", "seed")
