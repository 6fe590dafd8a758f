import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.runtime.schema import Refusal, check
from stages.lib.split import ORDER, PROTECTED, Shares, holders, position, role_at

DECLARED = {
    "sft": 0.0, "reward": 0.2, "monitor": 0.1, "align": 0.37, "validation": 0.11, "test": 0.22,
}  # fmt: skip
THOUSANDS = [f"prompt number {at}" for at in range(20_000)]


def shares(**over):
    return Shares(**(DECLARED | over))


def roles(texts, salt="1", declared=None):
    return [role_at(position(text, salt), declared or shares()) for text in texts]


def test_a_position_equals_the_value_worked_by_hand():
    # printf '1\nhello' | sha256sum begins feeba3bd57fb9d7a
    # 0xfe/2^8 + 0xeb/2^16 + 0xa3/2^24 + 0xbd/2^32 + ...
    # = 0.9921875 + 0.00358582 + 0.00000972 + 0.00000004 = 0.99578308
    assert position("hello", "1") == pytest.approx(0.99578308, abs=1e-8)
    assert position("hello", "1") == (0xFEEBA3BD57FB9D7A >> 11) / 2**53


@given(st.text(), st.text(min_size=1))
def test_a_position_is_at_least_0_and_below_1(text, salt):
    assert 0 <= position(text, salt) < 1


@pytest.mark.parametrize(
    "place, role",
    [
        (0.0, "test"),
        (0.2199, "test"),
        (0.22, "validation"),  # 0.22 + 0.11 = 0.33
        (0.3299, "validation"),
        (0.3301, "align"),  # 0.33 + 0.37 = 0.70
        (0.6999, "align"),
        (0.7001, "reward"),  # 0.70 + 0.20 = 0.90
        (0.9001, "monitor"),  # to 1, as sft has no share
        (math.nextafter(1, 0), "monitor"),
    ],
)
def test_a_role_is_where_the_cumulated_shares_say(place, role):
    assert role_at(place, shares()) == role


def test_a_share_of_0_gives_no_prompt_even_where_rounding_leaves_a_gap():
    # 0.7 + 0.2 + 0.1 sums to 0.9999999999999999, 1 - 2^-53: a position there is in no stretch
    few = shares(test=0.7, validation=0.2, align=0.1, reward=0.0, monitor=0.0)
    assert sum([0.7, 0.2, 0.1]) < 1
    assert role_at(math.nextafter(1, 0), few) == "align"
    assert role_at(0.0, shares(test=0.0, align=0.59)) == "validation"


def test_realised_shares_are_near_the_declared_ones():
    # n = 20,000: the largest standard deviation is sqrt(0.37 * 0.63 / 20,000) = 0.0034
    found = roles(THOUSANDS)
    for role, share in DECLARED.items():
        spread = math.sqrt(share * (1 - share) / len(THOUSANDS))
        assert abs(found.count(role) / len(THOUSANDS) - share) <= 4 * spread


def test_another_salt_draws_another_split_independent_of_the_first():
    one, other = roles(THOUSANDS, "1"), roles(THOUSANDS, "2")
    # independent splits agree with probability sum of shares squared:
    # 0.04 + 0.01 + 0.1369 + 0.0121 + 0.0484 = 0.2474
    agree = sum(a == b for a, b in zip(one, other, strict=True)) / len(THOUSANDS)
    assert agree == pytest.approx(0.2474, abs=0.0125)  # four standard deviations


def test_resharing_what_is_left_moves_no_test_or_validation_prompt():
    before = roles(THOUSANDS)
    after = roles(THOUSANDS, declared=shares(sft=0.3, align=0.17, reward=0.1))
    for held in ("test", "validation"):
        assert [role == held for role in before] == [role == held for role in after]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test": 0.2}, "p: prompts.split.shares: the shares must sum to 1, not 0.98"),
        (
            {"test": 0.22 + 2e-9},
            "p: prompts.split.shares: the shares must sum to 1, not 1.000000002",
        ),
        (
            {"test": -0.1, "sft": 0.32},
            "p: prompts.split.shares.test must be greater than or equal to 0, not -0.1",
        ),
        (
            {"tset": 0.1},
            "p: prompts.split.shares.tset is not a parameter of Shares; did you mean 'test'?",
        ),
    ],
)
def test_shares_that_are_no_shares_are_refused(change, message):
    with pytest.raises(Refusal) as refused:
        check(DECLARED | change, Shares, "p: prompts.split.shares")
    assert str(refused.value) == message


def test_a_missing_share_is_refused_and_said_what_for():
    with pytest.raises(
        Refusal, match=r"^p: prompts.split.shares.monitor is missing \(Pairs for the mon"
    ):
        check(
            {k: v for k, v in DECLARED.items() if k != "monitor"}, Shares, "p: prompts.split.shares"
        )


def test_shares_may_miss_1_by_less_than_a_billionth():
    assert check(DECLARED | {"test": 0.22 + 5e-10}, Shares, "p").test > 0.22


@pytest.mark.parametrize("better", range(len(PROTECTED) - 1))
def test_a_cluster_belongs_to_its_most_protected_role(better):
    pair = [PROTECTED[better + 1], PROTECTED[better]]
    assert holders(pair, ["c", "c"]) == {"c": PROTECTED[better]}
    assert holders(pair[::-1], ["c", "c"]) == {"c": PROTECTED[better]}


def test_clusters_do_not_touch_each_other():
    assert holders(["sft", "test", "align"], ["a", "b", "a"]) == {"a": "align", "b": "test"}


def test_what_judges_is_protected_before_what_learns():
    assert PROTECTED == ("test", "validation", "monitor", "reward", "align", "sft")
    assert set(ORDER) == set(PROTECTED) == set(Shares.model_fields)
