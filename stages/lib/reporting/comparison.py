"""Compares policies with the baseline, prompt by prompt.

Shape suffixes: N = prompts, C = clusters, R = resamples.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import binomtest

from stages.lib import scorers, toxicity
from stages.lib.records import Evaluated, Name
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Strict
from stages.lib.statistics import Floats, sign_flip_p
from stages.lib.toxicity import Mean, Measure

Rows = dict[str, list[Evaluated]]
"""Policy to its evaluated completions."""

Nested = dict[str, Any]

RELATIVE = ("emt", "mean", "tp", "tox_frac", "perplexity", "perplexity_mean", "words", "tokens")
"""Metrics whose relative change is given as well."""
BESIDE = ("perplexity", "dist2", "words", "refusals", "partial_refusals")
"""Costs shown of sets other than the primary one; reports/evaluations has the rest."""

NAMES = {
    "emt": "expected maximum toxicity",
    "tp": "toxicity probability",
    "mean": "mean toxicity",
    "tox_frac": "share of toxic completions",
}


class Margins(Strict):
    """What an improvement may cost before the verdict says so; null for a cost not judged."""

    perplexity: Annotated[float, Field(ge=0)] | None
    """Relative rise of the median conditional perplexity under the base."""
    dist2: Annotated[float, Field(ge=0, le=1)] | None
    """Absolute drop of distinct bigrams over the completions of a prompt."""
    words: Annotated[float, Field(ge=0, le=1)] | None
    """Relative drop of the words of a completion: who says less says less that is toxic."""
    refusals: Annotated[float, Field(ge=0, le=1)] | None
    """Absolute rise of full refusals on the benign set."""
    neutral_loss: Annotated[float, Field(ge=0)] | None
    """Relative rise of the loss on neutral text."""


class Plan(Strict):
    """What is compared and what counts as shown, declared before the run."""

    baseline: Name
    """The policy that effects are measured against."""
    independent: Name
    """The scorer of the verdict; it takes no part in labels, reward or training."""
    labelers: list[Name]
    """The scorers that labels or rewards were made from."""
    set: Name
    """The set of prompts of the primary metric."""
    metric: Literal["emt", "tp", "mean", "tox_frac"]
    """The primary metric, of the independent scorer."""
    family: list[Literal["emt", "tp", "mean", "tox_frac"]]
    """The metrics whose p-values Holm's method adjusts together, the primary one among them."""
    alpha: Annotated[float, Field(gt=0, lt=1)]
    """What the adjusted p of the primary metric must stay below."""
    benign: Name | None
    """The set on which a refusal is a cost."""
    unsafe: Name | None
    """The set on which a refusal is right."""
    word_rise: Annotated[float, Field(ge=0, le=1)]
    """Rise of the share of completions with one word, interval and all, that counts as a sign."""
    resamples: Annotated[int, Field(ge=200)]
    """Of the paired cluster bootstrap, and permutations of the sign-flip test."""
    margins: Margins

    @model_validator(mode="after")
    def _declares_what_it_needs(self) -> "Plan":
        if self.metric not in self.family:
            raise ValueError(f"the family {self.family} lacks the primary metric '{self.metric}'")
        if self.independent in self.labelers:
            raise ValueError(
                f"independent is '{self.independent}', which labelers names as well; the verdict "
                "needs a scorer that took no part in labels and rewards"
            )
        if self.margins.refusals is not None and self.benign is None:
            raise ValueError("margins.refusals needs a set of benign prompts: name one in benign")
        return self


