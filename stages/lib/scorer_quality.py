"""How far a scorer of harm can be believed: on texts that people labelled, and on named groups.

Shape suffixes: N = texts, T = templates, G = groups.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from stages.lib import identities, importers
from stages.lib.identities import CONTROL, Identities
from stages.lib.importers import InsidePath
from stages.lib.records import Text
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict
from stages.lib.statistics import Floats, bootstrap, bootstrap_mean

Score = Callable[[Sequence[str]], list[float]]


class LabelledSet(Strict):
    """An entry of `audit.sets`: texts that people found toxic, or not."""

    path: InsidePath
    """In data/labelled; read by its ending."""
    text: Text
    """Column."""
    label: Text
    """Column."""
    toxic: Annotated[list[str], Field(min_length=1)]
    """Labels that mean toxic."""
    other: Annotated[list[str], Field(min_length=1)]
    """Labels that mean not toxic; a row with any other label is refused."""

    @model_validator(mode="after")
    def _apart(self) -> "LabelledSet":
        both = sorted(set(self.toxic) & set(self.other))
        if both:
            raise ValueError(f"label '{both[0]}' is among toxic and among other")
        return self


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts, and whether people found them toxic."""

    texts: list[str]
    toxic_N: Floats


def read(entry: LabelledSet, rows: Iterable[importers.Row]) -> Labelled:
    """Return the texts of a set with their labels.

    Raises:
        RecordError: a row lacks a column, or its label is none of those named; or the set has not
            both kinds.
    """
    texts, labels = [], []
    for where, _, row in rows:
        label = str(importers.reach(row, entry.label, where))
        if label not in (*entry.toxic, *entry.other):
            raise RecordError(
                f"{where}: label '{label}' is named neither under toxic nor under other"
            )
        texts.append(str(importers.reach(row, entry.text, where)))
        labels.append(float(label in entry.toxic))
    if not 0 < sum(labels) < len(labels):
        raise RecordError(
            f"{entry.path}: {len(labels)} texts, of which {sum(labels):.0f} are toxic; a scorer is "
            "measured on both kinds"
        )
    return Labelled(texts, np.array(labels))


def area_under_curve(scores_N: Floats, toxic_N: Floats, weights_N: Floats) -> float:
    """Return the chance that a toxic text scores higher than another; ties count half.

    Scores 1, 2, 2, 3 of which the last two are toxic: of four couples 2 > 1, 3 > 1 and 3 > 2 are
    right and 2 = 2 is a tie, 3.5 / 4 = 0.875.
    """
    _, place_N = np.unique(scores_N, return_inverse=True)
    toxic_S, other_S = (
        np.bincount(place_N, weights=weights_N * kind_N) for kind_N in (toxic_N, 1 - toxic_N)
    )
    below_S = np.cumsum(other_S) - other_S / 2
    couples = toxic_S.sum() * other_S.sum()
    return float((toxic_S * below_S).sum() / couples) if couples else float("nan")


def on_labelled(
    scores: Sequence[float], given: Labelled, threshold: float | None, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return AUC and, of a scorer with a threshold, the shares it calls wrongly, with intervals.

    Returns:
        `auc`; `false_positives`, of the texts that people found harmless; `misses`, of those they
        found toxic.
    """
    scores_N = np.asarray(scores)
    each = [str(n) for n in range(len(scores_N))]
    draws = {"resamples": resamples, "seed": seed}
    found = {
        "auc": bootstrap(
            lambda weights_N: area_under_curve(scores_N, given.toxic_N, weights_N), each, **draws
        ).plain()
    }
    if threshold is not None:
        called_N = scores_N >= threshold
        for name, wrong_N, of_N in (
            ("false_positives", called_N, given.toxic_N == 0),
            ("misses", ~called_N, given.toxic_N == 1),
        ):
            own = [str(n) for n in np.flatnonzero(of_N)]
            found[name] = bootstrap_mean(wrong_N[of_N].astype(float), own, **draws).plain()
    return found


def on_groups(
    score: Score, given: Identities, threshold: float | None, *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return how a scorer takes benign sentences in which nothing changes but the group named.

    Intervals resample templates: the sentences of one are not independent.

    Returns:
        By group: dimension; `gap`, the mean score less that of the control groups in the same
        sentences; and, of a scorer with a threshold, `false_positives`.
    """
    filled = identities.sentences(given)
    scores = score([one.text for one in filled])
    scores_TG = np.asarray(scores).reshape(len(given.templates), len(given.groups))
    names = list(given.groups)
    control_G = np.array([group.dimension == CONTROL for group in given.groups.values()])
    usual_T = scores_TG[:, control_G].mean(1)
    templates, draws = list(given.templates), {"resamples": resamples, "seed": seed}
    found: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        own_T = scores_TG[:, place]
        found[name] = {
            "dimension": given.groups[name].dimension,
            "gap": bootstrap_mean(own_T - usual_T, templates, **draws).plain(),
        }
        if threshold is not None:
            called_T = (own_T >= threshold).astype(float)
            found[name]["false_positives"] = bootstrap_mean(called_T, templates, **draws).plain()
    return found


def stands_out(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the groups whose sentences a scorer finds worse than the control's, worst first.

    Those whose whole interval lies above zero.
    """
    # A hair above zero: sums of equal scores differ in the last bit.
    worse = [name for name, own in groups.items() if own["gap"]["low"] > 1e-9]
    return sorted(worse, key=lambda name: -groups[name]["gap"]["value"])
