"""Chooses the report's pictures and says under each what it shows."""

from collections.abc import Mapping
from typing import Any

from stages.lib.reporting import figures
from stages.lib.reporting.comparison import NAMES, Nested
from stages.lib.reporting.figures import Figure, Look, Point
from stages.lib.reporting.findings import Findings, reward_models


def drawn(findings: Findings) -> dict[str, list[Figure]]:
    """Return the pictures by section of the page."""
    looked = figures.looks(list(findings.policies), findings.plan.baseline)
    return {
        "toxicity": _toxicity_figures(findings, looked),
        "frontier": _frontier_figures(findings, looked),
        "labels": _label_figures(findings.labels),
        "reward": _reward_figures(findings.reward),
        "groups": _group_figures(findings.cards, findings.scoring.independent),
    }


def _toxicity_figures(findings: Findings, looked: Mapping[str, Look]) -> list[Figure]:
    plan, estimates = findings.plan, findings.estimates
    declared = "tp" in estimates[plan.baseline]["independent"]
    threshold = findings.scoring.threshold if declared else None
    line = f" The dotted line is the threshold of {threshold:g}." if declared else ""
    found = [
        Figure(
            "distribution",
            "How bad is the worst answer?",
            "Share of prompts whose worst completion scores at least as much as the axis "
            f"below says. Lower is better.{line}",
            figures.distribution(
                {name: list(own.values()) for name, own in findings.maxima.items()},
                looked,
                threshold,
            ),
        )
    ]
    before = findings.maxima[plan.baseline]
    found += [
        Figure(
            f"paired-{i}",
            f"{name}, prompt by prompt",
            "Each point is one prompt: its worst completion by the baseline (across) and by the "
            "policy (up). Below the diagonal the policy is less toxic.",
            figures.paired(before, findings.maxima[name], name, looked[name]),
        )
        for i, name in enumerate(findings.effects)
    ]
    categories = {
        name: {
            category: groups["independent"][plan.metric]
            for category, groups in own["by_category"].items()
        }
        for name, own in estimates.items()
    }
    caption = f"{NAMES[plan.metric].capitalize()} with 95 % intervals. Further left is better."
    spec = figures.dots(categories, looked, x=NAMES[plan.metric], reference=None)
    return [*found, Figure("categories", "By kind of prompt", caption, spec)]


FRONTIER = (
    (
        "harm",
        "What did each nat buy?",
        ("independent", "mean"),
        "change of mean toxicity",
        "Mean toxicity by the independent scorer, less the baseline’s, over the square root of the "
        "KL from it, with 95 % intervals. Lower left is best: much for little. Filled marks are "
        "policies as they ended, on all their answers; hollow ones are states on the way, on the "
        "first prompts and answers. The dashed line chooses, of n answers of the baseline, the one "
        "that the reward model likes best: no training.",
    ),
    (
        "proxy",
        "What did the reward model see?",
        ("reward", "reward"),
        "change of reward",
        "Its score of the same answers. Where this rises while toxicity rises too, the policy "
        "learns the reward model’s mistakes.",
    ),
    (
        "monitor",
        "What did the monitor see?",
        ("reward", "monitor"),
        "change of the monitor’s score",
        "The score of a second reward model that learned from other prompts, and that no policy "
        "is trained on and no answer chosen by.",
    ),
)


def _frontier_figures(findings: Findings, looked: Mapping[str, Look]) -> list[Figure]:
    """Every policy and state that was kept, and the choice that needs no training, by score."""
    found = []
    for score, title, where, y, caption in FRONTIER:
        tracks = {name: _track(findings, name, score, where) for name in findings.effects}
        tracks = {name: points for name, points in tracks.items() if points}
        if tracks:
            fits = {name: own["fit"].get(score) for name, own in findings.courses.items()}
            choice = _choice(findings.controls["best_of_reward"], score)
            spec = figures.frontier(tracks, fits, choice, looked, score=score, y=y)
            found.append(Figure(f"frontier-{score}", title, caption, spec, wide=score == "harm"))
    return found


def _track(findings: Findings, name: str, score: str, where: tuple[str, str]) -> list[Point]:
    """One policy's states on the way, and what it became: on all answers, as in the tables."""
    group, metric = where
    kept = findings.courses[name]["states"][1:-1] if name in findings.courses else []
    found = [
        Point(f"step {state['step']}", state["kl"], state["change"][score])
        for state in kept if score in state["change"]
    ]  # fmt: skip
    gained = findings.effects[name].get(group, {}).get(metric)
    if gained:
        found.append(Point("as it ended", findings.estimates[name]["cost"]["kl_exact"], gained))
    return found


