"""BRAIn and distributional policy gradients: their mathematics on a toy that can be counted out."""

import math

import pytest
import torch
from tiny_graded import target_gradient, toy

from stages.lib import losses
from stages.lib.algorithms import brain
from stages.lib.algorithms.dpg import objective
from stages.lib.algorithms.graded import kl_target
from stages.lib.graded_groups import Batch, effective_share

LOOSE = {"divergence": "forward_kl", "baseline": False, "max_ratio": 1e9}


def batch(reward, reference, proposal) -> Batch:
    """One prompt's completions."""
    return Batch([], *(torch.tensor([list(row)]) for row in (reward, reference, proposal)))


def gradient(loss, logps_GN):
    """Of the mean loss, by each log-probability."""
    leaf = logps_GN.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf)[0].mean(), leaf)
    return found


def test_weights_that_are_equal_count_all_and_one_that_outweighs_counts_alone():
    shares = effective_share(torch.tensor([[1e3, 1e3, 1e3, 1e3], [0.0, 500, 0, 0]]))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.25]))
    # weights 1 and 3: (1 + 3)^2 / (1 + 9) of 2
    halves = effective_share(torch.tensor([[0.0, math.log(3)]]))
    torch.testing.assert_close(halves, torch.tensor([16 / 10 / 2]))


