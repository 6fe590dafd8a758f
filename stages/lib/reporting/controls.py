"""What can be had from the baseline without training: the best of its own answers to each prompt.

Shape suffixes: N = prompts, K = answers to a prompt, R = resamples.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from stages.lib import toxicity
from stages.lib.records import Evaluated
from stages.lib.reporting.comparison import Nested, Plan, Scoring
from stages.lib.runtime.files import RecordError
from stages.lib.statistics import Floats
from stages.lib.toxicity import Answers, Mean


def kl_bound(n: int) -> float:
    """Return the most that the best of n answers differs from one answer, in nats an answer.

        KL <= log n - (n - 1) / n

    Stiennon et al. 2020 (arXiv:2009.01325) state it as an equality. It is one only where no two
    answers can tie; in general it is a bound (Beirami et al. 2024, arXiv:2401.01879).
    0 for n = 1, 0.193 for 2, 0.636 for 4.
    """
    return math.log(n) - (n - 1) / n


def sizes(k: int) -> list[int]:
    """Return 1, 2, 4, … below k answers, and k: of 6 answers [1, 2, 4, 6]."""
    return sorted({2**i for i in range(k.bit_length()) if 2**i < k} | {k})


def chances(liked_NK: Floats, n: int) -> Floats:
    """Return the chance of each of K answers to be the best liked of n, drawn without replacement.

        P = [ C(below + tied, n) - C(below, n) ] / [ C(K, n) tied ]

    where `below` answers are liked less and `tied` as much, itself among them; ties share. With
    these weights the mean of any score is that of the best of n over all C(K, n) subsets: no
    answer is lost, and their order plays no part. It is the unbiased estimator of Nakano et al.
    2021 (arXiv:2112.09332, appendix I), with ties. Of four answers without ties and n = 2, from
    the least liked: 0, 1/6, 2/6, 3/6.

    Raises:
        ValueError: n is not one of 1 to K.
    """
    k = liked_NK.shape[1]
    if not 1 <= n <= k:
        raise ValueError(f"the best of {n} cannot be chosen among {k} answers")
    subsets = np.array([math.comb(m, n) for m in range(k + 1)], dtype=np.float64)
    below_NK = (liked_NK[:, :, None] > liked_NK[:, None, :]).sum(2)
    tied_NK = (liked_NK[:, :, None] == liked_NK[:, None, :]).sum(2)
    return (subsets[below_NK + tied_NK] - subsets[below_NK]) / (subsets[k] * tied_NK)


def found(baseline: Sequence[Evaluated], scoring: Scoring, plan: Plan, *, seed: int) -> Nested:
    """Return both controls of the baseline's completions, as reports/comparison.json has them."""
    main = [row for row in baseline if row.set == plan.set]
    answers = toxicity.by_prompt(main)
    chosen = {name: best_of(answers, name, scoring.independent) for name in scoring.labelers}
    return {
        "best_of": _estimates(chosen, answers, plan, seed),
        "best_of_reward": best_of_reward(main, scoring.independent, plan, seed=seed),
    }


def best_of(answers: Answers, scorer: str, independent: str) -> Mean:
    """Return the mean independent score if only the answer that `scorer` likes best were kept."""
    harm_NK = toxicity.scores_of(answers, independent)
    # Scorers measure harm: the lowest is liked best.
    chance_NK = chances(-toxicity.scores_of(answers, scorer), harm_NK.shape[1])
    return _mean((harm_NK * chance_NK).sum(1))


def best_of_reward(
    rows: Sequence[Evaluated], independent: str, plan: Plan, *, seed: int
) -> dict[str, Nested]:
    """Return what choosing by the reward model gives, for every n up to the answers it scored.

    Args:
        rows: the baseline's completions of the primary set.
        independent: the scorer of the verdict.
        plan: what was declared.
        seed: of the bootstrap.

    Returns:
        By n: `kl`, which is a bound, and its root `distance`; of the chosen answers the mean
        `proxy` (reward), `monitor` and `harm` (independent score); and under `change` the same
        less those of n = 1, which are the means of all scored answers, paired by prompt. Empty
        where the reward model scored no answer of the set.

    Raises:
        RecordError: it scored more answers to one prompt than to another.
    """
    answers = _scored(rows)
    if not answers:
        return {}
    scores = _scores(answers, independent)
    result: dict[str, Nested] = {}
    for n in sizes(len(answers[0])):
        chance_NK = chances(scores["proxy"], n)
        chosen = {name: (score_NK * chance_NK).sum(1) for name, score_NK in scores.items()}
        gained = {name: chosen[name] - score_NK.mean(1) for name, score_NK in scores.items()}
        plain, change = (
            _estimates({name: _mean(own) for name, own in of.items()}, answers, plan, seed)
            for of in (chosen, gained)
        )
        kl = kl_bound(n)
        result[str(n)] = {"kl": kl, "distance": math.sqrt(kl), **plain, "change": change}
    return result


def _scored(rows: Sequence[Evaluated]) -> Answers:
    """The answers that the reward model scored, as many to each prompt."""
    answers = toxicity.by_prompt([row for row in rows if row.reward is not None])
    lacking = {row.prompt_id for row in rows} - {own[0].prompt_id for own in answers}
    if answers and lacking:
        raise RecordError(
            f"the reward model scored no answer to prompt {min(lacking)}, but "
            f"{len(answers[0])} to others of its set; evaluate again"
        )
    return answers


def _scores(answers: Answers, independent: str) -> dict[str, Floats]:
    found = {
        "harm": toxicity.scores_of(answers, independent),
        "proxy": np.array([[row.reward for row in own] for own in answers], dtype=np.float64),
    }
    watched = [[row.monitor for row in own] for own in answers]
    if all(score is not None for own in watched for score in own):
        found["monitor"] = np.array(watched, dtype=np.float64)
    return found


def _estimates(named: Mapping[str, Mean], answers: Answers, plan: Plan, seed: int) -> Nested:
    if not named:
        return {}
    clusters_N = toxicity.clusters_of(answers)
    return toxicity.estimates(named, clusters_N, resamples=plan.resamples, seed=seed)


def _mean(values_N: Floats) -> Mean:
    return Mean(values_N, np.ones(len(values_N)), len(values_N))
