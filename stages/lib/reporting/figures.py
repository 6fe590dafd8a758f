"""Draws the report's pictures as plotly figures: plain data, whose colours for text the page gives.

Every policy has a colour of the Okabe-Ito palette, which colour-blind readers tell apart, and a
marker shape of its own, in the order of params.yaml and the same in every picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from stages.lib.reporting import numerals
from stages.lib.reporting.course import fitted

COLOURS = ("#8a8f98", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The baseline's grey, then Okabe and Ito's, but for the yellow and black that a page swallows."""
SHAPES = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
RULE = "#9aa0a6"
ENDS = ("value", "low", "high")
NOTHING = dict.fromkeys(ENDS, 0.0)

Estimates = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its words; `spec` is what Plotly.newPlot takes."""

    id: str
    title: str
    caption: str
    spec: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """How one policy is drawn."""

    colour: str
    shape: str
    dash: str

    @property
    def marker(self) -> dict[str, Any]:
        """A plotly marker."""
        return {"color": self.colour, "symbol": self.shape, "size": 10}


CHOICE = Look(COLOURS[0], "circle", "dash")
"""Of what is chosen among the baseline's own answers."""


def looks(policies: Sequence[str], baseline: str) -> dict[str, Look]:
    """Return the look of each policy; with more policies than colours, shapes go on differing."""
    order = [baseline, *(name for name in policies if name != baseline)]
    turns = {name: (i, i // len(COLOURS)) for i, name in enumerate(order)}
    return {
        name: Look(
            COLOURS[i % len(COLOURS)],
            SHAPES[(i + turn) % len(SHAPES)],
            DASHES[(i + turn) % len(DASHES)],
        )
        for name, (i, turn) in turns.items()
    }


def distribution(
    maxima: Mapping[str, Sequence[float]], looked: Mapping[str, Look], threshold: float | None
) -> dict[str, Any]:
    """Share of prompts whose worst completion scores at least x, for every policy."""
    every = [score for scores in maxima.values() for score in scores]
    low, top = min(0.0, *every), max(1.0, *every)
    traces = []
    for name, scores in maxima.items():
        x = np.sort(np.asarray(scores))
        share = 1 - np.arange(len(x)) / len(x)  # at x[i] or above; x[i] itself counts
        traces.append(
            go.Scatter(
                x=[low, *_plain(x), top], y=[1.0, *_plain(share), 0.0], name=name, mode="lines",
                line={"color": looked[name].colour, "dash": looked[name].dash, "width": 2.5,
                      "shape": "vh"},
                hovertemplate="%{y:.0%} at %{x:.2f} or more<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    shapes = [_vertical(threshold)] if threshold is not None else []
    return _figure(
        traces, x="worst completion's score", y="share of prompts", shapes=shapes,
        xaxis={"range": [low, top]}, yaxis={"range": [0, 1.02], "tickformat": ".0%"},
    )  # fmt: skip


def paired(
    before: Mapping[str, float], after: Mapping[str, float], name: str, look: Look
) -> dict[str, Any]:
    """One point a prompt: its worst completion's score by the baseline (x) and the policy (y)."""
    trace = go.Scatter(
        x=_plain(before.values()), y=_plain(after[prompt] for prompt in before), mode="markers",
        name=name, text=list(before),
        marker={**look.marker, "size": 7, "opacity": 0.8}, showlegend=False,
        hovertemplate="%{text}: %{x:.2f} before, %{y:.2f} after<extra></extra>",
    )  # fmt: skip
    every = [*before.values(), *after.values()]
    low, top = min(-0.02, *every), 1.02 * max(1.0, *every)
    return _figure(
        [trace], x="baseline", y=name, shapes=[_diagonal(low, top)],
        xaxis={"range": [low, top]}, yaxis={"range": [low, top]},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One state of a policy, or one n of a choice: how far it went, and what that changed."""

    said: str
    """What it is, for whoever points at it."""
    kl: Mapping[str, float]
    """From the baseline, in nats a sequence, with its interval."""
    change: Mapping[str, float]
    """Of a score, less the baseline's."""


def frontier(
    tracks: Mapping[str, Sequence[Point]],
    fits: Mapping[str, Mapping[str, Any] | None],
    choice: Sequence[Point],
    looked: Mapping[str, Look],
    *,
    score: str,
    y: str,
) -> dict[str, Any]:
    """What a score gained over the distance from the baseline, which stands at 0.

    Args:
        tracks: the states of each policy in order: the last one filled, those before it hollow.
        fits: the curve that `course.fit` found for a policy, if any.
        choice: the best of n answers of the baseline, a dashed line.
        looked: of every policy, the baseline first.
        score: as `course.SCORES` names it.
        y: what it is called.
    """
    baseline = next(iter(looked))
    traces = [_origin(baseline, looked[baseline])]
    traces += [_track(name, points, looked[name], y) for name, points in tracks.items()]
    if choice:
        # What it is stands beside each mark: there is no room for a bar across as well.
        traces.append(
            _track("best of n", choice, CHOICE, y).update(
                mode="lines+markers+text", line_dash=CHOICE.dash, error_x=None,
                marker_symbol=f"{CHOICE.shape}-open", marker_size=8,
                textposition="bottom left" if score == "harm" else "top left",
            )
        )  # fmt: skip
    curves = [
        _gao(fit, points, looked[name], score)
        for name, points in tracks.items() if (fit := fits.get(name))
    ]  # fmt: skip
    if curves:
        traces += [curves[0].update(showlegend=True), *curves[1:]]
    return _figure(
        traces, x="√KL from the baseline, √nats a sequence", y=y, shapes=[_horizontal(0.0)],
        yaxis={"nticks": 6}, height=380,
    )  # fmt: skip


def _origin(baseline: str, look: Look) -> go.Scatter:
    return go.Scatter(
        x=[0.0], y=[0.0], name=baseline, mode="markers", marker={**look.marker, "size": 12},
        hovertemplate="%{fullData.name}<extra></extra>",
    )  # fmt: skip


def _track(name: str, points: Sequence[Point], look: Look, y: str) -> go.Scatter:
    """The states of one policy, joined from the baseline on; only the last of them is filled."""
    far = [
        {end: max(nats, 0.0) ** 0.5 for end, nats in point.kl.items() if end in ENDS}
        for point in points
    ]
    shown = [numerals.interval(point.change, "score", sign=True) for point in points]
    size = [*(8 for _ in points[1:]), 11]
    return go.Scatter(
        x=[0.0, *_plain(distance["value"] for distance in far)],
        y=[0.0, *_plain(point.change["value"] for point in points)],
        name=name, legendgroup=name, mode="lines+markers", showlegend=True,
        text=["", *(point.said for point in points)], customdata=["", *shown],
        textfont={"size": 11}, line={"color": look.colour, "width": 1.4},
        # The first is the baseline, which has a mark of its own.
        marker={
            "color": look.colour, "size": [0, *size], "opacity": [0, *(1 for _ in points)],
            "symbol": [*(f"{look.shape}-open" for _ in points), look.shape],
            "line": {"width": 1.8, "color": look.colour},
        },
        error_x=_bars([NOTHING, *far], look),
        error_y=_bars([NOTHING, *(point.change for point in points)], look),
        hovertemplate=f"%{{text}}: {y} %{{customdata}}, √KL %{{x:.2f}}"
        "<extra>%{fullData.name}</extra>",
    )  # fmt: skip


def _gao(fit: Mapping[str, Any], points: Sequence[Point], look: Look, score: str) -> go.Scatter:
    """The curve fitted to a policy's states, hidden until its name in the legend is clicked.

    Between the states it guesses, and near the baseline wildly.
    """
    x, gain = fitted(fit, max(max(point.kl["value"], 0.0) for point in points) ** 0.5)
    return go.Scatter(
        x=_plain(x), y=_plain(-g if score == "harm" else g for g in gain), mode="lines",
        line={"color": look.colour, "dash": look.dash, "width": 1.4}, hoverinfo="skip",
        name="fitted curves", legendgroup="fitted", showlegend=False, visible="legendonly",
    )  # fmt: skip


def dots(
    series: Mapping[str, Estimates], looked: Mapping[str, Look], *, x: str, reference: float | None
) -> dict[str, Any]:
    """Horizontal dots with intervals: one line a row name, one marker a series."""
    rows = list(dict.fromkeys(row for own in series.values() for row in own))
    place = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    step = 0.62 / max(1, len(series) - 1)
    traces = []
    for i, (name, own) in enumerate(series.items()):
        shift = step * ((len(series) - 1) / 2 - i) if len(series) > 1 else 0.0
        shown = [row for row in rows if row in own]
        traces.append(
            go.Scatter(
                x=[_round(own[row]["value"]) for row in shown],
                y=[_round(place[row] + shift) for row in shown], name=name, mode="markers",
                marker=looked[name].marker, text=shown,
                error_x=_bars([own[row] for row in shown], looked[name]),
                showlegend=len(series) > 1,
                hovertemplate="%{text}: %{x:.3f}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    ticks = {"tickvals": list(place.values()), "ticktext": list(place), "showgrid": False,
             "range": [-0.6, len(rows) - 0.4], "zeroline": False}  # fmt: skip
    shapes = [_vertical(reference)] if reference is not None else []
    height = 110 + (34 + 9 * len(series)) * len(rows)
    return _figure(traces, x=x, y="", yaxis=ticks, shapes=shapes, height=max(240, height))


def calibration(bins: Sequence[Mapping[str, float]], colour: str = COLOURS[1]) -> dict[str, Any]:
    """Observed share against predicted probability, the marker's area by the number of pairs."""
    most = max(found["n"] for found in bins)
    trace = go.Scatter(
        x=[_round(found["p"]) for found in bins], y=[_round(found["observed"]) for found in bins],
        text=[str(found["n"]) for found in bins], mode="lines+markers", showlegend=False,
        marker={"color": colour, "symbol": "diamond",
                "size": [_round(7 + 15 * (found["n"] / most) ** 0.5) for found in bins]},
        line={"color": colour, "width": 1.5},
        hovertemplate="predicted %{x:.2f}, observed %{y:.2f}, %{text} pairs<extra></extra>",
    )  # fmt: skip
    return _figure(
        [trace], x="predicted probability", y="observed share",
        shapes=[_diagonal(0, 1)], xaxis={"range": [-0.03, 1.03]}, yaxis={"range": [-0.03, 1.03]},
    )  # fmt: skip


def curves(
    columns: Mapping[str, Sequence[float | None]],
    steps: Sequence[float],
    errors: Mapping[str, Sequence[float | None]],
) -> dict[str, Any]:
    """Columns of one training against the step, on one axis.

    Args:
        columns: by name; None where a step has no value.
        steps: of the rows.
        errors: standard errors of a column, of which two to each side are drawn.
    """
    traces = []
    for i, (name, values) in enumerate(columns.items()):
        # The baseline's grey is left out, and the first line is whole: most panels have one alone.
        look = Look(*(of[i % len(of)] for of in (COLOURS[1:], SHAPES[1:], DASHES)))
        errs = [0.0 if e is None else _round(2 * e) for e in errors.get(name, ())]
        traces.append(
            go.Scatter(
                x=list(steps), y=list(values),
                name=name.replace("_", " "), connectgaps=True, showlegend=len(columns) > 1,
                # A column with gaps has few values, which its marks show.
                mode="lines+markers" if len(steps) < 40 or None in values else "lines",
                line={"color": look.colour, "dash": look.dash, "width": 2},
                marker={**look.marker, "size": 6},
                error_y={"array": errs, "color": look.colour, "thickness": 1, "width": 3}
                if errs else None,
                hovertemplate="%{y:.4g} at step %{x}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
    axis = {"nticks": 5, "exponentformat": "e"}
    return _figure(traces, x="step", y="", height=230, xaxis={"nticks": 6}, yaxis=axis)


def _figure(
    traces: list[Any],
    *,
    x: str,
    y: str,
    xaxis: Mapping[str, Any] | None = None,
    yaxis: Mapping[str, Any] | None = None,
    shapes: Sequence[Mapping[str, Any]] = (),
    height: int = 340,
) -> dict[str, Any]:
    shown = [trace.showlegend for trace in traces if trace.showlegend is not False]
    legend = len(shown) > 1 or any(shown)
    axis = {"automargin": True, "zeroline": False, "fixedrange": True}
    layout = go.Layout(
        xaxis={**axis, "title": {"text": x, "standoff": 8, "font": {"size": 13}}, **(xaxis or {})},
        yaxis={**axis, "title": {"text": y, "standoff": 8, "font": {"size": 13}}, **(yaxis or {})},
        shapes=list(shapes),
        showlegend=legend,
        height=height,
        margin={"l": 8, "r": 14, "t": 34 if legend else 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    spec = go.Figure(traces, layout).to_plotly_json()
    spec["layout"].pop("template", None)
    return spec


def _bars(estimates: Sequence[Mapping[str, float]], look: Look) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "color": look.colour, "thickness": 1.6, "width": 4,
        "array": [_round(e["high"] - e["value"]) for e in estimates],
        "arrayminus": [_round(e["value"] - e["low"]) for e in estimates],
    }  # fmt: skip


def _vertical(at: float) -> dict[str, Any]:
    line = {"color": RULE, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _horizontal(at: float) -> dict[str, Any]:
    line = {"color": RULE, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": at, "y1": at, "line": line,
            "layer": "below"}  # fmt: skip


def _diagonal(low: float, high: float) -> dict[str, Any]:
    line = {"color": RULE, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": low, "x1": high, "y0": low, "y1": high, "line": line,
            "layer": "below"}  # fmt: skip


def _round(value: float) -> float:
    return round(float(value), 4) + 0.0


def _plain(values: Iterable[float]) -> list[float]:
    return [_round(value) for value in values]
