"""The implicit reward of a policy on held-out pairs."""

import pytest
import torch
from test_reward import planted
from tiny_model import moved_adapter

from stages.lib import answering, implicit, models
from stages.lib.tokens import encode


@pytest.fixture
def moved(tiny, tmp_path):
    moved_adapter(tiny, tmp_path / "dpo", std=0.3)
    lm = models.load_adapter(tiny, tmp_path / "dpo", name="policy")
    return answering.Subject(lm, lm, "policy")


def plain(lm, name, pair, text, finish):
    """log p(text | prompt) by a forward pass of the whole model, without anything shared."""
    one = encode(lm, pair.prompt, text, finish, max_tokens=64, where="here")
    ids = torch.tensor([one.ids])
    with torch.no_grad(), models.adapter(lm, name):
        logps = lm.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    return logps.gather(1, ids[0, 1:, None])[len(one.prompt) - 1 :].sum().item()


def test_a_margin_is_the_difference_of_plain_log_ratios(moved):
    pairs = planted(6)
    found = implicit.leanings(moved, pairs, batch_tokens=64)
    assert [one.pair_id for one in found] == [pair.id for pair in pairs]
    for one, pair in zip(found, pairs, strict=True):
        chosen, rejected = (
            plain(moved.policy, "policy", pair, *of) - plain(moved.policy, None, pair, *of)
            for of in ((pair.chosen, pair.chosen_finish), (pair.rejected, pair.rejected_finish))
        )
        assert one.margin == pytest.approx(chosen - rejected, abs=1e-3)
        assert abs(one.margin) > 1e-3


def test_a_pair_turned_round_has_the_opposite_margin(moved):
    pair = planted(1)[0]
    turned = pair.model_copy(
        update={
            "chosen": pair.rejected, "rejected": pair.chosen,
            "chosen_finish": pair.rejected_finish, "rejected_finish": pair.chosen_finish,
        }
    )  # fmt: skip
    one, other = (implicit.leanings(moved, [p], batch_tokens=64)[0] for p in (pair, turned))
    assert one.margin == pytest.approx(-other.margin, abs=1e-5)


def test_the_base_itself_leans_nowhere(tiny):
    assert implicit.leanings(answering.Subject(tiny, tiny, None), planted(2), batch_tokens=64) == []


def test_ties_say_nothing_and_prompts_are_the_first_by_hash():
    pairs = planted(8)
    tie = pairs[0].model_copy(update={"p_chosen": 0.5})
    assert tie not in implicit.some([tie, *pairs[1:]], 8)
    assert len(implicit.some(pairs, 8)) == 8
    few = implicit.some(pairs, 3)
    assert len({pair.prompt_id for pair in few}) == 3
    assert implicit.some(pairs[::-1], 3)[::-1] == few  # whichever order they stand in
