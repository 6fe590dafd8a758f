"""Losses against numbers worked by hand, and against laws they must obey."""

import math

import pytest
import torch

from stages.lib import losses

HARD = torch.ones(3)


def test_dpo_loss_equals_the_value_worked_by_hand():  # property 42
    # margins: (pi_c - ref_c) - (pi_r - ref_r) = [0, 10, 20];  beta 0.1: [0, 1, 2]
    # losses:  -log sigmoid(m) = log(1 + e^-m)  = [0.6931, 0.3133, 0.1269]
    pi_c, pi_r = torch.tensor([-5.0, -10.0, -10.0]), torch.tensor([-7.0, -30.0, -50.0])
    ref_c, ref_r = torch.tensor([-5.0, -10.0, -10.0]), torch.tensor([-7.0, -20.0, -30.0])
    margins = losses.implicit_margins(pi_c, pi_r, ref_c, ref_r)
    torch.testing.assert_close(margins, torch.tensor([0.0, 10.0, 20.0]))
    by_hand = torch.tensor([math.log(2), 0.31326, 0.12693])
    torch.testing.assert_close(losses.dpo_loss(margins, HARD, beta=0.1), by_hand, atol=1e-5, rtol=0)


def test_a_policy_that_is_its_reference_has_loss_log_two():  # property 9
    assert losses.dpo_loss(torch.zeros(1), torch.ones(1), beta=0.3).item() == pytest.approx(
        math.log(2)
    )


def test_the_gradient_raises_chosen_and_lowers_rejected():
    pi_c, pi_r = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    margin = losses.implicit_margins(pi_c, pi_r, torch.zeros(1), torch.zeros(1))
    losses.dpo_loss(margin, torch.ones(1), beta=0.1).sum().backward()
    assert pi_c.grad.item() == pytest.approx(-0.05)  # -beta * sigmoid(0)
    assert pi_r.grad.item() == pytest.approx(+0.05)


def test_the_bradley_terry_loss_is_minus_log_sigmoid():  # property 37
    margins = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(losses.preference_loss(margins, HARD), -torch.sigmoid(margins).log())


def test_a_tie_has_no_gradient_at_equal_scores():  # property 37
    margin = torch.zeros(1, requires_grad=True)
    losses.preference_loss(margin, torch.tensor([0.5])).sum().backward()
    assert margin.grad.item() == 0


def test_flipping_the_labels_negates_the_gradient_at_equal_scores():  # property 37
    gradients = []
    for label in (0.8, 0.2):
        margin = torch.zeros(1, requires_grad=True)
        losses.preference_loss(margin, torch.tensor([label])).sum().backward()
        gradients.append(margin.grad.item())
    assert gradients[0] == pytest.approx(-gradients[1])
    assert gradients[0] == pytest.approx(-0.3)  # sigmoid(0) - 0.8


def test_exchanging_the_two_is_the_opposite_label():
    margins = torch.randn(50, generator=torch.Generator().manual_seed(0))
    p = torch.rand(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        losses.preference_loss(margins, p), losses.preference_loss(-margins, 1 - p)
    )


def test_conservative_dpo_without_smoothing_is_dpo():  # property 42
    p = torch.tensor([1.0, 0.7])
    torch.testing.assert_close(losses.smoothed(p, label_smoothing=0.0), p)
    # cDPO, e = 0.1, hard label: 0.9 l(m) + 0.1 l(-m) at m = 1: 0.9 * 0.31326 + 0.1 * 1.31326 = 0.41326
    label = losses.smoothed(torch.ones(1), label_smoothing=0.1)
    assert losses.preference_loss(torch.ones(1), label).item() == pytest.approx(0.41326, abs=1e-5)


def test_ipo_equals_the_value_worked_by_hand():
    # beta 0.5: target 1 / (2 * 0.5) = 1;  margins [0, 1, 3]: squares [1, 0, 4]; a tie's target is 0
    found = losses.ipo_loss(torch.tensor([0.0, 1.0, 3.0]), HARD, beta=0.5)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 4.0]))
    assert losses.ipo_loss(torch.zeros(1), torch.tensor([0.5]), beta=0.5).item() == 0


def test_the_weighted_mean_counts_prompts_alike():
    # prompt one: 3 pairs of weight 1/3 and loss 1; prompt two: 1 pair of weight 1 and loss 3: mean 2
    assert losses.weighted_mean(
        torch.tensor([1.0, 1, 1, 3]), torch.tensor([1 / 3] * 3 + [1.0])
    ).item() == pytest.approx(2)


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_a_beta_that_cannot_learn_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must be > 0, not .*constant at log 2"):
        losses.dpo_loss(torch.zeros(1), torch.ones(1), beta=beta)
    with pytest.raises(ValueError, match="infinite at 0"):
        losses.ipo_loss(torch.zeros(1), torch.ones(1), beta=beta)


@pytest.mark.parametrize("smoothing", [0.5, -0.1])
def test_a_smoothing_that_says_nothing_is_refused(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\)"):
        losses.smoothed(torch.ones(1), label_smoothing=smoothing)
