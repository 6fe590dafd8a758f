"""What reports/labels.json says: who labeled, how well, what became of it; and the main figures."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.labels import criteria, pairing
from stages.lib.labels.agreement import figure
from stages.lib.labels.consensus import LabelError
from stages.lib.labels.flags import Flag
from stages.lib.labels.pairing import Ballot, Decided
from stages.lib.labels.quality import Draws
from stages.lib.labels.reading import Given
from stages.lib.labels.voters import REASONS, Voters
from stages.lib.records import Demonstration, Signal, latest

MAIN = ("skill", "kendall", "self_consistency", "gold", "position_follow_rate", "tie_rate")
"""Of a labeler's figures, those that runs are compared by."""


class Said:
    """Who gave how many labels of which kind about what, of all prompts."""

    def __init__(self) -> None:
        self.criteria: set[str] = set()
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.taken_back: Counter[str] = Counter()

    def add(self, given: Given) -> None:
        """Take in the labels of some prompts."""
        self.criteria.update(label.criterion for label in given.labels)
        self.taken_back.update(given.taken_back)
        for label in latest(given.labels):
            self.kinds[label.labeler][label.kind] += 1


class Outcome:
    """What became of all labels, summed over the prompts."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Begin with nothing.

        Args:
            weights: of each criterion.
        """
        self.pairs = pairing.Ledger()
        self.trade_off = criteria.TradeOff(weights)
        self.heard: set[str] = set()
        self.left_out: dict[str, Counter[str]] = {why: Counter() for why in REASONS}
        self.signals: Counter[str] = Counter()
        self.signals_left_out: Counter[str] = Counter()
        self.demonstrations: list[Demonstration] = []
        self.demonstrations_left_out: Counter[str] = Counter()

    def add(
        self,
        heard: Voters,
        ballots: Sequence[Ballot],
        decided: Decided,
        signals: tuple[Sequence[Signal], Mapping[str, int]],
        demonstrations: tuple[Sequence[Demonstration], Mapping[str, int]],
        given: Given,
    ) -> None:
        """Take in what became of some prompts' labels.

        Args:
            heard: what counts of them.
            ballots: one a criterion, before several are arranged.
            decided: what became of pairs.
            signals: and how many completions with thumbs gave none, by reason.
            demonstrations: and how many answers became none, by reason.
            given: the prompts.
        """
        self.pairs.add(decided, [x for one in ballots for x in one.counting], given)
        self.trade_off.add(ballots, given.clusters())
        self.heard.update(label.labeler for label in heard.labels)
        for why, by in heard.left_out.items():
            self.left_out[why].update(by)
        self.signals.update({"written": len(signals[0]), "up": sum(one.up for one in signals[0])})
        self.signals_left_out.update(signals[1])
        self.demonstrations += demonstrations[0]
        self.demonstrations_left_out.update(demonstrations[1])


