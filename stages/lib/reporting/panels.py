"""Chooses the pictures of each training, and says under each what it shows."""

from collections.abc import Mapping
from dataclasses import dataclass

from stages.lib.reporting import figures
from stages.lib.reporting.figures import Figure

Columns = Mapping[str, list[float | None]]
"""Of a training curve, by name; None where a step has no value."""

PANELS = (
    (
        "Score",
        ("score", "proxy", "monitor"),
        "Of the answers that a step learns from; and of answers to validation prompts, by the "
        "reward model (proxy) and by one that training does not see (monitor).",
    ),
    ("KL from the reference", ("kl_sequence",), "In nats an answer, with two standard errors."),
    ("KL from the reference", ("kl_token",), "In nats a token."),
    ("Reference point", ("kl",), "Of KTO: the KL as it estimates it, in nats an answer."),
    ("Loss", ("loss",), "Of what is minimised; those of two algorithms do not compare."),
    (
        "Accuracy",
        ("accuracy",),
        "Share of a step’s pairs of which the implicit reward ranks the chosen answer first.",
    ),
    ("Margin", ("margin",), "Implicit reward of the chosen answer over the rejected one."),
    ("Implicit reward", ("reward_up", "reward_down"), "Of answers with a thumb up and down."),
)
"""Of a training's columns those to look at first: title, names, and what they are."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The pictures of one training."""

    first: list[Figure]
    rest: list[Figure]
    """Those that tell why, where the first ones tell that something went wrong."""


def trainings(curves: Mapping[str, Columns]) -> dict[str, Curves]:
    """Return the training curves of each policy that has any, whichever columns there are."""
    found = {
        name: _curves(f"training-{i}", own)
        for i, (name, own) in enumerate(curves.items())
    }  # fmt: skip
    return {name: own for name, own in found.items() if own.first or own.rest}


def _curves(place: str, own: Columns) -> Curves:
    shown = {
        name: own[name]
        for name in own
        if name != "step" and any(value is not None for value in own[name])
    }
    errors = {name.removesuffix("_se"): own[name] for name in shown if name.endswith("_se")}
    first: list[Figure] = []
    told: set[str] = {f"{name}_se" for name in errors}
    for title, names, caption in PANELS:
        here = {name: shown[name] for name in names if name in shown}
        # A KL a token says what the KL an answer beside it says.
        if here and not (names == ("kl_token",) and "kl_sequence" in shown):
            first.append(_panel(f"{place}-{len(first)}", title, caption, here, own, errors))
            told |= here.keys()
    rest = [
        _panel(f"{place}-other-{i}", name.replace("_", " "), "", {name: shown[name]}, own, {})
        for i, name in enumerate(name for name in shown if name not in told)
    ]
    return Curves(first, rest)


def _panel(
    place: str,
    title: str,
    caption: str,
    columns: Columns,
    own: Columns,
    errors: Columns,
) -> Figure:
    steps = [float(step) for step in own["step"] if step is not None]
    return Figure(place, title, caption, figures.curves(columns, steps, errors))
