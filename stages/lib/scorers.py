"""Rule-based and linear scorers of harm: texts in, one number each out, higher is worse.

Two families that share no data: VADER and this project's word list may serve labels and rewards;
alt-profanity-check, a linear model on 200,000 comments labelled by people, judges the outcome.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

ScorerName = Literal["vader_negative", "words", "profanity_check"]
PROBABILITIES = frozenset({"profanity_check"})
"""Scorers whose 0.5 means something; the others have no threshold."""
PICKLES = {
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}
"""SHA-256 of what alt-profanity-check 1.9.1 loads. Others would also be another judge."""
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def scorer(name: ScorerName, words: Path) -> Callable[[Sequence[str]], list[float]]:
    """Return a scorer by name.

    Args:
        name: vader_negative: share of a text's words that are negative, weighted by strength
            (Hutto and Gilbert 2014), 0 to 1. words: summed weight of abusive words, per 10 words,
            0 and up. profanity_check: probability that the text is offensive, 0 to 1.
        words: the word list, which `words` alone reads.
    """
    if name == "vader_negative":
        return _vader_negative
    if name == "words":
        return _WordList(words)
    return _profanity_check


@lru_cache(maxsize=1)
def _vader() -> Any:
    """Its word lists take longer to read than a hundred texts."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _vader_negative(texts: Sequence[str]) -> list[float]:
    analyser = _vader()
    return [float(analyser.polarity_scores(text)["neg"]) for text in texts]


def _profanity_check(texts: Sequence[str]) -> list[float]:
    _require_known(Path(find_spec("profanity_check").origin).parent / "data")
    from profanity_check import predict_prob

    return [float(p) for p in predict_prob(list(texts))] if texts else []


@cache
def _require_known(folder: Path) -> None:
    """Refuse pickles of the linear model before they are loaded that are not those known."""
    for name, known in PICKLES.items():
        if not (folder / name).is_file() or files.sha256(folder / name) != known:
            raise RecordError(
                f"{folder / name}: is not the file of alt-profanity-check 1.9.1, and a pickle runs "
                "code when it is loaded; install that version again"
            )


class _WordList:
    """Sums the weights of listed words, endings included where the list says so."""

    def __init__(self, path: Path) -> None:
        self.exact, self.stems = read_words(path)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> float:
        words = WORD.findall(text.lower())
        total = sum(self._weight(word) for word in words)
        # Per 10 words, so that a long text is not worse for its length; a text of fewer words
        # counts as 10, so that a single mild word is not the worst there is.
        return 10 * total / max(10, len(words))

    def _weight(self, word: str) -> float:
        if word in self.exact:
            return self.exact[word]
        return max(
            (self.stems[word[:n]] for n in range(3, len(word) + 1) if word[:n] in self.stems),
            default=0.0,
        )


def read_words(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Read a word list: `word weight` a line, `stem* weight` for all words that begin so.

    Raises:
        RecordError: a line is not of this form, or a word stands twice; the message has file:line.
    """
    exact: dict[str, float] = {}
    stems: dict[str, float] = {}
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        body = line.split("#")[0].strip()
        if not body:
            continue
        match = re.fullmatch(r"(\S+?)(\*?)\s+(\d+(?:\.\d+)?)", body)
        if not match:
            raise RecordError(
                f"{path}:{number}: must be 'word weight' or 'stem* weight', not '{body}'"
            )
        word, star, weight = match.groups()
        table = stems if star else exact
        if word.lower() in table:
            raise RecordError(
                f"{path}:{number}: '{word}' stands here a second time; remove one of them"
            )
        table[word.lower()] = float(weight)
    if not exact and not stems:
        raise RecordError(f"{path}: has no word; each is a line 'word weight'")
    return exact, stems