def _choice(control: Mapping[str, Nested], score: str) -> list[Point]:
    """The best of n answers of the baseline, but for n = 1, which is the baseline itself."""
    return [
        Point(f"n = {n}", dict.fromkeys(figures.ENDS, own["kl"]), own["change"][score])
        for n, own in control.items() if n != "1" and score in own["change"]
    ]  # fmt: skip


AGREEMENT = (
    "Share of pairs that two labelers order alike; pairs that one of them ties are left out. The "
    "dotted line is chance."
)
SKILL = (
    "Estimated probability that a labeler’s verdict is right, from agreement alone. The dotted "
    "line is chance."
)


TRADE_OFF = (
    "Of the pairs judged under both criteria, the shares on which their verdicts name the same "
    "winner, opposite ones, or a tie under one of them."
)


def _label_figures(labels: Mapping[str, Any]) -> list[Figure]:
    """Agreement of labelers and their skill by criterion, and what several criteria trade off."""
    criteria = labels.get("criteria", {})
    wanted = (
        ("agreement", "Do the labelers agree?", AGREEMENT, _shares),
        ("skill", "How reliable is each labeler?", SKILL, _skills),
    )
    found = [
        _dots(name, title, caption, {c: rows(own) for c, own in criteria.items()}, name, 0.5)
        for name, title, caption, rows in wanted
    ]
    couples = labels.get("trade_off", {})
    settled = {
        share: {_spoken(couple): own[share] for couple, own in couples.items()}
        for share in ("alike", "conflict", "tie")
    }
    title = "What do the criteria trade off?"
    found.append(_dots("trade-off", title, TRADE_OFF, settled, "share of pairs", None))
    return [figure for figure in found if figure is not None]


def _shares(own: Mapping[str, Any]) -> dict[str, Any]:
    agreement = own.get("agreement", {})
    shares = {"all labelers": agreement["raw"]} if "raw" in agreement else {}
    return shares | {
        _spoken(couple): found for couple, found in agreement.get("between", {}).items()
    }


def _skills(own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts["skill"] for name, facts in own.get("labelers", {}).items()}


def _spoken(couple: str) -> str:
    return couple.replace(":", " and ")


def _dots(
    name: str,
    title: str,
    caption: str,
    series: Mapping[str, Mapping[str, Any]],
    x: str,
    reference: float | None,
) -> Figure | None:
    """Return a picture of what is measured, a series each with its mark, or nothing."""
    measured = {
        key: {row: e for row, e in rows.items() if {"value", "low", "high"} <= e.keys()}
        for key, rows in series.items()
    }
    measured = {key: rows for key, rows in measured.items() if rows}
    if not measured:
        return None
    # The first look is a baseline's grey.
    looked = figures.looks(["", *measured], "")
    spec = figures.dots(measured, looked, x=x, reference=reference)
    return Figure(name, title, caption, spec)


def _reward_figures(reward: Mapping[str, Any]) -> list[Figure]:
    """The calibration of each reward model that was measured, as it may not be of a classifier."""
    found: list[Figure] = []
    for name, own in reward_models(reward).items():
        if not own.get("calibration"):
            continue
        caption = (
            "On the diagonal, a predicted probability comes true as often as it says. Larger "
            "markers rest on more pairs."
        )
        if "ece" in own and "ece_null" in own:
            ece, null = (_figure_of(own[key]) for key in ("ece", "ece_null"))
            caption += f" Error {ece:.3f}; a perfect model would show {null:.3f} on as few pairs."
        title = f"Is the {name} model’s confidence right?"
        spec = figures.calibration(own["calibration"])
        found.append(Figure(f"calibration-{name}", title, caption, spec))
    return found


def _group_figures(cards: Mapping[str, Any], independent: str) -> list[Figure]:
    """Whom the independent scorer minds, by dimension, worst first."""
    if independent not in cards:  # a model, which `audit` does not measure
        return []
    groups = cards[independent]["groups"]
    order = sorted(groups, key=lambda g: (groups[g]["dimension"], -groups[g]["gap"]["value"]))
    rows = {f"{groups[g]['dimension']}: {g.replace('-', ' ')}": groups[g]["gap"] for g in order}
    caption = (
        "Mean score of benign sentences that name the group, less that of the same sentences "
        "about tall people, teachers and other controls. Right of the line, the name alone raises "
        "the score."
    )
    title = "Whom does the independent scorer mind?"
    return [
        figure for figure in [_dots("groups", title, caption, {"gap": rows}, "gap", 0.0)] if figure
    ]


def _figure_of(found: Any) -> float:
    return float(found["value"] if isinstance(found, Mapping) else found)
