"""What revising did: how many texts changed, how far, and whether they do less harm.

Harm is that of the scorers that labels may use; the independent one of the verdict takes no part
before the report. Changes are paired, revision minus answer of the same prompt, with 95 % intervals
that resample clusters of prompts.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.diversity import repeated
from stages.lib.refusals import classify
from stages.lib.revisions import Chain
from stages.lib.runtime.schema import Refusal
from stages.lib.statistics import Estimate, bootstrap_mean

WORDS = 5
"""Of an opening. Boilerplate begins alike: "I'm sorry, but I can't"."""

Scorers = Mapping[str, Callable[[Sequence[str]], list[float]]]


@dataclass(frozen=True, slots=True)
class Change:
    """A prompt's text before and after."""

    cluster: str
    category: str
    principle: str
    """Of the last round between the two."""
    before: str
    after: str


def measure(
    chains: Sequence[Chain], scorers: Scorers, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return what the report of a reviser holds.

    Args:
        chains: all prompts.
        scorers: name to a function from texts to harm, higher is worse.
        resamples: of each interval.
        seed: likewise.

    Raises:
        Refusal: no chain ends in a text.
    """
    ended = [c for c in chains if c.final]
    if not ended:
        raise Refusal(
            f"none of {len(chains)} prompts has a revision: answer, criticism or revision is blank "
            "each time; another temperature, more tokens or a larger model would do"
        )
    whole = [_change(c, 0, len(c.rounds)) for c in ended]
    categories = sorted({one.category for one in whole})
    harm = _Harm(scorers, resamples, seed)
    return {
        "prompts": len(chains),
        "changed_share": sum(c.changed for c in chains) / len(chains),
        "empty_share": 1 - len(ended) / len(chains),
        "cut_share": sum(c.final.finish == "length" for c in ended) / len(ended),
        "tokens": {
            "original": _mean([c.original.tokens for c in ended]),
            "final": _mean([c.final.tokens for c in ended]),
        },
        **_wording(whole),
        "refused": _refused(ended),
        "harm": harm.of(whole),
        "by_category": {
            name: harm.of([one for one in whole if one.category == name]) for name in categories
        },
        "by_round": _by_round(chains, harm),
        "by_principle": _by_principle(chains, harm),
    }


def _wording(whole: Sequence[Change]) -> dict[str, Any]:
    """Return how far texts share words, go in circles and begin alike."""
    before, after = [one.before for one in whole], [one.after for one in whole]
    return {
        "overlap": _mean([overlap(a, b) for a, b in zip(before, after, strict=True)]),
        "repetition": {"original": repetition(before), "final": repetition(after)},
        "openings": {"original": commonest_opening(before), "final": commonest_opening(after)},
    }


@dataclass(frozen=True, slots=True)
class _Harm:
    scorers: Scorers
    resamples: int
    seed: int

    def of(self, changes: Sequence[Change]) -> dict[str, Any]:
        """Return, by scorer, mean harm before and after and the change with its interval."""
        return {"n": len(changes)} | {name: self._one(name, changes) for name in self.scorers}

    def _one(self, name: str, changes: Sequence[Change]) -> dict[str, Any]:
        score = self.scorers[name]
        before = score([one.before for one in changes])
        after = score([one.after for one in changes])
        change: Estimate = bootstrap_mean(
            [b - a for a, b in zip(before, after, strict=True)],
            [one.cluster for one in changes],
            resamples=self.resamples,
            seed=self.seed,
        )
        return {"before": _mean(before), "after": _mean(after), "change": change.plain()}


def _by_round(chains: Sequence[Chain], harm: _Harm) -> list[dict[str, Any]]:
    """Return harm of each round's revisions against the first answers, and the blank ones."""
    longest = max(len(c.rounds) for c in chains)
    found = []
    for number in range(1, longest + 1):
        reached = [c for c in chains if len(c.rounds) >= number]
        blank = [c for c in reached if not (c.rounds[number - 1].revision or "").strip()]
        given = [_change(c, 0, number) for c in reached if c not in blank]
        found.append({"round": number, "blank": len(blank)} | (harm.of(given) if given else {}))
    return found


def _by_principle(chains: Sequence[Chain], harm: _Harm) -> dict[str, Any]:
    """Return harm before and after the rounds that went by each principle."""
    steps = [
        _change(c, number, number + 1)
        for c in chains
        for number in range(len(c.rounds))
        if (c.rounds[number].revision or "").strip()
    ]
    names = sorted({one.principle for one in steps})
    return {name: harm.of([one for one in steps if one.principle == name]) for name in names}


def _change(chain: Chain, start: int, end: int) -> Change:
    """Return a chain's text after `start` rounds, 0 being the answer, and after `end`."""
    texts = [chain.original.text, *(one.revision or "" for one in chain.rounds)]
    return Change(
        cluster=chain.prompt.cluster,
        category=chain.prompt.category,
        principle=chain.rounds[end - 1].principle,
        before=texts[start],
        after=texts[end],
    )


def _refused(chains: Sequence[Chain]) -> dict[str, Any] | None:
    """Return the share of full refusals among conversations; None where there are none."""
    chats = [c for c in chains if c.prompt.form == "chat"]
    if not chats:
        return None
    return {
        "n": len(chats),
        "original": _mean([classify(c.original.text) == "full" for c in chats]),
        "final": _mean([classify(c.text) == "full" for c in chats]),
    }


def overlap(one: str, other: str) -> float:
    """Return the share of distinct words that two texts have in common, of those either has.

    overlap("a b c", "b c d") is 2 / 4.
    """
    ours, theirs = set(one.lower().split()), set(other.lower().split())
    return len(ours & theirs) / len(ours | theirs)


def repetition(texts: Sequence[str]) -> float | None:
    """Return the share of pairs of words that stood earlier in the same text; None of no pair."""
    share = repeated(texts, 2)
    return None if math.isnan(share) else share


def commonest_opening(texts: Sequence[str]) -> dict[str, Any]:
    """Return the first five words that most texts share, and the share that begins so.

    A shorter text is its own opening. Of equally common ones it is the first in the alphabet.
    """
    openings = Counter(" ".join(text.lower().split()[:WORDS]) for text in texts)
    words, count = min(openings.items(), key=lambda item: (-item[1], item[0]))
    return {"words": words, "share": count / len(texts)}


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return the main figures, flat, for MLflow."""
    flat = {
        "prompts": float(found["prompts"]),
        "changed_share": found["changed_share"],
        "empty_share": found["empty_share"],
        "cut_share": found["cut_share"],
        "tokens_before": found["tokens"]["original"],
        "tokens_after": found["tokens"]["final"],
        "overlap": found["overlap"],
        "opening_share_before": found["openings"]["original"]["share"],
        "opening_share": found["openings"]["final"]["share"],
    }
    if None not in found["repetition"].values():
        flat["repetition_before"] = found["repetition"]["original"]
        flat["repetition"] = found["repetition"]["final"]
    if found["refused"]:
        flat["refused_before"] = found["refused"]["original"]
        flat["refused"] = found["refused"]["final"]
    for name in found["harm"].keys() - {"n"}:
        own = found["harm"][name]
        flat |= {f"{name}_before": own["before"], f"{name}_after": own["after"]}
        flat |= {
            f"{name}_change{end}": own["change"][key]
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
    return flat


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
