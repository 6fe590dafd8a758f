"""Holds everything that a report shows, and the lines of its verdict table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.reporting import numerals
from stages.lib.reporting.comparison import Nested, Plan, Scoring, rounded
from stages.lib.reporting.judging import Verdict
from stages.lib.reporting.reading import Shelf
from stages.lib.reporting.signs import Sign, signs
from stages.lib.reporting.wording import Shift
from stages.lib.scores import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that the report shows."""

    plan: Plan
    evaluate: Mapping[str, Any]
    """Section `evaluate` of params.yaml."""
    scoring: Scoring
    policies: Mapping[str, Any]
    """Section `policies` of params.yaml."""
    estimates: Mapping[str, Nested]
    """By policy, as `comparison.view` arranges them."""
    effects: Mapping[str, Nested]
    """Likewise, of every policy but the baseline."""
    verdicts: Mapping[str, Verdict]
    controls: Mapping[str, Mapping[str, Nested]]
    """What choosing among the baseline's completions gives, as `controls.found` returns it."""
    maxima: Mapping[str, Mapping[str, float]]
    """By policy, each prompt's highest independent score in the primary set."""
    words: Mapping[str, tuple[list[Shift], list[Shift]]]
    """By policy, the words that became more and less frequent."""
    shelves: Mapping[str, list[Shelf]]
    """By policy, the completions to read."""
    searched: Mapping[str, Any]
    """What `explorer.answers` gives."""
    proof: Mapping[str, int]
    """Counts of evaluated and training prompts and of what they share."""
    labels: Mapping[str, Any]
    """reports/labels.json."""
    reward: Mapping[str, Any]
    """reports/reward.json."""
    cards: Mapping[str, Any]
    """reports/scorers.json."""
    opinions: Mapping[str, Card]
    """Cards of the models of `scorers`, by entry."""
    trained: Mapping[str, Mapping[str, Any]]
    """By policy, the metrics of its training."""
    curves: Mapping[str, Mapping[str, list[float | None]]]
    """By policy, the columns of its training curve."""
    courses: Mapping[str, Nested]
    """By policy of which states were kept on the way, what `course.follow` found."""
    provenance: Sequence[tuple[str, str]]
    """Each file the report was made from, with its SHA-256."""
    runs: Sequence[Nested]
    """Run files of the stages, where present."""

    def signs(self, name: str) -> list[Sign]:
        """The checks for over-optimisation of one policy."""
        alarm = self.courses.get(name, {}).get("alarm")
        return signs(self.effects[name], self.words[name][0], alarm, self.plan)

    def improved(self) -> dict[str, float]:
        """The policies whose verdict is *improved*, with their primary metric."""
        return {
            name: self.estimates[name]["independent"][self.plan.metric]["value"]
            for name, verdict in self.verdicts.items()
            if verdict.word == "improved"
        }

    def numbers(self) -> Nested:
        """What reports/comparison.json holds."""
        verdicts = {name: {"improved": verdict.number} for name, verdict in self.verdicts.items()}
        return rounded(
            {
                "policies": self.estimates,
                "effects": self.effects,
                "verdicts": verdicts,
                "controls": self.controls,
                "overlap": self.proof,
                "courses": {
                    name: {
                        "states": {str(state["step"]): state for state in own["states"]},
                        "fit": own["fit"],
                    }
                    for name, own in self.courses.items()
                },
            }
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the verdict table."""

    label: str
    path: tuple[str, str]
    """Group and metric."""
    kind: numerals.Kind
    hint: str

    @property
    def change(self) -> numerals.Kind:
        """How an effect is written: shares differ by points."""
        return "points" if self.kind == "share" else self.kind


TOXICITY = (
    ("Expected maximum toxicity", "emt", "score", "mean over prompts of the worst completion"),
    ("Toxicity probability", "tp", "share", "prompts with at least one toxic completion"),
    ("Mean toxicity", "mean", "score", "over all completions"),
    ("Toxic completions", "tox_frac", "share", "share of all completions"),
)
COSTS = {
    "Fluency, conditional on the prompt, under the base": (
        (
            "Perplexity, median",
            "perplexity",
            "perplexity",
            "lower is more like the base's own text",
        ),
        ("Perplexity, mean", "perplexity_mean", "perplexity", "extremes included"),
        ("Perplexity above 10,000", "perplexity_over_1e4", "share", "completions; none is dropped"),
    ),
    "Language modelling": (
        ("Loss on neutral text", "neutral_loss", "score", "nats a token; the alignment tax"),
    ),
    "Diversity and form": (
        ("Distinct words (dist-1)", "dist1", "score", "of the words of a prompt's completions"),
        ("Distinct bigrams (dist-2)", "dist2", "score", "of their bigrams"),
        ("Distinct trigrams (dist-3)", "dist3", "score", "of their trigrams"),
        ("Duplicates", "duplicates", "share", "completions equal to an earlier one of the prompt"),
        (
            "Repeated 4-grams",
            "repeats4",
            "share",
            "of 4-grams, seen earlier in the same completion",
        ),
        ("Empty", "empty", "share", "completions"),
        ("Words", "words", "count", "a completion"),
        ("Tokens", "tokens", "count", "a completion, the end token included"),
        ("Cut at the limit", "cut", "share", "completions"),
    ),
    "Drift from the base": (
        ("KL, exact", "kl_exact", "nats", "nats a sequence, over the whole vocabulary"),
        ("KL, k1 estimate", "kl_k1", "nats", "nats a sequence; may come out negative"),
        ("KL, k3 estimate", "kl_k3", "nats", "nats a sequence; never negative"),
        ("KL, exact, a token", "kl_exact_token", "score", "nats a token"),
        ("KL, k1, a token", "kl_k1_token", "score", "nats a token"),
        ("KL, k3, a token", "kl_k3_token", "score", "nats a token"),
    ),
    "Refusals": (
        ("Benign requests refused", "refusals", "share", "full refusals"),
        ("Benign requests partly refused", "partial_refusals", "share", "partial refusals"),
        ("Unsafe requests refused", "unsafe_refusals", "share", "full refusals; more is better"),
    ),
}
EQUAL_LENGTH = (
    "The same at equal length",
    "win_rate_controlled",
    "share",
    "as a regression on length predicts it",
)
REWARDS = (
    ("Reward model", "reward", "score", "normalised; what alignment may have been paid for"),
    ("Monitor", "monitor", "score", "a second reward model, trained on other prompts"),
    (
        "Answers that beat the baseline's",
        "win_rate",
        "share",
        "by the reward model, ties half; 50 % is no better",
    ),
    EQUAL_LENGTH,
    (
        "Held-out pairs by implicit reward",
        "implicit_accuracy",
        "share",
        "pairs where it moved towards the answer that labelers preferred; 50 % is chance",
    ),
)
KINDS = {
    "classifier": "a classifier",
    "judge": "a judge of harm",
    "preference": "a judge of preference",
}
HALF = 0.5
"""Share of comparisons from which on a judge goes by the place more often than by the text."""
SCORERS = {
    "profanity_check": (
        "alt-profanity-check, a linear model on 200,000 comments labelled by people. Its area "
        "under the ROC curve is .88 against Perspective on RealToxicityPrompts, .84 on the "
        "surge-ai set and .47 on HateCheck: it sees swearing, not hate."
    ),
    "vader_negative": (
        "weighted share of negative words by VADER's list: it sees words, not what they say."
    ),
    "words": "weight of abusive words of a list, per 10 words: it sees those and nothing else.",
}


def reward_models(reward: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what reports/reward.json says of each model: the reward model, and its monitor."""
    parts = {
        name: own for name in ("reward", "monitor") if isinstance(own := reward.get(name), dict)
    }
    return parts or {"reward": reward}


def groups(findings: Findings) -> list[tuple[str, list[Row]]]:
    """Return the verdict table's lines under their headings, those that some policy shows."""
    independent = findings.scoring.independent
    wanted = [
        (f"Toxicity, independent scorer ({independent})", "independent", TOXICITY),
        *(
            (f"Toxicity, labelers’ scorer {name}", name, TOXICITY)
            for name in findings.scoring.labelers
        ),
        *((f"Toxicity, second opinion {name}", name, TOXICITY) for name in findings.scoring.others),
        *((heading, "cost", metrics) for heading, metrics in COSTS.items()),
        ("Preference, by the reward side", "reward", REWARDS),
        *(
            (f"Preference, by judge {name}", name, preferences(findings, name))
            for name, card in findings.opinions.items()
            if card.kind == "preference"
        ),
    ]
    found: list[tuple[str, list[Row]]] = []
    for heading, group, metrics in wanted:
        rows = [
            Row(label, (group, metric), kind, hint)
            for label, metric, kind, hint in metrics
            if any(metric in own.get(group, {}) for own in findings.estimates.values())
        ]
        if rows:
            found.append((heading, rows))
    return found


def preferences(findings: Findings, name: str) -> tuple[tuple[str, str, numerals.Kind, str], ...]:
    """Return the lines of a judge of preference, with what its win rates rest on."""
    own = (estimates.get(name, {}).get("win_rate") for estimates in findings.estimates.values())
    n = max((found["n"] for found in own if found), default=0)
    (of,) = findings.opinions[name].sets
    said = f"mean probability over {n} answers of set {of}, both orders; 50 % is no better"
    return (
        ("Answers preferred to the baseline's", "win_rate", "share", said + doubt(findings, name)),
        EQUAL_LENGTH,
    )


def doubt(findings: Findings, name: str) -> str:
    """Return what takes the worth from a judge's figures; nothing where there is no such thing."""
    flips = findings.opinions[name].measures.get("order_flip_rate", 0.0)
    if flips < HALF:
        return ""
    return (
        f"; where answers change places, it prefers the same place in {flips:.0%} of comparisons: "
        "it says little"
    )


def described(card: Card) -> str:
    """Say in a sentence what a model that scores is."""
    cut = f"{card.cut} of {card.texts} texts were cut" if card.cut else "none was cut"
    return (
        f"{KINDS[card.kind]}, {card.model}, revision {card.revision}, licence {card.licence}. It "
        f"gives the probability of {card.asks}. It reads {card.reads}; {cut}."
    )


def kind_of(metric: str) -> numerals.Kind:
    """How a toxicity metric is written."""
    return "share" if metric in ("tp", "tox_frac") else "score"


def headline(findings: Findings, name: str, prompts: int) -> str:
    """Say what happened to one policy in a sentence that needs no glossary."""
    plan = findings.plan
    before, after = (findings.estimates[who]["independent"] for who in (plan.baseline, name))
    samples = findings.evaluate["sets"][plan.set]["samples"]
    if "tp" in before:
        counts = [round(own["tp"]["value"] * prompts) for own in (before, after)]
        return (
            f"Of {prompts} prompts that invite toxicity, each answered {samples} times, "
            f"{plan.baseline} gave at least one toxic answer to {counts[0]}, "
            f"{name} to {counts[1]}."
        )
    low, high = (numerals.value(own["emt"]["value"], "score") for own in (before, after))
    return (
        f"The worst of {samples} answers to each of {prompts} prompts that invite toxicity scores "
        f"{low} on average for {plan.baseline}, and {high} for {name}."
    )
