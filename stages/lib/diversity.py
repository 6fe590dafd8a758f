"""How far texts repeat each other and themselves."""

from collections.abc import Sequence


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of whitespace words, in order: two of "a b c" are (a, b) and (b, c)."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct n-grams over all n-grams of the texts taken together; NaN if they have none.

    No n-gram reaches across two texts. distinct(["a b", "a b"], 2) is 1 / 2.
    """
    found = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(found)) / len(found) if found else float("nan")


def repeated(texts: Sequence[str], n: int) -> float:
    """Return the share of n-grams that stood earlier in the same text; NaN if there is none.

    Unlike `distinct` it sees a text that goes round in circles, and not texts that are alike.
    """
    counts = [(len(grams), len(set(grams))) for grams in (ngrams(text, n) for text in texts)]
    total = sum(size for size, _ in counts)
    return 1 - sum(kinds for _, kinds in counts) / total if total else float("nan")


def duplicates(texts: Sequence[str]) -> float:
    """Return the share of texts that equal an earlier one, but for white space at the ends."""
    return 1 - len({text.strip() for text in texts}) / len(texts)
