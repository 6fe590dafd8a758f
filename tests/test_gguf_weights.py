import json

import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from stages.lib import gguf_weights, model_folder  # noqa: E402
from stages.lib.gguf_weights import GgufError  # noqa: E402

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<spare>"]
NEWLINE, DOUBLE_NEWLINE = "Ċ", "ĊĊ"  # a newline as byte-level vocabularies spell it
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), DOUBLE_NEWLINE, "12"]
HEADS, KV_HEADS, LAYERS = 4, 2, 2


@pytest.fixture(scope="module")
def original():
    """A two-layer Llama with random weights in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64,
        tie_word_embeddings=True, rms_norm_eps=2.0**-20,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for weights in model.parameters():  # not model.bfloat16(), which rounds the rotary angles too
        weights.data = weights.data.bfloat16()
    return model


def as_llama_cpp_orders(name, weights):
    """Rotary pairs are neighbours in llama.cpp and half a head apart in transformers."""
    heads = HEADS if "q_proj" in name else KV_HEADS
    rows, columns = weights.shape
    return (
        weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def write_gguf(path, model, *, split="smollm", without=(), matrices="F32"):
    """Write a model as the converter of llama.cpp does; `matrices` is their GGUF type."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))  # 3: control
    writer.add_token_merges([f"{NEWLINE} {NEWLINE}", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" and name not in without:
            weights = tensor.float().numpy()
            if "q_proj" in name or "k_proj" in name:
                weights = as_llama_cpp_orders(name, weights)
            kind = gguf.GGMLQuantizationType[matrices if weights.ndim == 2 else "F32"]
            name = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    out = folder / "out"
    out.mkdir()
    notes = gguf_weights.convert(write_gguf(folder / "tiny.gguf", original), out, where="models.m")
    return out, notes


def test_a_converted_model_gives_the_logits_of_the_original_to_the_last_bit(original, converted):
    again = AutoModelForCausalLM.from_pretrained(converted[0], dtype=torch.bfloat16)
    ids_BT = torch.tensor([[5, 9, 100, 7, 42, 8]])
    with torch.no_grad():
        assert torch.equal(again(ids_BT).logits, original(ids_BT).logits)


def test_a_converted_folder_says_that_it_is_bfloat16_and_no_more_quantised(original, converted):
    out, notes = converted
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    count = sum(weights.numel() for weights in original.parameters())
    assert model_folder.parameters(out, where="m") == {"bfloat16": count}
    assert notes[0] == "the weights were F32 in tiny.gguf; they are bfloat16"


def test_quantised_weights_are_unpacked_and_rounded_to_bfloat16_once(original, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    file = write_gguf(tmp_path / "tiny.gguf", original, matrices="Q8_0")
    notes = gguf_weights.convert(file, out, where="m")
    assert notes[0] == "the weights were F32, Q8_0 in tiny.gguf; they are bfloat16"
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    name, kind = "model.layers.1.mlp.down_proj.weight", gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quantize(original.state_dict()[name].float().numpy(), kind)
    exact = torch.tensor(gguf.dequantize(blocks, kind))
    assert torch.equal(again.state_dict()[name], exact.bfloat16())
    assert not torch.equal(exact, exact.bfloat16().float())  # so there is something to round


def test_generation_ends_at_the_end_of_a_turn_and_at_the_end_of_a_document(converted):
    out, notes = converted
    # The file names 2 alone; id 0 ends documents by its name. The file's own comes first.
    assert model_folder.end_ids(out) == [2, 0]
    assert notes[-1] == "generation ends at <|im_end|> (2), <|endoftext|> (0)"


def test_a_blank_line_before_a_number_is_one_token_as_smollm_was_trained(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer.tokenize("a\n\n12") == ["a", DOUBLE_NEWLINE, "1", "2"]
    # Where no digit follows, the last newline goes with what comes after, as everywhere in GPT-2.
    assert tokenizer.tokenize("a\n\nb") == ["a", NEWLINE, NEWLINE, "b"]
    assert (
        tokenizer.decode(tokenizer("a\n\n12 it's <|im_end|>").input_ids)
        == "a\n\n12 it's <|im_end|>"
    )


def test_the_splitting_of_gpt_2_stays_as_transformers_reads_it(original, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    gguf_weights.convert(write_gguf(tmp_path / "g.gguf", original, split="gpt-2"), out, where="m")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("a\n\n12") == ["a", NEWLINE, NEWLINE, "12"]


def test_a_file_that_splits_text_in_an_unknown_way_is_refused(original, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", original, split="viking")
    with pytest.raises(GgufError) as refusal:
        gguf_weights.convert(file, tmp_path, where="models.m")
    text = str(refusal.value)
    assert text.startswith(
        "models.m: tiny.gguf splits text by pre-tokenizer 'viking', which is not known here "
        "(gpt-2, smollm, llama3, "
    )
    assert text.endswith("; take the model from the hub")


def test_a_file_that_lacks_weights_is_refused_and_none_are_drawn_at_random(original, tmp_path):
    absent = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "tiny.gguf", original, without=[absent])
    with pytest.raises(GgufError) as refusal:
        gguf_weights.convert(file, tmp_path, where="models.m")
    assert str(refusal.value) == (
        f"models.m: tiny.gguf lacks weights of LlamaForCausalLM, 1 in all: {absent}; take the "
        "model from the hub"
    )


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"not a model, but long enough")
    with pytest.raises(GgufError, match=r"models\.m: tiny\.gguf is no GGUF file: "):
        gguf_weights.convert(file, tmp_path, where="models.m")