@dataclass(frozen=True, slots=True)
class Scoring:
    """Which scores are compared, and from where on one of them counts as toxic."""

    independent: str
    """The scorer of the verdict."""
    labelers: list[str]
    """The labelers' scorers: what alignment may have been paid for."""
    threshold: float
    """Of the scorers whose score is a probability."""
    others: list[str] = dataclasses.field(default_factory=list)
    """Second opinions: shown, and neither paid for nor decisive."""
    models: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Of those above, the models, with the sets whose answers each scored."""

    @property
    def declared(self) -> Nested:
        """How `toxicity` reads the scores."""
        probabilities = scorers.PROBABILITIES | self.models.keys()
        return {"probabilities": probabilities, "threshold": self.threshold}

    @property
    def names(self) -> list[str]:
        """Every scorer, the independent one first."""
        return [self.independent, *self.labelers, *self.others]

    @property
    def of_texts(self) -> "Scoring | None":
        """The same without models, which score answers to prompts alone; None if one decides."""
        if self.independent in self.models:
            return None
        labelers, others = (
            [name for name in some if name not in self.models]
            for some in (self.labelers, self.others)
        )
        return Scoring(self.independent, labelers, self.threshold, others)

    def of(self, name: str) -> list[str]:
        """The scorers that scored the answers of a set."""
        return [one for one in self.names if name in self.models.get(one, (name,))]


def require_same_questions(policies: Rows, baseline: str) -> None:
    """Refuse policies that were not asked exactly what the baseline was asked.

    Raises:
        RecordError: a (prompt, index) that only one of two policies has, or a prompt of which they
            disagree in text, set, category or cluster.
    """
    asked = {(row.prompt_id, row.index): row for row in policies[baseline]}
    for name, rows in policies.items():
        own = {(row.prompt_id, row.index): row for row in rows}
        lacking = sorted(asked.keys() ^ own.keys())
        if lacking:
            prompt, index = lacking[0]
            has, lacks = (baseline, name) if lacking[0] in asked else (name, baseline)
            raise RecordError(
                f"completion {index} of prompt {prompt} is evaluated for {has}, not for {lacks}; "
                "policies are compared on the same prompts and samples; evaluate both again"
            )
        for key, row in own.items():
            for field in ("prompt", "set", "category", "cluster"):
                if getattr(row, field) != getattr(asked[key], field):
                    raise RecordError(
                        f"prompt {row.prompt_id} has another {field} for {name} than for {baseline}"
                    )


def effects(
    policy: Sequence[Evaluated],
    baseline: Sequence[Evaluated],
    scoring: Scoring,
    plan: Plan,
    *,
    seed: int,
) -> Nested:
    """Return policy minus baseline for every measure, in the nesting of `toxicity.summarise`.

    Each is {value, low, high, n}, the interval from a paired cluster bootstrap whose resamples are
    the same for all policies. Means over prompts of a whole set have p (sign-flip permutation) and
    d_z (mean difference over its standard deviation between prompts) as well; tp has McNemar's
    exact p, which takes prompts for independent. Categories have intervals only: their many p
    would need an adjustment that nobody declared. KL has no effect: it is measured from the base
    as it stands.
    """
    result: Nested = {}
    before = toxicity.strata(baseline)
    for (name, category), answers in toxicity.strata(policy).items():
        clusters_N = toxicity.clusters_of(answers)
        used = scoring.of(name)
        ours = toxicity.measures(answers, used, **scoring.declared)
        theirs = toxicity.measures(before[name, category], used, **scoring.declared)
        pairs = {
            (group, metric): _paired(ours[group][metric], theirs[group][metric])
            for group, metric in _shared(ours, theirs)
        }
        often = {"resamples": plan.resamples, "seed": seed}
        found: Nested = {}
        for (group, metric), effect in differences(pairs, clusters_N, **often).items():
            pair = pairs[group, metric]
            if category is None:
                effect |= _tests(*pair, clusters_N, metric, plan.resamples, seed)
            found.setdefault(group, {})[metric] = effect
        if category is None:
            result[name] = {**found, "by_category": {}}
        else:
            result[name]["by_category"][category] = found
    return result


def view(found: Nested, plan: Plan, independent: str) -> Nested:
    """Arrange the nesting of `toxicity.summarise` or `effects` around the primary set.

    Returns:
        {"independent" or a scorer's name: {metric: ...}, "cost": {..., refusals}, "reward": ...,
        "by_category": {category: {"independent": ...}}, "sets": {each other set: ...}}
    """
    main = _of_set(found[plan.set], independent)
    sets = {
        name: _in_brief(_of_set(own, independent))
        for name, own in found.items()
        if name != plan.set
    }
    cost = dict(main["cost"])
    for name, renamed in (
        (plan.benign, {"refusals": "refusals", "partial_refusals": "partial_refusals"}),
        (plan.unsafe, {"refusals": "unsafe_refusals"}),
    ):
        shown = found[name]["cost"] if name in found else {}
        cost |= {new: shown[old] for old, new in renamed.items() if old in shown}
    return {**main, "cost": cost, "sets": sets}


def adjusted(effect: Nested, plan: Plan) -> Nested:
    """Return a viewed effect with Holm's adjusted p at each metric of the declared family.

    The family is one policy's; a reader who picks the best of many policies adjusts for that.

    Raises:
        RecordError: the independent scorer lacks a metric of the family.
    """
    own = effect["independent"]
    for metric in plan.family:
        if metric not in own:
            raise RecordError(
                f"report.family names {metric}, which only a scorer that gives probabilities has; "
                "the independent one gives none"
            )
    p = holm({metric: own[metric]["p"] for metric in plan.family})
    return {
        **effect,
        "independent": {k: e | ({"holm": p[k]} if k in p else {}) for k, e in own.items()},
    }


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values: the i-th smallest of m times m - i + 1, never falling.

    {a: .01, b: .04, c: .03} becomes {a: .03, b: .06, c: .06}.
    """
    result: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p, key=lambda name: (p[name], name))):
        highest = max(highest, min(1.0, (len(p) - place) * p[name]))
        result[name] = highest
    return result


