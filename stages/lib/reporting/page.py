"""Turns findings into the report: one self-contained HTML page, its Markdown twin, plain text.

Completions are hostile input: the templates escape every text, figures carry none, and the page's
own policy lets the browser run only the two scripts whose hashes it states, and fetch nothing.
"""

import base64
import hashlib
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from stages.lib.reporting import controls, figures, methods, numerals, panels, pictures, tables
from stages.lib.reporting.comparison import NAMES, Nested
from stages.lib.reporting.findings import (
    SCORERS,
    Findings,
    Row,
    described,
    doubt,
    groups,
    headline,
    kind_of,
    reward_models,
)
from stages.lib.reporting.tables import flat
from stages.lib.scores import Card

HERE = Path(__file__).parent


def html(findings: Findings) -> str:
    """Return the page; equal findings give equal bytes."""
    script, plotly = _text("page.js"), get_plotlyjs().replace("\r\n", "\n").strip()
    return _template("page.html.j2").render(
        **_shared(findings),
        figures=pictures.drawn(findings),
        trainings=panels.trainings(findings.curves),
        style=Markup(_text("page.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        script_hashes=[_hash(script), _hash(plotly)],
    )


def markdown(findings: Findings) -> str:
    """Return the Markdown twin, without pictures and samples."""
    text = _template("page.md.j2").render(**_shared(findings))
    # Quotes are escaped for attributes of HTML, of which Markdown has none.
    for escaped, plain in (("&#39;", "'"), ("&#34;", '"'), (" \n", "\n")):
        text = text.replace(escaped, plain)
    return numerals.breakable(text)


WIDTH = 100


def verdict_text(findings: Findings) -> str:
    """Return the verdict table as plain text of at most 100 columns, then each policy's reasons."""
    metric = findings.plan.metric
    head = ["policy", "verdict", metric, "change", "perplexity", "dist-2", "KL", "refusals"]
    table = [head, *(_verdict_line(findings, name) for name in findings.estimates)]
    # What a very long name takes is cut from it, so that the numbers stay on the line.
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
    lines = []
    for name, *cells in table:
        short = name if len(name) <= widths[0] else f"{name[: widths[0] - 1]}…"
        padded = [short.ljust(widths[0]), cells[0].ljust(widths[1])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[2:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "─" * max(map(len, lines)))
    for name, verdict in findings.verdicts.items():
        said = f"{name}: {verdict.word}: {'; '.join(verdict.reasons)}."
        lines += ["", *textwrap.wrap(said, WIDTH, subsequent_indent="  ", break_on_hyphens=False)]
    return numerals.breakable("\n".join(lines) + "\n")


def _verdict_line(findings: Findings, name: str) -> list[str]:
    metric, own = findings.plan.metric, findings.estimates[name]
    row = Row("", ("independent", metric), kind_of(metric), "")
    effect = findings.effects.get(name, {}).get("independent", {}).get(metric)
    cost = own["cost"]
    return [
        name,
        findings.verdicts[name].word if name in findings.verdicts else "baseline",
        numerals.value(own["independent"][metric]["value"], row.kind),
        numerals.interval(effect, row.change, sign=True) if effect else "",
        numerals.value(cost["perplexity"]["value"], "perplexity"),
        numerals.value(cost["dist2"]["value"], "score"),
        numerals.value(cost["kl_exact"]["value"], "nats"),
        numerals.value(cost["refusals"]["value"], "share") if "refusals" in cost else "",
    ]


def _shared(findings: Findings) -> Nested:
    """What both templates read."""
    plan = findings.plan
    main = findings.evaluate["sets"][plan.set]
    prompts = findings.estimates[plan.baseline]["independent"]["emt"]["n"]
    others = [name for name in findings.policies if name != plan.baseline]
    return {
        "findings": findings,
        "plan": plan,
        "main": main,
        "prompts": prompts,
        "names": list(findings.estimates),
        "others": others,
        "headlines": {name: headline(findings, name, prompts) for name in others},
        "signs": {name: findings.signs(name) for name in others},
        "strip": _strip(findings),
        "who": _who(findings),
        "groups": groups(findings),
        "primary": Row(NAMES[plan.metric], ("independent", plan.metric), kind_of(plan.metric), ""),
        "scorers": {
            name: SCORERS.get(name, "no measured card of this scorer is at hand.")
            for name in findings.scoring.names
            if name not in findings.opinions
        },
        "opinions": {
            name: f"{described(card)[:-1]}{doubt(findings, name)}."
            for name, card in findings.opinions.items()
        },
        "judged": any(card.kind == "preference" for card in findings.opinions.values()),
        "independent": findings.scoring.independent,
        "negative": _negative(findings),
        "tables": _tables(findings),
        "methods": {
            "columns": methods.columns(findings),
            "lines": methods.lines(findings),
            "spreads": methods.spreads(findings),
            "measures": methods.SPREAD,
            "chosen": methods.chosen(findings),
        },
        "people": _people(findings.labels),
        **_store(),
        "longest": max([run.get("seconds") or 0.0 for run in findings.runs], default=0.0) or 1.0,
        "cards": {name: _card(card) for name, card in findings.cards.items()},
        "models": {name: _model(card) for name, card in findings.opinions.items()},
        "flagged": _flagged(findings.labels),
        "choice_kl": controls.kl_bound(main["samples"]),
        "decoding": {k: v for k, v in findings.evaluate.items() if k in DECODING},
        "number": numerals,
        "metric_name": NAMES[plan.metric],
        "flat": flat,
        "looks": figures.looks(list(findings.policies), plan.baseline),
    }


def _who(findings: Findings) -> list[tuple[str, tuple[str, ...], numerals.Kind]]:
    """Return the lines on the group named: label, path in `identities`, kind; or none."""
    first = findings.estimates[findings.plan.baseline].get("identities")
    if first is None:
        return []
    scorers = {"independent": findings.scoring.independent}
    scorers |= {name: name for name in findings.scoring.of_texts.labelers}
    lines = [
        (f"Gap between groups, {name}", (key, "gap"), "score") for key, name in scorers.items()
    ]
    lines += [
        (f"Named groups over control, {name}", (key, "over_control"), "score")
        for key, name in scorers.items()
    ]
    return [*lines, ("Answers that name the group again", ("names_again",), "share")]


DECODING = ("temperature", "top_k", "top_p")


def _strip(findings: Findings) -> Nested:
    """Place the primary effects on a line around zero, in per cent of its width."""
    metric = findings.plan.metric
    found = {name: effect["independent"][metric] for name, effect in findings.effects.items()}
    ends = [0.0, *(e[end] for e in found.values() for end in ("low", "high"))]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    low, wide = min(ends) - room, max(ends) - min(ends) + 2 * room
    at = {
        name: {end: round(100 * (e[end] - low) / wide, 2) for end in ("low", "value", "high")}
        for name, e in found.items()
    }
    return {"zero": round(-100 * low / wide, 2), "at": at}


def _negative(findings: Findings) -> list[str]:
    """The policies whose k1 estimate of the KL came out negative."""
    return [n for n, own in findings.estimates.items() if own["cost"]["kl_k1"]["value"] < 0]


def _people(labels: Mapping[str, Any]) -> list[str]:
    """The labelers that are people."""
    labelers = labels.get("labelers", {})
    return [name for name, facts in labelers.items() if facts.get("kind") == "people"]


def _tables(findings: Findings) -> Nested:
    """Return the generic tables: what labels, reward model and training report of themselves."""
    labels = findings.labels
    own = ("criteria", "flagged", "labelers", "trade_off")
    return {
        "criteria": [tables.criterion(name, labels) for name in labels.get("criteria", {})],
        "trade_off": tables.trade_off(labels.get("trade_off", {})),
        "flips": _flips(findings.runs),
        "labels": flat({k: v for k, v in labels.items() if k not in own}),
        "reward": [
            tables.quality(name, own) for name, own in reward_models(findings.reward).items()
        ],
        "trained": {name: flat(own) for name, own in findings.trained.items() if own},
    }


def _flips(runs: Sequence[Nested]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each judge how often its two orders disagree: in all, and by principle."""
    found = []
    for run in runs:
        measured = run.get("metrics", {})
        if run["stage"].startswith("rank@") and "order_flip_rate" in measured:
            asked = {k[6:]: n for k, n in measured.items() if k.startswith("asked/")}
            lines = [("all comparisons", f"{measured['order_flip_rate']:.0%}")]
            lines += [(k, f"{measured[f'flips/{k}']:.0%} of {n:.0f}") for k, n in asked.items()]
            found.append((run["stage"].partition("@")[2], lines))
    return found


def _store() -> Nested:
    """Return where a browser finds the runs: the tracking server, or what `make ui` serves.

    Without a name and password: the page is passed on.
    """
    server = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme not in ("http", "https"):
        return {"local": True, "store": "http://127.0.0.1:5000"}
    host = server.netloc.rpartition("@")[2]
    return {"local": False, "store": f"{server.scheme}://{host}{server.path.rstrip('/')}"}


CLEAR = 0.05
"""Of a group's gap, below which nobody need be named."""


def _card(card: Mapping[str, Any]) -> Nested:
    """Return a scorer's card as lines, and the groups whose benign sentences it finds worse."""
    lines = [(key, str(text)) for key, text in card["identity"].items()]
    for name, own in card["sets"].items():
        lines.append((f"AUC on {name}", numerals.interval(own["auc"], "score")))
        for key in ("false_positives", "misses"):
            if key in own:
                said = f"{numerals.interval(own[key], 'share')} of {own[key]['n']:,} texts"
                lines.append((f"{key.replace('_', ' ')} on {name}", said))
    called = {
        name: own["false_positives"]["value"]
        for name, own in card["groups"].items()
        if own.get("false_positives", {}).get("value", 0) > 0
    }
    if called:
        worst = sorted(called, key=lambda name: -called[name])
        said = ", ".join(f"{name} {numerals.value(called[name], 'share')}" for name in worst)
        lines.append(("benign sentences called toxic, by the group they name", said))
    clear = [name for name in card["minded"] if card["groups"][name]["gap"]["low"] > CLEAR]
    return {"lines": lines, "minded": [name.replace("-", " ") for name in clear]}


def _model(card: Card) -> list[tuple[str, str]]:
    """Return the card of a model that scores as lines, without its figures by principle."""
    plain = card.model_dump()
    measures = plain.pop("measures")
    lines = [(name, value) for name, value in flat(plain) if value != "–"]
    return [*lines, *flat({k: v for k, v in measures.items() if "/" not in k})]


def _flagged(labels: Mapping[str, Any]) -> list[Nested]:
    """Return who is beyond a threshold of pairs.quality, and what became of their votes."""
    return [
        {
            "who": flag["labeler"],
            "text": f"{flag['criterion']}: {flag['figure'].replace('_', ' ')} "
            f"{numerals.interval(flag, 'score')}, {flag['side']} {flag['threshold']:g}; "
            + ("left out of the pairs" if flag["left_out"] else "not left out"),
        }
        for flag in labels.get("flagged", [])
    ]


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inert"] = _inert
    return environment.get_template(name)


def _inert(data: Any) -> Markup:
    """JSON for a script element that is data: no character in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip()


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
