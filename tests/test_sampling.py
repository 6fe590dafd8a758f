"""Completions depend on their own seed alone, and come from the distribution they claim."""

import math
import subprocess
import sys

import pytest
import torch

from stages.lib import likelihood, sampling
from stages.lib.sampling import Decoding, Request
from stages.lib.tokens import TokenSequence

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)


def requests(samples=3):
    return [Request(f"p{n}", tuple(range(5, 7 + n)), samples) for n in range(6)]


def draw(lm, some, decoding=ALL, *, seed=1, batch_tokens=10_000, max_tokens=12):
    return sampling.sample(
        lm,
        some,
        decoding,
        max_tokens=max_tokens,
        seed=seed,
        batch_tokens=batch_tokens,
        label="test",
    )


def test_a_completion_does_not_depend_on_its_batch(tiny):
    together = draw(tiny, requests())
    apart = [d for request in requests() for d in draw(tiny, [request])]
    small = draw(tiny, requests(), batch_tokens=20)
    assert [(d.prompt_id, d.index, d.ids) for d in together] == [
        (d.prompt_id, d.index, d.ids) for d in apart
    ]
    assert [d.ids for d in together] == [d.ids for d in small]


def test_more_samples_leave_the_first_ones_as_they_were(tiny):
    few, many = draw(tiny, requests(2)), draw(tiny, requests(5))
    assert {(d.prompt_id, d.index): d.ids for d in few}.items() <= {
        (d.prompt_id, d.index): d.ids for d in many
    }.items()


def test_same_seed_same_completions_other_seed_others(tiny):
    assert [d.ids for d in draw(tiny, requests())] == [d.ids for d in draw(tiny, requests())]
    assert [d.ids for d in draw(tiny, requests())] != [
        d.ids for d in draw(tiny, requests(), seed=2)
    ]


def test_the_random_numbers_are_the_same_in_every_process():
    code = "from stages.lib.sampling import row_key; print(row_key(1, 'insult-001', 0), row_key(1, 'insult-001', 1))"
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": s, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for s in "01"
    }
    assert len(outs) == 1
    assert sampling.row_key(1, "a", 0) != sampling.row_key(1, "a", 1) != sampling.row_key(2, "a", 1)


def test_the_recorded_log_probability_is_the_models_own(
    tiny,
):  # property 10: nothing else shapes the draw
    draws = draw(tiny, requests())
    sequences = [
        TokenSequence({r.prompt_id: r.ids for r in requests()}[d.prompt_id], d.ids) for d in draws
    ]
    with torch.no_grad():
        again = likelihood.sequence_logps(tiny, sequences)
    torch.testing.assert_close(torch.tensor([d.logp for d in draws]), again, atol=1e-4, rtol=1e-5)


def test_the_states_of_a_draw_are_those_that_predict_its_tokens(tiny):
    some = requests(40)[:2]  # many, so that some end before others
    draws, at = sampling.decode(tiny, some, ALL, max_tokens=30, seed=1, states=True)
    sequences = [TokenSequence(some[int(d.prompt_id[1:])].ids, d.ids) for d in draws]
    with torch.no_grad():
        again = likelihood.positions(tiny, sequences)
    assert at.target_N.tolist() == again.target_N.tolist()
    assert at.owner_N.tolist() == again.owner_N.tolist()
    torch.testing.assert_close(at.hidden_ND, again.hidden_ND, atol=1e-4, rtol=1e-4)


def test_a_completion_ends_at_its_first_eos_or_at_the_limit(tiny):
    draws = draw(tiny, requests(40), max_tokens=30)
    assert {d.finish for d in draws} == {"stop", "length"}
    for d in draws:
        ends = [i for i, token in enumerate(d.ids) if token in tiny.eos_ids]
        assert ends == ([len(d.ids) - 1] if d.finish == "stop" else [])
        assert len(d.ids) == 30 or d.finish == "stop"


def test_draws_follow_the_distribution():
    # 20,000 draws from softmax([2, 1, 0, ..., 0]) over 1,100 entries (three blocks, the last one
    # short): chi-square over {token 0, token 1, rest of block 1, blocks 2 and 3} with 3 degrees of
    # freedom exceeds 16.27 once in a thousand.
    logits = torch.zeros(1100)
    logits[0], logits[1] = 7.0, 6.0
    keys = torch.tensor([sampling.row_key(0, str(i), 0) for i in range(20_000)])
    token, logp = sampling.draw_tokens(logits.expand(20_000, -1), ALL, keys, 0)
    p = logits.double().softmax(-1)
    expected = torch.tensor([p[0], p[1], p[2:512].sum(), p[512:].sum()]) * 20_000
    found = torch.tensor(
        [
            (token == 0).sum(),
            (token == 1).sum(),
            ((token >= 2) & (token < 512)).sum(),
            (token >= 512).sum(),
        ]
    )
    assert ((found - expected) ** 2 / expected).sum() < 16.27
    torch.testing.assert_close(logp.double(), p.log()[token], atol=1e-5, rtol=0)
    assert token.max() < 1100


def test_common_random_numbers_make_like_policies_say_like_things():
    # Two policies whose probabilities differ by a few per cent give the same token far more often
    # than independent draws would (sum p q = 0.006 here).
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 2000, generator=generator).expand(4000, -1)
    other = one + 0.05 * torch.randn(1, 2000, generator=generator)
    keys = torch.tensor([sampling.row_key(0, str(i), 0) for i in range(4000)])
    same = (
        sampling.draw_tokens(one, ALL, keys, 3)[0] == sampling.draw_tokens(other, ALL, keys, 3)[0]
    )
    assert same.float().mean() > 0.8


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))

    def kept(**change):
        decoding = Decoding(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **change})
        return sampling.truncate(logits, decoding).isfinite().squeeze(0).tolist()

    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]  # the first already has half
    assert kept(top_p=0.76) == [True, True, True, False]  # 0.5 + 0.25 is just not enough
    assert kept() == [True] * 4


def test_greedy_is_top_k_one_and_has_log_probability_zero(tiny):
    greedy = Decoding(temperature=1.0, top_k=1, top_p=1.0)
    one, two = draw(tiny, requests(1), greedy, seed=1), draw(tiny, requests(1), greedy, seed=2)
    assert [d.ids for d in one] == [d.ids for d in two]
    assert all(d.logp == pytest.approx(0) for d in one)


def test_a_low_temperature_sharpens():
    logits = torch.tensor([[1.0, 0.0]]).expand(4000, -1)
    keys = torch.tensor([sampling.row_key(0, str(i), 0) for i in range(4000)])
    token, _ = sampling.draw_tokens(logits, Decoding(temperature=0.5, top_k=0, top_p=1.0), keys, 0)
    # sigmoid(1 / 0.5) = 0.881; four standard errors of 4,000 draws are 0.02
    assert (token == 0).float().mean().item() == pytest.approx(1 / (1 + math.exp(-2)), abs=0.021)