def mcnemar(policy_N: Floats, baseline_N: Floats) -> float:
    """Two-sided exact p that as many prompts change from 1 to 0 as from 0 to 1; 1 if none does."""
    gained, lost = int((policy_N > baseline_N).sum()), int((policy_N < baseline_N).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def rounded(value: Any) -> Any:
    """Round every number of nested plain data to six decimals.

    Sums differ in the last bits between machines; six decimals are equal bytes.
    """
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def _of_set(found: Nested, independent: str) -> Nested:
    """One set, with the independent scorer under that word, and of its categories what is read."""

    def renamed(groups: Nested) -> Nested:
        return {
            "independent" if group == independent else group: own for group, own in groups.items()
        }

    categories: Nested = {}
    for category, groups in found["by_category"].items():
        refused = {k: e for k, e in groups["cost"].items() if k in ("refusals", "partial_refusals")}
        categories[category] = {"independent": groups[independent]}
        if refused:
            categories[category]["cost"] = refused
    whole = {group: own for group, own in found.items() if group != "by_category"}
    return {**renamed(whole), "by_category": categories}


def _in_brief(own: Nested) -> Nested:
    """A set beside the primary one, without what nobody compares there."""
    cost = {metric: e for metric, e in own["cost"].items() if metric in BESIDE}
    return {"independent": own["independent"], "cost": cost, "by_category": own["by_category"]}


def _shared(ours: toxicity.Measures, theirs: toxicity.Measures) -> Iterator[tuple[str, str]]:
    for group in ours:
        for metric in ours[group]:
            if metric in theirs.get(group, {}) and not metric.startswith("kl_"):
                yield group, metric


def _paired(policy: Measure, baseline: Measure) -> tuple[Measure, Measure]:
    """Both measures on the prompts that show them for both policies."""
    if not isinstance(policy, Mean) or not isinstance(baseline, Mean):
        return policy, baseline
    both_N = (policy.counts_N > 0) & (baseline.counts_N > 0)
    n = int(both_N.sum())
    return (
        Mean(policy.sums_N * both_N, policy.counts_N * both_N, n),
        Mean(baseline.sums_N * both_N, baseline.counts_N * both_N, n),
    )


def differences(
    pairs: Mapping[tuple[str, str], tuple[Measure, Measure]],
    clusters_N: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> dict[tuple[str, str], Nested]:
    """Return `difference` of each pair of measures, by group and metric."""
    both = [measure for pair in pairs.values() for measure in pair]
    drawn = toxicity.resampled(both, clusters_N, resamples=resamples, seed=seed)
    return {
        (group, metric): difference(*pair, *own, relative=metric in RELATIVE)
        for ((group, metric), pair), own in zip(
            pairs.items(), zip(drawn[0::2], drawn[1::2], strict=True), strict=True
        )
    }


def difference(
    policy: Measure, baseline: Measure, drawn_R: Floats, before_R: Floats, *, relative: bool
) -> Nested:
    """Return policy minus baseline with its interval, and the relative change where it is one.

    Args:
        policy: a measure of it.
        baseline: the same measure of the baseline.
        drawn_R: the first under resamples of the prompts.
        before_R: the second under the same.
        relative: whether a relative change means anything.
    """
    value, before = policy.value, baseline.value
    found = {"value": value - before, **ends(drawn_R - before_R), "n": policy.n}
    # A ratio to a baseline that is zero, or may be by chance of the draw, is no number.
    if relative and before > 0 and np.nanmin(before_R) > 0:
        found["relative"] = {"value": value / before - 1, **ends(drawn_R / before_R - 1)}
    return found


def ends(drawn_R: Floats) -> dict[str, float]:
    """Return the 95 % interval of what resamples gave."""
    low, high = np.nanquantile(drawn_R, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _tests(
    policy: Measure,
    baseline: Measure,
    clusters_N: Sequence[str],
    metric: str,
    resamples: int,
    seed: int,
) -> Nested:
    if not isinstance(policy, Mean) or not isinstance(baseline, Mean) or policy.counts_N.max() > 1:
        return {}
    both_N = policy.counts_N > 0
    differences_N = (policy.sums_N - baseline.sums_N)[both_N]
    clusters = [cluster for cluster, both in zip(clusters_N, both_N, strict=True) if both]
    found = {"p": sign_flip_p(differences_N, clusters, resamples=resamples, seed=seed)}
    spread = float(differences_N.std(ddof=1)) if len(differences_N) > 1 else 0.0
    if spread > 0:
        found["d_z"] = float(differences_N.mean()) / spread
    if metric == "tp":
        found["mcnemar"] = mcnemar(policy.sums_N[both_N], baseline.sums_N[both_N])
    return found
