"""The alignment tax: how much a policy's loss on neutral text rose over the baseline's."""

from collections.abc import Sequence

import numpy as np

from stages.lib import toxicity
from stages.lib.neutral_text import PassageLoss
from stages.lib.reporting import comparison
from stages.lib.reporting.comparison import Nested, Plan
from stages.lib.runtime.files import RecordError
from stages.lib.toxicity import Mean


def measure(losses: Sequence[PassageLoss]) -> Mean:
    """Return the mean loss a token, in nats; long passages count more."""
    return Mean(
        np.array([one.nll for one in losses]),
        np.array([float(one.tokens) for one in losses]),
        len(losses),
    )


def estimate(losses: Sequence[PassageLoss], plan: Plan, *, seed: int) -> Nested:
    """Return a policy's loss with its interval over resampled passages."""
    named, passages = {"loss": measure(losses)}, [one.id for one in losses]
    return toxicity.estimates(named, passages, resamples=plan.resamples, seed=seed)["loss"]


def effect(
    policy: Sequence[PassageLoss], baseline: Sequence[PassageLoss], plan: Plan, *, seed: int
) -> Nested:
    """Return policy minus baseline, paired by passage, with the relative change.

    Raises:
        RecordError: the two were not measured on the same passages.
    """
    if [one.id for one in policy] != [one.id for one in baseline]:
        raise RecordError(
            "policies are measured on different passages of neutral text; evaluate both again"
        )
    both, passages = (measure(policy), measure(baseline)), [one.id for one in policy]
    drawn = toxicity.resampled(both, passages, resamples=plan.resamples, seed=seed)
    return comparison.difference(*both, *drawn, relative=True)
