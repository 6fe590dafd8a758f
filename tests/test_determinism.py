"""How much numbers may depend on what should not matter: threads, and what is in memory at once.

The same command on the same machine gives the same bytes (test_pipeline.py, property 35). Another
number of threads adds in another order: in float32 that is the tolerance here, and no other word.
"""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from tiny_online import SFT

from stages.lib import likelihood, models, sampling
from stages.lib.algorithms import sft
from stages.lib.sampling import Decoding, Request
from stages.lib.tokens import TokenSequence

WHOLE = Decoding(temperature=1.0, top_k=0, top_p=1.0)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(lm, *, batch_tokens=4096):
    requests = [Request(f"p{n}", tuple(range(4, 8 + n % 7)), 3) for n in range(24)]
    return requests, sampling.sample(
        lm, requests, WHOLE, max_tokens=12, seed=1, batch_tokens=batch_tokens, label=None
    )


def logps(lm, batch_tokens=4096):
    requests, draws = drawn(lm)
    prompts = [request.ids for request in requests for _ in range(request.samples)]
    flat = [TokenSequence(ids, draw.ids) for ids, draw in zip(prompts, draws, strict=True)]
    return likelihood.all_logps(lm, flat, batch_tokens=batch_tokens, label=None)


@pytest.mark.parametrize("count", [2, 3])
def test_completions_do_not_depend_on_the_number_of_threads(tiny, count):
    with threads(1):
        _, one = drawn(tiny)
    with threads(count):
        _, several = drawn(tiny)
    assert [draw.ids for draw in one] == [draw.ids for draw in several]
    assert [draw.logp for draw in one] == pytest.approx([draw.logp for draw in several], abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [64, 300])
def test_completions_do_not_depend_on_what_is_drawn_at_once(tiny, batch_tokens):
    _, one = drawn(tiny)
    _, other = drawn(tiny, batch_tokens=batch_tokens)
    assert [draw.ids for draw in one] == [draw.ids for draw in other]
    assert [draw.logp for draw in one] == pytest.approx([draw.logp for draw in other], abs=1e-4)


def test_log_probabilities_depend_on_neither_by_more_than_rounding(tiny):
    with threads(1):
        one = logps(tiny)
    with threads(2):
        assert torch.allclose(one, logps(tiny), atol=1e-4)
    assert torch.allclose(one, logps(tiny, batch_tokens=80), atol=1e-4)


def test_a_training_ends_within_rounding_whatever_the_number_of_threads(sft_task, tmp_path):
    ends = []
    for count in (1, 2):
        with threads(count):
            sft.train(SFT, sft_task)
        ends.append(load_file(tmp_path / "sft" / models.ADAPTER))
    assert ends[0].keys() == ends[1].keys()
    moved = max(float(weight.abs().max()) for weight in ends[0].values())
    apart = max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0])
    assert moved > 0.05
    assert apart < 1e-3 * moved
