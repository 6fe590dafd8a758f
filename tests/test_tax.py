"""The loss on neutral text: of a model, and what a policy's is over the baseline's."""

import pytest
import torch
from synthetic_evaluations import REPORT
from tiny_model import moved_adapter

from stages.lib import language_loss, models
from stages.lib.neutral_text import Passage, PassageLoss
from stages.lib.reporting import tax
from stages.lib.reporting.comparison import Plan
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check

PLAN = check(
    {k: v for k, v in REPORT.items() if k not in ("samples", "words", "explore")},
    Plan,
    "report",
    ValueError,
)
PASSAGES = [
    Passage(id=f"n{n}", genre="letter", text=text)
    for n, text in enumerate(
        ["The lock has two gates.", "He said that the boat had gone up.", "Tea"]
    )
]


def loss(number, tokens, nll):
    return PassageLoss(id=f"n{number}", genre="letter", tokens=tokens, nll=nll)


def test_the_loss_is_that_of_a_plain_forward_pass_with_and_without_the_adapter(tiny, tmp_path):
    moved_adapter(tiny, tmp_path / "dpo", std=0.3)
    lm = models.load_adapter(tiny, tmp_path / "dpo", name="policy")
    found = {
        name: language_loss.losses(lm, name, PASSAGES, batch_tokens=16) for name in (None, "policy")
    }
    for name, own in found.items():
        for passage, one in zip(PASSAGES, own, strict=True):
            ids = torch.tensor([lm.tokenizer(passage.text).input_ids])
            with torch.no_grad(), models.adapter(lm, name):
                logps = lm.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
            expected = -logps.gather(1, ids[0, 1:, None]).sum().item()
            assert one.nll == pytest.approx(expected, rel=1e-4)
            assert one.tokens == ids.shape[1] - 1
    assert found[None][0].nll != pytest.approx(found["policy"][0].nll, rel=1e-3)


def test_the_tax_equals_the_value_worked_by_hand():
    # before (10 + 30) / (10 + 10) = 2, after (12 + 30) / 20 = 2.1: +0.1 nats a token, +5 %
    before, after = [loss(0, 10, 10.0), loss(1, 10, 30.0)], [loss(0, 10, 12.0), loss(1, 10, 30.0)]
    assert tax.estimate(before, PLAN, seed=1)["value"] == pytest.approx(2.0)
    found = tax.effect(after, before, PLAN, seed=1)
    assert found["value"] == pytest.approx(0.1)
    assert found["relative"]["value"] == pytest.approx(0.05)
    # resamples of one passage alone change by 0.2 of 1, or by nothing
    assert (found["low"], found["high"]) == pytest.approx((0.0, 0.2))


def test_other_passages_are_refused():
    with pytest.raises(RecordError, match="measured on different passages of neutral text"):
        tax.effect([loss(0, 10, 10.0)], [loss(1, 10, 10.0)], PLAN, seed=1)
