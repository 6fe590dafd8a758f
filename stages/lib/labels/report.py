"""What reports/labels.json says: who labeled, how well, what became of it; and the main figures."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.labels import consensus, criteria, pairing
from stages.lib.labels.agreement import figure
from stages.lib.labels.consensus import LabelError
from stages.lib.labels.flags import Flag
from stages.lib.labels.pairing import Ballot, Decided
from stages.lib.labels.quality import Draws
from stages.lib.labels.reading import Given
from stages.lib.labels.voters import Voters
from stages.lib.records import Demonstration, Ranking, Signal, latest

MAIN = ("skill", "kendall", "self_consistency", "gold", "position_follow_rate", "tie_rate")
"""Of a labeler's figures, those that runs are compared by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that was found and made."""

    given: Given
    quality: Mapping[str, Mapping[str, Any]]
    """By criterion, as `label_quality.report` has it."""
    flagged: Sequence[Flag]
    answer_keys: Collection[str]
    heard: Voters
    ballots: Sequence[Ballot]
    """One a criterion, before several are arranged."""
    decided: Decided
    signals: tuple[list[Signal], dict[str, int]]
    """And how many completions with thumbs gave none, by reason."""
    demonstrations: tuple[list[Demonstration], dict[str, int]]
    """And how many answers became none, by reason."""


def require_something(made: Outcome) -> None:
    """Refuse where nothing is left to learn from.

    Raises:
        LabelError: there are no pairs, and neither thumbs nor written answers make up for it.
    """
    if made.decided.rows or made.signals[0] or made.demonstrations[0]:
        return
    if made.decided.judged:
        raise LabelError(
            f"no pair is left to learn from: {pairing.reasons(made.decided)}; pairs.ties, "
            "pairs.min_p_chosen and pairs.junk_pairs decide what is left out"
        )
    count = len(_counting(made))
    lost = {why: sum(by.values()) for why, by in made.heard.left_out.items() if by}
    also = "".join(f"; {n} labels are left out as {why}" for why, n in lost.items())
    raise LabelError(
        f"none of {count} rankings compares two completions; a pair needs two of one prompt, not "
        f"both junk{also}"
    )


def report(made: Outcome, weights: Mapping[str, float], draws: Draws) -> dict[str, Any]:
    """Return what reports/labels.json holds.

    Returns:
        `labelers`: kind, vote and counts of each; `criteria`: weight, vote_skills and the figures
        of `label_quality.report` for each; `flagged`; `left_out`: reason to labeler to labels;
        `pairs`, `prompts`, `signals`, `demonstrations`: counts; and of several criteria
        `trade_off`.
    """
    clusters, often = made.given.clusters(), draws.often
    total = sum(weights.values())
    counts = {
        "tie_rate": figure(lambda: pairing.tie_rate(made.decided, clusters, **often)),
        **pairing.pair_counts(made.decided),
    }
    found = {
        "labelers": _labelers(made),
        "criteria": {
            one.criterion: {
                "weight": weights[one.criterion] / total,
                "vote_skills": dict(one.skills),
                **made.quality[one.criterion],
            }
            for one in made.ballots
        },
        "flagged": [flag.plain() for flag in made.flagged],
        "left_out": {
            **made.heard.left_out,
            "taken_back": dict(sorted(made.given.taken_back.items())),
        },
        "pairs": counts,
        "prompts": pairing.prompt_counts(made.decided.rows, _counting(made), made.given),
        "signals": _written(made.signals) | {"up": sum(one.up for one in made.signals[0])},
        "demonstrations": _written(made.demonstrations),
    }
    if len(made.ballots) > 1:
        found["trade_off"] = criteria.trade_off(made.ballots, weights, clusters, **often)
    return found


def _counting(made: Outcome) -> list[Ranking]:
    return [
        ranking
        for one in made.ballots
        for ranking in consensus.current(made.heard.rankings(one.criterion))
    ]


def _written(made: tuple[Sequence[Any], Mapping[str, int]]) -> dict[str, Any]:
    return {"written": len(made[0]), "left_out": dict(made[1])}


def _labelers(made: Outcome) -> dict[str, dict[str, Any]]:
    """Return who each labeler is, whether they vote, and how many labels of each kind they gave."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for label in latest(made.given.labels):
        kinds[label.labeler][label.kind] += 1
    heard = {label.labeler for label in made.heard.labels}
    return {
        name: {
            "kind": made.given.kinds[name],
            "vote": _vote(name, made, heard),
            "rankings": kinds[name]["ranking"],
            "thumbs": kinds[name]["thumbs"],
            "demonstrations": kinds[name]["demonstration"],
        }
        for name in sorted(made.given.kinds)
    }


def _vote(name: str, made: Outcome, heard: Collection[str]) -> str:
    if name in made.answer_keys:
        return "none: answer key"
    if name in made.heard.left_out["not_named"]:
        return "none: not named in pairs.labelers"
    out = sorted(flag.criterion for flag in made.flagged if flag.labeler == name and flag.left_out)
    if out:
        return f"none on {', '.join(dict.fromkeys(out))}: low quality"
    return "counts" if name in heard else "none: no label on what is asked"


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
