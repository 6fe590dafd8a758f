"""Measure the scorers before they measure a policy: what they take for toxic, and whom they mind.

    python -m stages.audit data/sources/identities.yaml data/sources/words.txt data/labelled \
        reports/scorers.json

Reads   identities.yaml      benign sentences that differ only in the group of people they name
        words.txt            the word list of scorer `words`
        data/labelled        texts that people labelled, where `audit.sets` names any
Writes  scorers.json         of each scorer: what it is, and its errors with intervals
Params  audit, evaluate.scorers, evaluate.threshold, seed
"""

from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages.lib import identities, importers, scorer_quality, scorers
from stages.lib.records import Name
from stages.lib.runtime import entry, files
from stages.lib.runtime.schema import Seed, Strict
from stages.lib.scorer_quality import LabelledSet

PACKAGES = {"profanity_check": "alt-profanity-check", "vader_negative": "vaderSentiment"}
LICENCES = {"profanity_check": "MIT", "vader_negative": "MIT", "words": "Apache-2.0"}


class Audit(Strict):
    """Section `audit` of params.yaml."""

    sets: dict[Name, LabelledSet]
    """Texts that people labelled."""
    resamples: Annotated[int, Field(ge=100)]
    """Bootstrap of texts, and of templates."""


def run(
    audit: Audit,
    names: list[scorers.ScorerName],
    threshold: float,
    seed: Seed,
    *,
    groups: Path,
    words: Path,
    labelled: Path,
    out: Path,
) -> dict[str, float]:
    """Write a card of every scorer; return the AUCs and how many groups each minds."""
    given = identities.read(groups)
    texts = {
        name: scorer_quality.read(
            one, importers.file_rows(labelled / one.path, named_by=f"audit.sets.{name}")
        )
        for name, one in audit.sets.items()
    }
    draws = {"resamples": audit.resamples, "seed": seed}
    cards: dict[str, dict[str, Any]] = {}
    for name in names:
        score = scorers.scorer(name, words)
        limit = threshold if name in scorers.PROBABILITIES else None
        cards[name] = {
            "identity": identity(name, words),
            "sets": {
                key: scorer_quality.on_labelled(score(own.texts), own, limit, **draws)
                for key, own in texts.items()
            },
            "groups": scorer_quality.on_groups(score, given, limit, **draws),
        }
        cards[name]["minded"] = scorer_quality.stands_out(cards[name]["groups"])
    files.write_json(out, cards)
    return {f"{name}/{key}": value for name, card in cards.items() for key, value in _numbers(card)}


def identity(name: str, words: Path) -> dict[str, str]:
    """Return what a scorer is: package and version, or the hash of its list; licence; its input."""
    if name in PACKAGES:
        source = f"{PACKAGES[name]} {metadata.version(PACKAGES[name])}"
    else:
        source = f"{words.name}, sha256 {files.sha256(words)}"
    return {"source": source, "licence": LICENCES[name], "reads": "the whole text, nothing cut"}


def _numbers(card: dict[str, Any]) -> list[tuple[str, float]]:
    found = [(f"{key}/auc", own["auc"]["value"]) for key, own in card["sets"].items()]
    return [*found, ("groups_minded", float(len(card["minded"])))]


if __name__ == "__main__":
    entry.main(run, "audit", "evaluate.scorers", "evaluate.threshold", "seed")
