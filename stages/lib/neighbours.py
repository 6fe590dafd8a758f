"""What counts as the same text, and which texts are nearly the same.

Similarity is the Jaccard index of two texts' character 5-grams, as in Broder 1997, "On the
resemblance and containment of documents": |A and B| / |A or B|. Near-duplicates of near-duplicates
count as near, so that what is measured here are connected components, called clusters.
"""

import math
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

GRAM = 5
"""Characters in a gram: the definition of the similarity, so not a parameter."""

EVIDENCE = 8
"""Rare grams two texts must share before they are compared. Larger compares fewer pairs and counts
more grams; no value changes the result. 8 was fastest on 30,000 and 100,000 texts."""

MEANINGFUL = frozenset("#%&*@/\\")
"""Punctuation to Unicode, yet part of a word: `C#` is not `C`, `9%` is not `9`, `f*` is not `f`."""


def normalise(text: str) -> str:
    """Return what is left of a text when differences of typing are taken away.

    Unicode NFKC, case folded, white space as single spaces, and no white space or punctuation at
    either end (`MEANINGFUL` aside), unless that is all there is. So `" Who is  ＪＯＨＮ? "` becomes
    `who is john`. Never empty when the text is not blank.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    first, last = 0, len(words)
    while first < last and _is_edge(words[first]):
        first += 1
    while last > first and _is_edge(words[last - 1]):
        last -= 1
    return words[first:last] or words


def _is_edge(character: str) -> bool:
    if character in MEANINGFUL:
        return False
    return character == " " or unicodedata.category(character).startswith("P")


def grams(text: str) -> set[str]:
    """Return the distinct runs of `GRAM` characters; of a shorter text, the text itself."""
    return {text[at : at + GRAM] for at in range(max(len(text) - GRAM + 1, 1))}


def similarity(one: str, other: str) -> float:
    """Return the Jaccard index of two texts' grams, 0 to 1.

    `abcdefg` and `abcdefx` have three grams each and share two of four: 0.5.
    """
    ours, theirs = grams(one), grams(other)
    shared = len(ours & theirs)
    return shared / (len(ours) + len(theirs) - shared)


def clusters(ids_N: Sequence[str], texts_N: Sequence[str], *, threshold: float) -> list[str]:
    """Return the cluster of each text: the smallest id among those it is connected with.

    Args:
        ids_N: one id a text, no two equal.
        texts_N: normalised texts.
        threshold: similarity from which two texts are near-duplicates, above 0, at most 1.
    """
    parent_N = _components(texts_N, threshold)
    roots_N = [_root(parent_N, at) for at in range(len(texts_N))]
    smallest: dict[int, str] = {}
    for name, root in zip(ids_N, roots_N, strict=True):
        smallest[root] = min(name, smallest.get(root, name))
    return [smallest[root] for root in roots_N]


def _components(texts_N: Sequence[str], threshold: float) -> list[int]:
    """Return a forest over the texts: two have the same root exactly if they are connected.

    Exact, without comparing all pairs: the prefix filter (Chaudhuri et al. 2006; Bayardo et al.
    2007), asking for more than one shared gram (Wang et al. 2012). Texts are visited by size, so
    that the index holds only shorter ones, and all have their grams in one order, rarest first.
    Two sets of n and m <= n grams with Jaccard >= t share at least a = t*n grams, and at least
    b = 2t/(1+t)*m. After the k-th shared gram come a - k others at least, so it stands among the
    first n - a + k of the one text, and among the first m - b + k of the other: those are counted.
    """
    grams_N, order_N = _rarest_first(texts_N)
    sets_N = [set(row) for row in grams_N]
    sizes_N = [len(row) for row in grams_N]
    parent_N = list(range(len(grams_N)))
    index: dict[int, list[int]] = {}
    for at, row in enumerate(grams_N):
        size = sizes_N[at]
        least = _at_least(threshold * size)
        evidence = min(EVIDENCE, least)
        shortest = bisect_left(sizes_N, least)
        shared: Counter[int] = Counter()
        for gram in row[: size - least + evidence]:
            shared.update(index.get(gram, ()))
        for other, count in shared.items():
            if count < evidence or other < shortest:
                continue
            root = _root(parent_N, other)
            if root != at:  # what is connected already needs no comparison
                common = len(sets_N[at] & sets_N[other])
                if common / (size + sizes_N[other] - common) >= threshold:
                    parent_N[root] = at
        for gram in row[: size - _at_least(2 * threshold / (1 + threshold) * size) + EVIDENCE]:
            index.setdefault(gram, []).append(at)
    return _in_given_order(parent_N, order_N)


def _rarest_first(texts_N: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Number the grams by rarity; return each text's, shortest text first, and that order."""
    sets_N = [grams(text) for text in texts_N]
    frequency: Counter[str] = Counter()
    for gram_set in sets_N:
        frequency.update(gram_set)
    by_rarity = sorted(frequency, key=lambda gram: (frequency[gram], gram))
    number = {gram: at for at, gram in enumerate(by_rarity)}
    order_N = sorted(range(len(sets_N)), key=lambda at: len(sets_N[at]))
    return [sorted(number[gram] for gram in sets_N[at]) for at in order_N], order_N


def _in_given_order(parent_N: list[int], order_N: list[int]) -> list[int]:
    back_N = [0] * len(parent_N)
    for at, parent in enumerate(parent_N):
        back_N[order_N[at]] = order_N[parent]
    return back_N


def _root(parent_N: list[int], at: int) -> int:
    while parent_N[at] != at:
        parent_N[at] = parent_N[parent_N[at]]  # halves the path for the next time
        at = parent_N[at]
    return at


def _at_least(bound: float) -> int:
    """Round up from a hair below: 0.07 * 100 is 7.000000000000001, and 7 shared grams would do."""
    return max(math.ceil(bound - 1e-9), 1)


class Index:
    """Texts that others are compared with, one after the other."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._holders: dict[str, list[int]] = {}

    def add(self, name: str, text: str) -> None:
        """Take in one normalised text under a name."""
        found = grams(text)
        for gram in found:
            self._holders.setdefault(gram, []).append(len(self._names))
        self._names.append(name)
        self._sizes.append(len(found))

    def nearest(self, text: str) -> tuple[str | None, float]:
        """Return the name of the most similar text, of equals the first, and its similarity.

        None and 0 where no text has a gram in common.
        """
        size, shared = self._shared(text)
        return self._best(
            {at: count / (size + self._sizes[at] - count) for at, count in shared.items()}
        )

    def container(self, text: str) -> tuple[str | None, float]:
        """Return the name of the text that holds the largest share of this one's grams, and that.

        Broder's containment: |A and B| / |A|. `abcdef` is held by `xxabcdefxx` to the full, and
        their similarity is 2 of 6.
        """
        size, shared = self._shared(text)
        return self._best({at: count / size for at, count in shared.items()})

    def _shared(self, text: str) -> tuple[int, Counter[int]]:
        ours = grams(text)
        return len(ours), Counter(at for gram in ours for at in self._holders.get(gram, ()))

    def _best(self, found: dict[int, float]) -> tuple[str | None, float]:
        if not found:
            return None, 0.0
        at = min(found, key=lambda one: (-found[one], one))
        return self._names[at], found[at]
