import numpy as np
import pytest

from stages.lib import statistics

CLUSTERS = [f"c{n // 3}" for n in range(90)]
OFTEN = {"resamples": 50, "seed": 1}


def fractions():
    return np.random.default_rng(2).random(90)


def of_all(draw):
    """What `draw` gives of whole arrays, and a few rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BLOCK", 7 * 90)
        few = draw()
    return draw(), few


def test_resamples_drawn_a_few_at_a_time_are_those_drawn_at_once():
    whole, few = of_all(lambda: statistics.cluster_resamples(CLUSTERS, **OFTEN))
    assert whole.shape == (50, 90)
    assert np.array_equal(whole, few)


def test_no_more_weights_are_drawn_at_once_than_a_block_holds(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 7 * 90)
    rows = [len(block) for block in statistics.resample_blocks(CLUSTERS, **OFTEN)]
    assert rows == [7] * 7 + [1]


@pytest.mark.parametrize("values", [fractions(), np.arange(90) % 2])
def test_an_interval_does_not_depend_on_how_many_resamples_are_held(values):
    one, other = of_all(lambda: statistics.bootstrap_mean(values, CLUSTERS, **OFTEN))
    assert one.plain() == pytest.approx(other.plain(), rel=1e-12)


def test_whole_numbers_summed_by_cluster_give_the_interval_of_the_units():
    values = (np.arange(90) % 5 < 2).astype(float)
    drawn = statistics.cluster_resamples(CLUSTERS, **OFTEN)
    found = statistics.bootstrap_mean(values, CLUSTERS, **OFTEN)
    low, high = np.quantile(drawn @ values / drawn.sum(1), [0.025, 0.975])
    assert (found.value, found.low, found.high, found.n) == (values.mean(), low, high, 90)


def test_signs_flipped_a_few_at_a_time_are_those_flipped_at_once():
    one, other = of_all(lambda: statistics.sign_flip_p(fractions() - 0.45, CLUSTERS, **OFTEN))
    assert one == other
