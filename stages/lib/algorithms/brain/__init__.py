"""BRAIn: Bayesian reward-conditioned amortised inference (Pandey et al. 2024, arXiv:2402.02479).

Of a prompt's n completions y_i from a proposal q', two distributions over the n are made,

    a_i ~ p(y_i) exp(r_i / temperature) / q'(y_i)     the target, that is the posterior
    b_i ~ pi(y_i) / q'(y_i)                           the policy

each with sum 1, and KL(a || b) is minimised: its gradient is -sum_i (a_i - b_i) grad log pi(y_i),
where b is a baseline that lowers the variance, and it is 0 where the two agree. With two
completions from p and the better one's a set to 1 it is DPO's loss at beta 1.
"""

from typing import TYPE_CHECKING, Literal

from stages.lib.algorithms import graded
from stages.lib.algorithms.graded import Matching
from stages.lib.algorithms.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from stages.lib.graded_groups import Batch


class Brain(Matching):
    """An entry of `policies` that is aligned with BRAIn."""

    algorithm: Literal["brain"]


def train(policy: Brain, task: Task) -> dict[str, float]:
    """Align an adapter on graded completions of role align; `graded.fit` says what is returned."""

    def objective(logps_GN: "Tensor", batch: "Batch") -> "tuple[Tensor, dict[str, Tensor]]":
        return loss(logps_GN, batch, temperature=policy.temperature)

    return graded.fit(policy, task, objective, folder=task.data)


def loss(
    logps_GN: "Tensor", batch: "Batch", *, temperature: float
) -> "tuple[Tensor, dict[str, Tensor]]":
    """Return the cross-entropy of policy and target over each prompt's completions.

        loss = -sum_i a_i log b_i

    Args:
        logps_GN: log pi of the completions, sums over tokens in nats.
        batch: their rewards, and log-probabilities under reference and proposal.
        temperature: of the target.

    Returns:
        losses_G in nats, and by name: `kl_target`, the loss less its least value; `effective`, the
        effective share of completions under the target.
    """
    from stages.lib.graded_groups import effective_share

    log_weight_GN = batch.log_target(temperature) - batch.proposal_GN
    target_GN = log_weight_GN.softmax(1)
    losses_G = -(target_GN * (logps_GN - batch.proposal_GN).log_softmax(1)).sum(1)
    return losses_G, {
        "kl_target": graded.kl_target(logps_GN.detach(), batch, temperature),
        "effective": effective_share(log_weight_GN),
    }
