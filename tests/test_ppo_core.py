"""Rewards, advantages, losses and control of PPO against oracles and values worked by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from stages.lib.algorithms.ppo import advantages, control, surrogates
from stages.lib.algorithms.ppo.control import KlControl, Look, Stops, Watch
from stages.lib.runtime.processes import total

MASK = tensor([[True, True, True], [True, False, False]])


def test_the_score_lands_once_on_the_last_token_and_the_penalty_on_every_one():  # property 21
    k1 = tensor([[0.1, -0.2, 0.3], [0.5, 99.0, 99.0]])
    found = advantages.token_rewards(tensor([2.0, -1.0]), k1, MASK, beta=0.5)
    assert torch.allclose(found, tensor([[-0.05, 0.1, 1.85], [-1.25, 0.0, 0.0]]))


def test_without_divergence_the_rewards_of_a_completion_sum_to_its_score():  # property 9
    found = advantages.token_rewards(tensor([2.0, -1.0]), torch.zeros(2, 3), MASK, beta=0.5)
    assert torch.equal(found.sum(1), tensor([2.0, -1.0]))


def test_only_a_completion_without_eos_is_penalised():  # property 4
    scores, ended = tensor([1.0, 1.0]), tensor([True, False])
    found, _ = advantages.shaped_scores(scores, ended, clip=None, missing_eos_penalty=0.75)
    assert found.tolist() == [1.0, 0.25]
    found, _ = advantages.shaped_scores(scores, ended, clip=None, missing_eos_penalty=0.0)
    assert found.tolist() == [1.0, 1.0]


def test_scores_are_clipped_alike_on_both_sides_and_told():  # property 24
    ended = torch.ones(4, dtype=torch.bool)
    scores = tensor([-5.0, -1.0, 1.0, 5.0])
    found, clipped = advantages.shaped_scores(scores, ended, clip=2.0, missing_eos_penalty=0.0)
    assert found.tolist() == [-2.0, -1.0, 1.0, 2.0]
    assert clipped.tolist() == [True, False, False, True]
    other, _ = advantages.shaped_scores(-scores, ended, clip=2.0, missing_eos_penalty=0.0)
    assert torch.equal(other, -found)


def brute_force(rewards, values, gamma, lam):
    """Advantages of one completion by their definition, a double sum."""
    n = len(rewards)
    deltas = [
        rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)
    ]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


numbers = st.floats(-3, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4),
       st.floats(0, 1), st.floats(0, 1))  # fmt: skip
def test_advantages_are_their_definition_on_any_lengths(rows, gamma, lam):  # properties 5, 6, 25
    width = max(map(len, rows)) + 1
    padding = [(7.0, -7.0)] * width  # what stands on padding makes no difference
    both = tensor([(row + padding)[:width] for row in rows], dtype=torch.float64)
    mask = tensor([[t < len(row) for t in range(width)] for row in rows])
    rewards, values = both.unbind(-1)
    found, returns = advantages.generalised_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for i, row in enumerate(rows):
        expected = brute_force(*zip(*row, strict=True), gamma, lam)
        assert found[i, : len(row)].tolist() == pytest.approx(expected, abs=1e-9)
        assert not found[i, len(row) :].any()
        assert not returns[i, len(row) :].any()


def test_lambda_one_gives_returns_minus_values_and_zero_one_step_errors():  # property 25
    rewards, values = tensor([[1.0, 2.0, 4.0]]), tensor([[0.5, 0.25, 1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    found, returns = advantages.generalised_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.equal(returns, tensor([[7.0, 6.0, 4.0]]))
    assert torch.equal(found, returns - values)
    found, _ = advantages.generalised_advantages(rewards, values, mask, gamma=1.0, lam=0.0)
    assert torch.equal(found, tensor([[0.75, 2.75, 3.0]]))


def test_whitening_keeps_the_mean_of_rewards_and_not_that_of_advantages():  # property 23
    values = tensor([[1.0, 3.0, 5.0], [7.0, 100.0, -100.0]])
    kept = advantages.whiten(values, MASK, total, shift_mean=False)
    moved = advantages.whiten(values, MASK, total, shift_mean=True)
    assert kept[MASK].mean() == pytest.approx(4.0)
    assert moved[MASK].mean() == pytest.approx(0.0, abs=1e-6)
    for found in (kept, moved):
        assert found[MASK].std(correction=0) == pytest.approx(1.0)
        assert not found[~MASK].any()


def test_two_processes_whiten_as_one():
    values = tensor([[1.0, 3.0, 5.0], [7.0, 0.0, 0.0]])
    whole = advantages.whiten(values, MASK, total, shift_mean=True)
    seen = []

    def recorded(value):
        seen.append(value)
        return value

    for row in (0, 1):  # what each would send
        advantages.masked_mean(values[row : row + 1], MASK[row : row + 1], recorded)
    mean_sums = seen[0] + seen[1]
    mean = mean_sums[0] / mean_sums[1]
    squares = sum(((values[i][MASK[i]] - mean) ** 2).sum() for i in (0, 1)).double()
    answers = iter([mean_sums, torch.stack([squares, mean_sums[1]])] * 2)
    parts = [
        advantages.whiten(values[i : i + 1], MASK[i : i + 1], lambda _: next(answers), shift_mean=True)
        for i in (0, 1)
    ]  # fmt: skip
    assert torch.allclose(torch.cat(parts), whole)


def test_explained_variance_is_one_of_a_perfect_value_and_zero_of_a_constant():
    returns = tensor([1.0, 2.0, 3.0, 4.0])
    assert advantages.explained_variance(returns, returns, total) == 1.0
    assert advantages.explained_variance(torch.full((4,), 2.5), returns, total) == 0.0
    assert math.isnan(advantages.explained_variance(returns, torch.ones(4), total))


def test_the_policy_loss_worked_by_hand_is_clipped_in_the_pessimistic_direction_only():  # 26
    ratio = tensor([1.5, 1.5, 0.5, 0.5, 1.1, 1.0])
    advantage = tensor([1.0, -1.0, 1.0, -1.0, 2.0, 3.0])
    logp = ratio.log().requires_grad_()
    found = surrogates.policy_loss(logp, torch.zeros(6), advantage, clip=0.2)
    # min(rho A, clip(rho) A), negated: 1.2, not 1.5; -1.5, not -1.2; .5; -.8, not -.5; 2.2; 3
    assert found.losses_N.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2, -3.0])
    assert found.clipped_N.tolist() == [True, False, False, True, False, False]
    found.losses_N.sum().backward()
    assert (logp.grad == 0).tolist() == found.clipped_N.tolist()
    assert logp.grad[1] > 0 > logp.grad[2]  # an ascent on what is good, a descent on what is bad


def test_the_clip_range_is_the_same_on_both_sides():  # property 24
    for clip in (0.1, 0.2):
        for ratio, good in ((1 + clip, 1.0), (1 - clip, -1.0)):
            logp = tensor([math.log(ratio) + 1e-4 * good])
            found = surrogates.policy_loss(logp, torch.zeros(1), tensor([good]), clip=clip)
            assert bool(found.clipped_N)
            inside = surrogates.policy_loss(
                logp - 2e-4 * good, torch.zeros(1), tensor([good]), clip=clip
            )
            assert not bool(inside.clipped_N)


def test_estimators_of_kl_on_a_known_distribution():  # property 19
    old = tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    new = tensor([0.25, 0.25, 0.3, 0.2], dtype=torch.float64)
    exact = float((old * (old / new).log()).sum())
    found = surrogates.policy_loss(new.log(), old.log(), torch.ones(4), clip=0.2)
    assert float((old * found.k3_N).sum()) == pytest.approx(exact)  # unbiased
    assert bool((found.k3_N >= 0).all())
    k1 = old.log() - new.log()
    assert float((old * k1).sum()) == pytest.approx(exact)  # what rewards take
    assert float((old * 0.5 * k1.square()).sum()) != pytest.approx(exact, rel=0.02)  # k2 is not


@settings(max_examples=60, deadline=None)
@given(numbers, numbers, numbers, st.floats(0.01, 2))
def test_the_clipped_value_loss_is_never_below_the_plain_one(new, old, target, clip):  # 27
    values = tensor([new], dtype=torch.float64)
    rest = tensor([old], dtype=torch.float64), tensor([target], dtype=torch.float64)
    plain = surrogates.value_loss(values, *rest, clip=None)
    assert float(plain) == pytest.approx(0.5 * (new - target) ** 2)
    assert float(surrogates.value_loss(values, *rest, clip=clip)) >= float(plain)


def test_a_value_that_moved_beyond_the_clip_towards_its_target_has_no_gradient():  # property 27
    values = tensor([1.0], requires_grad=True)
    loss = surrogates.value_loss(values, tensor([0.0]), tensor([2.0]), clip=0.2)
    assert loss.item() == pytest.approx(0.5 * 1.8**2)
    loss.backward()
    assert values.grad.tolist() == [0.0]


def test_entropy_in_nats():
    found = surrogates.entropy(tensor([[0.0, 0.0], [50.0, -50.0]]))
    assert found.tolist() == pytest.approx([math.log(2), 0.0])


CONTROL = KlControl(beta=0.1, target=6.0, horizon=1000)


def test_beta_rises_above_the_target_falls_below_and_moves_by_a_bounded_amount():  # property 32
    assert control.adapted(0.1, 6.0, 50, CONTROL) == 0.1
    assert control.adapted(0.1, 6.6, 50, CONTROL) == pytest.approx(0.1 * (1 + 0.1 * 50 / 1000))
    assert control.adapted(0.1, 600.0, 50, CONTROL) == pytest.approx(0.1 * (1 + 0.2 * 50 / 1000))
    assert control.adapted(0.1, 0.0, 50, CONTROL) == pytest.approx(0.1 * (1 - 0.2 * 50 / 1000))
    fixed = CONTROL.model_copy(update={"target": None})
    assert control.adapted(0.1, 600.0, 50, fixed) == 0.1


STOPS = Stops(max_steps=20, target=1.0, smoothing=0.5, patience=2, kl_ceiling=30.0)


def flat(score, monitor=None, spread=0.1):
    def around(mean):
        return [mean - spread, mean, mean + spread]

    return Look(around(score), None if monitor is None else around(monitor))


def test_the_target_stops_only_where_the_smoothed_score_holds():  # property 33
    watch = Watch()
    # Smoothed: 0, .75, 1.125, .9625 (falls back: the count begins anew), 1.23, 1.37
    fired = [watch.evaluated(flat(score), STOPS) for score in (0.0, 1.5, 1.5, 0.8, 1.5, 1.5)]
    assert fired == [None, None, None, None, None, "target"]
    never = STOPS.model_copy(update={"target": None})
    assert all(Watch().evaluated(flat(9.0), never) is None for _ in range(5))


def test_the_ceiling_comes_before_the_last_step():  # property 33
    assert control.rolled_out(3, 29.9, STOPS) is None
    assert control.rolled_out(3, 30.1, STOPS) == "kl_ceiling"
    assert control.rolled_out(20, 1.0, STOPS) == "max_steps"
    assert control.rolled_out(20, 31.0, STOPS) == "kl_ceiling"


def test_a_proxy_that_rises_while_the_monitor_falls_twice_running_stops():  # properties 33, 36
    patient = STOPS.model_copy(update={"target": None})
    watch = Watch()
    looks = [
        Look([0.0, 0.1, 0.2], [0.0, 0.0, 0.0]),
        Look([0.3, 0.4, 0.5], [0.4, 0.4, 0.4]),  # the monitor at its best
        Look([0.5, 0.6, 0.7], [0.1, 0.2, 0.1]),  # parted
        Look([0.6, 0.7, 0.8], [0.0, 0.9, 0.2]),  # within its interval: suspicion begins anew
        Look([0.7, 0.8, 0.9], [0.1, 0.2, 0.1]),
        Look([0.9, 0.9, 0.9], [0.0, 0.1, 0.1]),
    ]
    fired = [watch.evaluated(look, patient) for look in looks]
    assert fired == [None, None, None, None, None, "reward_hacking"]
    assert watch.best["monitor"] == [0.4, 0.4, 0.4]


def test_a_monitor_that_falls_with_the_proxy_is_no_hacking():
    patient, watch = STOPS.model_copy(update={"target": None}), Watch()
    for score in (1.0, 0.6, 0.3, 0.1):
        look = Look([score, score + 0.01], [score, score + 0.02])
        assert watch.evaluated(look, patient) is None