def test_by_hand():
    """p = q', rewards 0 and log 3 at temperature 1: a is 1/4, 3/4; the policy has doubled the first."""
    given = batch([0.0, math.log(3)], [-1.0, -2.0], [-1.0, -2.0])
    logps = torch.tensor([[-1.0 + math.log(2), -2.0]])
    losses_G, seen = brain.loss(logps, given, temperature=1.0)
    b = 2 / 3, 1 / 3
    expected = -(0.25 * math.log(b[0]) + 0.75 * math.log(b[1]))
    torch.testing.assert_close(losses_G, torch.tensor([expected]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(seen["kl_target"], torch.tensor([expected - entropy]))
    torch.testing.assert_close(seen["effective"], torch.tensor([1 / (1 / 16 + 9 / 16) / 2]))


def test_a_temperature_divides_the_reward():
    logps, where = torch.tensor([[-1.0, -3.0, -2.0]]), ([-1.5, -1.0, -2.0], [-1.0, -2.0, -1.5])
    one = brain.loss(logps, batch([1.0, 2.0, -1.0], *where), temperature=0.5)[0]
    other = brain.loss(logps, batch([2.0, 4.0, -2.0], *where), temperature=1.0)[0]
    torch.testing.assert_close(one, other)


def test_brains_gradient_is_policy_share_less_target_share_and_sums_to_zero():  # property 43
    given = batch([0.3, -1.0, 2.0, 0.5], [-3.0, -2.0, -4.0, -1.0], [-2.5, -2.0, -3.0, -2.0])
    logps = torch.tensor([[-2.0, -2.5, -3.5, -1.5]])
    found = gradient(lambda x: brain.loss(x, given, temperature=0.7), logps)
    a = (given.log_target(0.7) - given.proposal_GN).softmax(1)
    b = (logps - given.proposal_GN).softmax(1)
    torch.testing.assert_close(found, b - a)
    assert abs(float(found.sum())) < 1e-6


def test_nothing_is_left_to_learn_where_policy_and_posterior_agree():  # property 43
    given = batch([0.3, -1.0, 2.0], [-3.0, -2.0, -4.0], [-2.5, -2.0, -3.0])
    posterior = given.log_target(0.7) + 5.0  # whatever it is normalised by
    found = gradient(lambda x: brain.loss(x, given, temperature=0.7), posterior)
    assert float(found.abs().max()) < 1e-6
    assert float(kl_target(posterior, given, 0.7)) == pytest.approx(0, abs=1e-6)


def test_of_two_from_the_reference_with_a_sure_label_it_is_dpo_at_beta_one():  # property 43
    """A reward that leaves no doubt is the argmax: loss and gradient are those of Eq. 7."""
    reference = [-3.0, -2.0]
    logps = torch.tensor([[-2.2, -2.9]])
    given = batch([100.0, 0.0], reference, reference)

    def dpo(x):
        margin = losses.implicit_margins(
            x[:, 0], x[:, 1], torch.tensor(reference[:1]), torch.tensor(reference[1:])
        )
        return losses.dpo_loss(margin, torch.ones(1), beta=1.0), None

    def ours(x):
        return brain.loss(x, given, temperature=1.0)

    torch.testing.assert_close(ours(logps)[0], dpo(logps)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(ours, logps), gradient(dpo, logps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("proposal", ["reference", "policy"])
def test_variance_falls_from_dpg_to_gdc_to_brain(proposal, monkeypatch):  # property 43
    """Eight of fifty outcomes, 4,000 times: variance of the gradient's estimate, and its direction.

    With Z known, as the papers have it. Estimated from the same eight it makes weights of sum 1,
    which is BRAIn's own way: GDC++ is then as steady, and to the last bit so from its own answers.
    """
    world = toy(proposal)
    own = world.estimates(world.dpg(**LOOSE | {"baseline": True})).var(0).sum()
    monkeypatch.setattr(
        objective, "log_z", lambda batch, _: world.log_z.expand(len(batch.sequences))
    )
    exact = target_gradient(world)
    found = {
        "brain": world.estimates(lambda x, b: brain.loss(x, b, temperature=world.temperature)),
        "gdc": world.estimates(world.dpg(**LOOSE | {"baseline": True})),
        "dpg": world.estimates(world.dpg(**LOOSE)),
    }
    variance = {name: float(one.var(0).sum()) for name, one in found.items()}
    assert variance["brain"] < 0.9 * variance["gdc"] < 0.9 * 0.9 * variance["dpg"], variance
    assert variance["brain"] <= float(own) * 1.001 < 0.9 * variance["gdc"]
    for name, one in found.items():
        cosine = float(torch.nn.functional.cosine_similarity(one.mean(0), exact, dim=0))
        assert cosine > (0.9 if name == "brain" else 0.99), (name, cosine)


def test_z_comes_nearer_the_more_completions_there_are():  # property 44
    world = toy("reference")
    gaps = {}
    for count in (10, 1_000, 100_000):
        z = objective.log_z(world.drawn(1, count, seed=3), world.temperature)
        gaps[count] = abs(float(z) - float(world.log_z))
    assert gaps[100_000] < 0.02
    assert gaps[100_000] < gaps[10]


@pytest.mark.parametrize("proposal", ["reference", "policy"])
@pytest.mark.parametrize("divergence", objective.SLOPES)
@pytest.mark.parametrize("baseline", [True, False])
def test_the_estimator_follows_the_gradient_of_its_divergence(proposal, divergence, baseline):
    """The exact gradient is that of sum p* f(pi / p*) by autograd, over all outcomes."""
    world = toy(proposal)
    own = LOOSE | {"divergence": divergence, "baseline": baseline}
    found = world.estimates(world.dpg(**own), draws=4_000, completions=64)
    cosine = torch.nn.functional.cosine_similarity(
        found.mean(0), world.exact_gradient(divergence), dim=0
    )
    assert float(cosine) > 0.98


def test_reverse_kl_is_the_kl_penalised_policy_gradient():  # property 44
    """From the policy's own answers, over every outcome: E[-(r / t - log pi / p) grad log pi]."""
    world = toy("policy")
    theirs = world.policy_gradient()
    cosine = torch.nn.functional.cosine_similarity(
        world.exact_gradient("reverse_kl"), theirs, dim=0
    )
    assert float(cosine) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(world.exact_gradient("reverse_kl"), theirs, atol=1e-6, rtol=1e-4)


def test_of_its_own_answers_the_baseline_of_reverse_kl_is_leave_one_out():
    """Where q' is the policy every ratio is 1: each answer's return less the others' mean, as RLOO's."""
    logps = torch.tensor([[-1.0, -2.0, -3.0]])
    given = batch([1.0, 0.0, -1.0], [-1.5, -1.0, -3.5], logps[0].tolist())
    loss, _ = objective.loss(
        logps.requires_grad_(), given, temperature=1.0,
        **LOOSE | {"divergence": "reverse_kl", "baseline": True},
    )  # fmt: skip
    (slope,) = torch.autograd.grad(loss.mean(), logps)
    returns = given.reward_GN - (logps.detach() - given.reference_GN)
    others = (returns.sum() - returns) / 2
    torch.testing.assert_close(slope, -(returns - others) / 3, atol=1e-6, rtol=1e-5)


def test_a_weight_is_held_below_its_bound():
    given = batch([20.0, 0.0], [-1.0, -1.0], [-1.0, -1.0])
    logps = torch.tensor([[5.0, -1.0]]).requires_grad_()

    def slope(top):
        loss, _ = objective.loss(logps, given, temperature=1.0, **LOOSE | {"max_ratio": top})
        return torch.autograd.grad(loss.mean(), logps)[0]

    assert float(slope(1.5)[0, 0]) == pytest.approx(-1.5 / 2)
    assert float(slope(1e9)[0, 0]) == pytest.approx(-1.0, abs=1e-4)  # of 2 completions, 2 / 2


def test_so_is_the_ratio_of_policy_and_proposal():
    given = batch([0.0, 0.0], [-1.0, -1.0], [-1.0, -1.0])
    logps = torch.tensor([[5.0, -1.0]]).requires_grad_()
    loss, _ = objective.loss(
        logps, given, temperature=1.0, **LOOSE | {"divergence": "reverse_kl", "max_ratio": 1.5}
    )
    (slope,) = torch.autograd.grad(loss.mean(), logps)
    expected = torch.tensor([[1.5 * (math.log(1.5) + 1) / 2, 0.5]])
    torch.testing.assert_close(slope, expected)


def test_the_policy_is_nearer_than_the_proposal_where_the_target_says_so():
    from stages.lib.algorithms.dpg.proposal import nearness

    given = batch([5.0, 0.0], [-1.0, -1.0], [-1.0, -1.0])  # the first is the target's
    towards, away = torch.tensor([[-0.5, -2.0]]), torch.tensor([[-2.0, -0.5]])
    assert float(nearness(towards, given, temperature=1.0)) > 0.4
    assert float(nearness(away, given, temperature=1.0)) < -0.4
    assert float(nearness(given.proposal_GN, given, temperature=1.0)) == 0
