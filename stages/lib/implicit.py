"""A policy's implicit reward on held-out pairs: whom alignment moved towards, against the labelers.

Rafailov et al. 2023 (arXiv:2305.18290, section 4): a policy is the optimum of some reward, which is

    r(x, y) = beta * log pi(y | x) / ref(y | x)    up to a term of x alone

so the difference of log-ratios between two answers says which one the policy came to prefer. The
base without an adapter prefers neither. It is defined for any policy, whatever trained it.
"""

from collections.abc import Sequence

from stages.lib import likelihood, models
from stages.lib.answering import Subject
from stages.lib.groups import Group, group
from stages.lib.order import by_hash
from stages.lib.records import Leaning, Pair
from stages.lib.runtime import processes


def some(pairs: Sequence[Pair], prompts: int) -> list[Pair]:
    """Return the pairs that say which answer is better, of the first prompts by hash."""
    sure = [pair for pair in pairs if pair.p_chosen > 0.5]
    first = set(sorted({pair.prompt_id for pair in sure}, key=by_hash)[:prompts])
    return [pair for pair in sure if pair.prompt_id in first]


def leanings(subject: Subject, pairs: Sequence[Pair], *, batch_tokens: int) -> list[Leaning]:
    """Return which way a policy leans on each pair; empty for the reference itself.

    Args:
        subject: policy and reference.
        pairs: that neither learned from.
        batch_tokens: in memory at once.
    """
    if subject.is_reference:
        return []
    most = subject.reference.model.config.max_position_embeddings
    groups = group(subject.reference, pairs, max_tokens=most)

    def work(some: list[Group]) -> list[list[float]]:
        sequences = [one for own in some for one in own.sequences]
        with models.adapter(subject.policy, subject.adapter):
            policy_B = likelihood.all_logps(
                subject.policy, sequences, batch_tokens=batch_tokens, label="pairs"
            )
        with models.adapter(subject.reference, None):
            reference_B = likelihood.all_logps(
                subject.reference, sequences, batch_tokens=batch_tokens, label="pairs, reference"
            )
        ratios = (policy_B - reference_B).split([len(own.sequences) for own in some])
        return [ratio_B.tolist() for ratio_B in ratios]

    ratios = processes.shared(groups, work, cost=lambda own: own.tokens)
    return [
        Leaning(
            pair_id=pair.id,
            prompt_id=own.prompt_id,
            cluster=own.cluster,
            margin=round(ratio_B[chosen] - ratio_B[rejected], 5),
        )
        for own, ratio_B in zip(groups, ratios, strict=True)
        for pair, chosen, rejected in zip(own.pairs, own.chosen, own.rejected, strict=True)
    ]
