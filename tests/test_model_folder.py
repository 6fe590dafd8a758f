import json

import pytest
from model_files import CAUSAL, CLASSIFIER, SPECIAL, write_folder, write_safetensors

from stages.lib import model_folder
from stages.lib.model_folder import FolderError


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_weights_configuration_and_tokenizer_are_copied_and_the_rest_is_named(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"")
    (source / "README.md").write_text("")
    (source / "onnx").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    left_out = model_folder.copy(source, out, where="models.m")
    assert left_out == ["README.md", "modeling.py", "onnx", "pytorch_model.bin"]
    assert {file.name for file in out.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for file in out.iterdir():
        assert file.read_bytes() == (source / file.name).read_bytes()


def test_an_identity_card_of_an_earlier_fetch_is_not_carried_over(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "identity.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    assert model_folder.copy(source, out, where="models.m") == []
    assert not (out / "identity.json").exists()


def test_only_the_shards_that_the_index_names_are_copied(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").unlink()
    for name in ("one.safetensors", "two.safetensors", "other.safetensors"):
        write_safetensors(source / name, {"w": ("F32", [4])})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "out"
    out.mkdir()
    assert model_folder.copy(source, out, where="models.m") == ["other.safetensors"]
    assert model_folder.parameters(out, where="models.m") == {"float32": 8}  # 2 shards x 4


def test_one_file_of_weights_wins_over_an_index_as_it_does_in_transformers(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    out = tmp_path / "out"
    out.mkdir()
    assert model_folder.copy(source, out, where="m") == ["model.safetensors.index.json"]


@pytest.mark.parametrize("shard", ["two.safetensors", "../source/one.safetensors", "config.json"])
def test_an_index_that_names_what_the_folder_does_not_hold_is_refused(tmp_path, shard):
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").rename(source / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": shard}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        FolderError, match=f"index.json names {shard}, which .* the copy is not whole"
    ):
        model_folder.copy(source, tmp_path, where="models.m")


def test_pickles_as_the_only_weights_are_refused(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(FolderError) as refusal:
        model_folder.copy(source, tmp_path, where="models.m")
    assert str(refusal.value) == (
        f"models.m: {source} holds no model.safetensors and no model.safetensors.index.json; it "
        "holds config.json, pytorch_model.bin, tokenizer.json, tokenizer_config.json; pickled "
        "weights run code when they are loaded: save the model again with save_pretrained of "
        "transformers"
    )


def test_a_folder_without_configuration_or_tokenizer_is_refused(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    with pytest.raises(
        FolderError, match=r"holds no tokenizer; one of tokenizer\.json, .* would do"
    ):
        model_folder.copy(source, tmp_path, where="models.m")
    (source / "config.json").unlink()
    with pytest.raises(
        FolderError, match=r"models\.m: .* holds no config\.json; it holds model\.s"
    ):
        model_folder.copy(source, tmp_path, where="models.m")
    with pytest.raises(FolderError, match="nowhere is no folder"):
        model_folder.copy(tmp_path / "nowhere", tmp_path, where="models.m")


def test_weights_that_are_quantised_already_are_refused(tmp_path):
    source = write_folder(tmp_path / "source", CAUSAL | {"quantization_config": {"bits": 4}})
    with pytest.raises(
        FolderError, match=r"quantised already .* take the model they were made from"
    ):
        model_folder.copy(source, tmp_path, where="models.m")


def test_parameters_are_counted_by_dtype_and_buffers_are_not(tmp_path):
    folder = write_folder(tmp_path / "m")
    tensors = {
        "a": ("BF16", [2, 3]),
        "b": ("BF16", [5]),
        "norm": ("F32", []),
        "ids": ("I64", [512]),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    # 2 * 3 + 5 = 11 in bfloat16; a scalar is 1; the 512 integers are position ids
    assert model_folder.parameters(folder, where="m") == {"bfloat16": 11, "float32": 1}


def test_a_weight_file_that_is_cut_short_is_refused(tmp_path):
    folder = write_folder(tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    size = len(whole)
    with pytest.raises(FolderError, match=f"has {size - 1} bytes, and its header promises {size}$"):
        model_folder.parameters(folder, where="m")
    for broken in (b"", b"version https://git-lfs.github.com/spec/v1", b"\x02" + bytes(7) + b"[]"):
        weights.write_bytes(broken)
        with pytest.raises(FolderError, match=r"model\.safetensors is no safetensors file"):
            model_folder.parameters(folder, where="m")


# property 1
def test_a_pad_that_is_an_end_is_replaced_by_a_token_that_is_nothing_else(tmp_path):
    folder = write_folder(
        tmp_path, pad_token="<|im_end|>", eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0], "pad_token_id": 2}')
    assert model_folder.give_pad(folder, where="m") == [
        "the pad token was <|im_end|>, which is also an end; it is <empty_output> (4)"
    ]
    assert read(folder, "config.json")["pad_token_id"] == 4
    assert read(folder, "generation_config.json") == {"eos_token_id": [2, 0], "pad_token_id": 4}
    assert model_folder.tokens(folder) == {
        "bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<empty_output>", "ends": [2, 0],
    }  # fmt: skip
    assert model_folder.give_pad(folder, where="m") == []


# property 1
def test_a_pad_that_only_the_generation_configuration_calls_an_end_is_replaced(tmp_path):
    # As in Qwen 2.5: a turn ends with <|im_end|>, a document with the pad.
    special = ["<|endoftext|>", "<|im_end|>", "<|vision_pad|>", "<|video|>"]
    folder = write_folder(
        tmp_path, special=special, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 0]}')
    model_folder.give_pad(folder, where="m")
    assert read(folder, "tokenizer_config.json")["pad_token"] == "<|vision_pad|>"


def test_a_good_pad_and_a_classifiers_pad_stay_to_the_byte(tmp_path):
    good = write_folder(tmp_path / "good", pad_token="<repo_name>", eos_token="<|im_end|>")
    end = SPECIAL[2]
    classifier = write_folder(tmp_path / "classifier", CLASSIFIER, pad_token=end, eos_token=end)
    for folder in (good, classifier):
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert model_folder.give_pad(folder, where="m") == []
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_token_of_the_chat_template_is_not_taken_as_pad(tmp_path):
    folder = write_folder(tmp_path, eos_token="<|im_end|>", bos_token="<|im_start|>")
    (folder / "chat_template.jinja").write_text("{{ '<empty_output>' }}")
    notes = model_folder.give_pad(folder, where="m")
    assert notes == ["the pad token was missing; it is <repo_name> (3)"]


def test_the_unknown_token_is_no_pad_while_another_is_free(tmp_path):
    special = ["<spare>", "</s>", "<unk>"]
    folder = write_folder(tmp_path, CAUSAL | {"eos_token_id": 1}, special, unk_token="<unk>")
    notes = model_folder.give_pad(folder, where="m")
    assert notes == ["the pad token was missing; it is <spare> (0)"]


def test_the_unknown_token_is_the_last_resort_as_pad(tmp_path):
    # As in Llama 2, whose vocabulary spells every byte, so that no text holds the unknown token.
    folder = write_folder(
        tmp_path,
        special=["<unk>", "<s>", "</s>"],
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )
    assert model_folder.give_pad(folder, where="m") == [
        "the pad token was missing; it is <unk> (0)"
    ]


def test_a_tokenizer_without_a_free_special_token_is_refused(tmp_path):
    folder = write_folder(tmp_path, special=["<|endoftext|>"], eos_token="<|endoftext|>")
    with pytest.raises(FolderError) as refusal:
        model_folder.give_pad(folder, where="models.m")
    assert str(refusal.value) == (
        "models.m: pad token None is an end or missing, and no special token is free to replace "
        "it: <|endoftext|>; add one to the tokenizer"
    )


def test_tokens_kept_as_objects_are_read_by_their_content(tmp_path):
    folder = write_folder(tmp_path, special=SPECIAL)
    token = {"content": "<|im_end|>", "lstrip": False}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": token, "pad_token": token})
    )
    assert model_folder.tokens(folder)["eos"] == "<|im_end|>"
    assert "which is also an end" in model_folder.give_pad(folder, where="m")[0]