def require_something(made: Outcome) -> None:
    """Refuse where nothing is left to learn from.

    Raises:
        LabelError: there are no pairs, and neither thumbs nor written answers make up for it.
    """
    if made.pairs.splits or made.signals["written"] or made.demonstrations:
        return
    if made.pairs.judged:
        raise LabelError(
            f"no pair is left to learn from: {made.pairs.reasons()}; pairs.ties, "
            "pairs.min_p_chosen and pairs.junk_pairs decide what is left out"
        )
    lost = {why: sum(by.values()) for why, by in made.left_out.items() if by}
    also = "".join(f"; {n} labels are left out as {why}" for why, n in lost.items())
    raise LabelError(
        f"none of {made.pairs.rankings} rankings compares two completions; a pair needs two of one "
        f"prompt, not both junk{also}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found out about the labelers before any of them was heard."""

    kinds: Mapping[str, str]
    """Labeler to kind."""
    answer_keys: Collection[str]
    said: Said
    quality: Mapping[str, Mapping[str, Any]]
    """By criterion, as `quality.report` has it."""
    flagged: Sequence[Flag]
    skills: Mapping[str, Mapping[str, float]]
    """By criterion, what the votes weigh by, where they do; of the voters alone."""


def report(
    found: Measured, made: Outcome, weights: Mapping[str, float], draws: Draws
) -> dict[str, Any]:
    """Return what reports/labels.json holds.

    Returns:
        `labelers`: kind, vote and counts of each; `criteria`: weight, vote_skills and the figures
        of `quality.report` for each; `flagged`; `left_out`: reason to labeler to labels;
        `pairs`, `prompts`, `signals`, `demonstrations`: counts; and of several criteria
        `trade_off`.
    """
    total = sum(weights.values())
    result = {
        "labelers": _labelers(found, made),
        "criteria": {
            name: {
                "weight": weights[name] / total,
                "vote_skills": dict(found.skills[name]),
                **own,
            }
            for name, own in found.quality.items()
        },
        "flagged": [flag.plain() for flag in found.flagged],
        "left_out": {
            **{why: dict(sorted(by.items())) for why, by in made.left_out.items()},
            "taken_back": dict(sorted(found.said.taken_back.items())),
        },
        "pairs": {
            "tie_rate": figure(lambda: made.pairs.tie_rate(**draws.often)),
            **made.pairs.pair_counts(),
        },
        "prompts": made.pairs.prompt_counts(),
        "signals": {**made.signals, "left_out": dict(made.signals_left_out)},
        "demonstrations": {
            "written": len(made.demonstrations),
            "left_out": dict(made.demonstrations_left_out),
        },
    }
    if len(found.quality) > 1:
        result["trade_off"] = made.trade_off.figures(**draws.often)
    return result


def _labelers(found: Measured, made: Outcome) -> dict[str, dict[str, Any]]:
    """Return who each labeler is, whether they vote, and how many labels of each kind they gave."""
    given = found.said.kinds
    return {
        name: {
            "kind": found.kinds[name],
            "vote": _vote(name, found, made),
            "rankings": given[name]["ranking"],
            "thumbs": given[name]["thumbs"],
            "demonstrations": given[name]["demonstration"],
        }
        for name in sorted(found.kinds)
    }


def _vote(name: str, found: Measured, made: Outcome) -> str:
    if name in found.answer_keys:
        return "none: answer key"
    if name in made.left_out["not_named"]:
        return "none: not named in pairs.labelers"
    flagged = [flag for flag in found.flagged if flag.labeler == name and flag.left_out]
    if flagged:
        out = sorted(flag.criterion for flag in flagged)
        return f"none on {', '.join(dict.fromkeys(out))}: low quality"
    return "counts" if name in made.heard else "none: no label on what is asked"


def headline(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures to compare runs by; one that was refused is absent.

    Those of a criterion carry its name where there are several, those of a labeler theirs.
    """
    counts = found["pairs"]
    numbers = {f"pairs_{split}": float(n) for split, n in counts["written"].items()}
    numbers |= {
        "removed_share": counts["removed_share"],
        "signals": float(found["signals"]["written"]),
        "demonstrations": float(found["demonstrations"]["written"]),
        "flagged": float(len({flag["labeler"] for flag in found["flagged"]})),
        "flagged_left_out": float(len({f["labeler"] for f in found["flagged"] if f["left_out"]})),
    }
    measured = {"tie_rate": counts["tie_rate"]}
    for name, own in found["criteria"].items():
        before = f"{name}/" if len(found["criteria"]) > 1 else ""
        measured |= {
            f"{before}agreement": own["agreement"]["raw"],
            f"{before}alpha_nominal": own["agreement"]["alpha_nominal"],
            f"{before}alpha_ordinal": own["agreement"]["alpha_ordinal"],
        }
        for labeler, figures in own["labelers"].items():
            # MLflow takes no # in the name of a metric.
            who = labeler.replace("#", "_")
            measured |= {f"{before}{who}/{key}": figures[key] for key in MAIN}
    return numbers | {key: own["value"] for key, own in measured.items() if "value" in own}
