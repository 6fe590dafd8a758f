"""Our attention and our cache against transformers' own."""

import pytest
import torch
from transformers import DynamicCache

from stages.lib import attention, models, sampling
from stages.lib.prefix import prefill
from stages.lib.sampling import Decoding, Request

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)


def states(lm, way, *, gradients=False):
    """Hidden states of padded rows, and the gradient of the embedding that makes them."""
    lm.model.set_attn_implementation(way)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(5, 30, (4, 7), generator=generator)
    mask_BT = (torch.arange(7) >= torch.tensor([0, 2, 5, 1])[:, None]).long()
    weight = lm.model.get_input_embeddings().weight.requires_grad_(gradients)
    hidden_BTD = lm.backbone(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    seen = hidden_BTD[mask_BT.bool()]
    if not gradients:
        return seen, None
    (gradient,) = torch.autograd.grad(seen.square().sum(), weight)
    return seen.detach(), gradient


@pytest.mark.parametrize("way", ["eager", "sdpa"])
def test_it_reads_what_transformers_own_attention_reads(tiny, way):
    assert tiny.model.config.num_attention_heads > tiny.model.config.num_key_value_heads > 1
    ours, slope = states(tiny, attention.GROUPED, gradients=True)
    theirs, their_slope = states(tiny, way, gradients=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope, their_slope, atol=1e-3, rtol=1e-4)


def test_on_a_processor_models_of_a_plain_kind_are_loaded_with_it(tiny):
    assert tiny.model.config.model_type in attention.PLAIN
    assert tiny.model.config._attn_implementation == attention.GROUPED
    assert models.add_lora(tiny, rank=2, alpha=4, seed=1).model.config._attn_implementation == attention.GROUPED  # fmt: skip


@torch.inference_mode()
def test_a_cache_with_room_gives_the_states_of_one_that_grows(tiny):
    prompts = [(5, 6, 7), (8, 9), (10, 11, 12, 13)]

    def read(room):
        prefix = prefill(tiny, prompts, room=room)
        assert type(prefix.cache) is DynamicCache
        seen = [prefix.hidden_BD]
        for step, rows in enumerate(([0, 0, 1, 2, 2], [4, 1, 0], [1])):
            prefix.select(torch.tensor(rows))
            prefix.read(torch.tensor([[20 + step]] * len(rows)))
            seen.append(prefix.hidden_BD)
        assert prefix.cache.get_seq_length() == 7
        return torch.cat(seen)

    torch.testing.assert_close(read(room=3), read(room=0), atol=1e-5, rtol=1e-5)


def test_more_tokens_than_there_is_room_for_are_an_error(tiny):
    with torch.inference_mode():
        prefix = prefill(tiny, [(5, 6)], room=1)
        prefix.read(torch.tensor([[7]]))
        with pytest.raises(RuntimeError):
            prefix.read(torch.tensor([[8]]))


@pytest.mark.parametrize("worth", [0.0, 0.5, 1.0])
def test_when_ended_rows_are_left_out_changes_no_draw(tiny, monkeypatch, worth):
    some = [Request(f"p{n}", (5 + n, 6), 16) for n in range(8)]

    def draws():
        found, at = sampling.decode(tiny, some, ALL, max_tokens=40, seed=3, states=True)
        return [(d.prompt_id, d.index, d.ids, d.finish) for d in found], found, at

    said, found, at = draws()
    assert len({len(ids) for _, _, ids, _ in said}) > 3  # they end at different places
    monkeypatch.setattr(sampling, "WORTH_KEEPING", worth)
    again, others, elsewhere = draws()
    assert again == said
    assert [d.logp for d in others] == pytest.approx([d.logp for d in found], abs=1e-4)
    assert elsewhere.owner_N.tolist() == at.owner_N.tolist()
    torch.testing.assert_close(elsewhere.hidden_ND, at.hidden_ND, atol=1e-5, rtol=1e-5)
