"""How good a reward model is on held-out pairs: accuracy, calibration, length as a rival."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from stages.lib.records import Pair
from stages.lib.reward_model import Answer, Scorer, shared_raw
from stages.lib.runtime.schema import Refusal
from stages.lib.statistics import bootstrap_mean, calibration_error, calibration_null

QUARTERS = ("smallest", "small", "large", "largest")


def measure(
    scorer: Scorer, pairs: Sequence[Pair], *, seed: int, resamples: int, bins: int
) -> dict[str, Any]:
    """Score the pairs' completions once each and return the quality as plain data.

    Returns:
        accuracy: share of pairs with chosen above rejected, ties half, each pair counting once,
            with a cluster-bootstrap interval; prompt_accuracy: the mean over prompts; by_margin:
            accuracy by quarter of the labelers' margin; by_criterion: accuracy by what was asked,
            where there are several criteria; length_accuracy: of preferring the shorter
            completion; ece and ece_null: calibration error of sigmoid(margin), and what a perfect
            model shows on as few pairs; calibration: the curve; length_spearman: mean rank
            correlation of score and length within a prompt; loss: the mean of preference_loss, in
            nats.
    """
    if not pairs:
        raise Refusal(
            "no pairs of test prompts to measure a reward model on: every labeler ties there, or "
            "leaves too few; sample more completions or lower the labelers' tie"
        )
    margins, lengths, spearman = _margins(scorer, pairs)
    right = (margins > 0) + 0.5 * (margins == 0)
    shorter = (lengths < 0) + 0.5 * (lengths == 0)
    clusters = [pair.cluster for pair in pairs]
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair, value in zip(pairs, right, strict=True):
        by_prompt[pair.prompt_id].append(float(value))
    cluster_of = {pair.prompt_id: pair.cluster for pair in pairs}
    p = 1 / (1 + np.exp(-margins))
    outcome = np.array([pair.p_chosen for pair in pairs])
    # Each pair stands once in either direction, or every outcome would be "chosen won".
    both_p, both = np.concatenate([p, 1 - p]), np.concatenate([outcome, 1 - outcome])
    draws = {"resamples": resamples, "seed": seed}
    return {
        "accuracy": bootstrap_mean(right, clusters, **draws).plain(),
        "prompt_accuracy": bootstrap_mean(
            [float(np.mean(v)) for v in by_prompt.values()],
            [cluster_of[prompt] for prompt in by_prompt],
            **draws,
        ).plain(),
        "length_accuracy": bootstrap_mean(shorter, clusters, **draws).plain(),
        "by_margin": _by_margin(right, np.array([pair.margin for pair in pairs])),
        **_by_criterion(right, pairs, draws),
        "ece": calibration_error(both_p, both, bins=bins),
        "ece_null": calibration_null(p, resamples=200, seed=seed, bins=bins),
        "calibration": _curve(both_p, both, bins),
        "length_spearman": spearman,
        "loss": float(
            np.mean(outcome * np.logaddexp(0, -margins) + (1 - outcome) * np.logaddexp(0, margins))
        ),
    }


def numbers(quality: dict[str, Any]) -> dict[str, float]:
    """Return what of a measurement is one number: an estimate's value, and plain numbers."""
    found = {
        key: value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in quality.items()
    }
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}


def _margins(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return raw score margins, length differences (characters), and the length correlation."""
    answers: dict[str, Answer] = {}
    for pair in pairs:
        answers[pair.chosen_id] = Answer(pair.prompt, pair.chosen, pair.chosen_finish)
        answers[pair.rejected_id] = Answer(pair.prompt, pair.rejected, pair.rejected_finish)
    raw = shared_raw(scorer, list(answers.values()), label="held-out pairs")
    score = dict(zip(answers, raw, strict=True))
    margins = np.array([score[p.chosen_id] - score[p.rejected_id] for p in pairs])
    lengths = np.array([len(p.chosen) - len(p.rejected) for p in pairs], dtype=float)
    of_prompt: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        of_prompt[pair.prompt_id] |= {pair.chosen_id, pair.rejected_id}
    correlations = []
    for ids in of_prompt.values():
        ordered = sorted(ids)
        sizes = [len(answers[i].text) for i in ordered]
        if len(ordered) > 2 and len(set(sizes)) > 1:
            correlations.append(float(spearmanr([score[i] for i in ordered], sizes).statistic))
    finite = [c for c in correlations if np.isfinite(c)]
    return margins, lengths, float(np.mean(finite)) if finite else 0.0


def _by_margin(right: np.ndarray, margin: np.ndarray) -> dict[str, dict[str, float]]:
    edges = np.quantile(margin, [0.25, 0.5, 0.75])
    which = np.searchsorted(edges, margin, side="left")
    return {
        name: {"accuracy": float(right[which == q].mean()), "n": int((which == q).sum())}
        for q, name in enumerate(QUARTERS)
        if (which == q).any()
    }


def _by_criterion(
    right: np.ndarray, pairs: Sequence[Pair], draws: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Return section `by_criterion`, or nothing where all pairs are of one criterion."""
    names = sorted({pair.criterion for pair in pairs})
    if len(names) < 2:
        return {}
    found = {}
    for name in names:
        of_it = [i for i, pair in enumerate(pairs) if pair.criterion == name]
        clusters = [pairs[i].cluster for i in of_it]
        found[name] = bootstrap_mean(right[of_it], clusters, **draws).plain()
    return {"by_criterion": found}


def _curve(p: np.ndarray, outcome: np.ndarray, bins: int) -> list[dict[str, float]]:
    which = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {
            "p": float(p[which == b].mean()),
            "observed": float(outcome[which == b].mean()),
            "n": int((which == b).sum()),
        }
        for b in range(bins)
        if (which == b).any()
    ]
