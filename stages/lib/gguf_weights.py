"""GGUF to safetensors: a quantised llama.cpp file becomes a bfloat16 model folder.

transformers reads the file and knows the architectures. What it gets wrong or leaves open is set
right here: digits, ends of text, and weights that the file does not hold.
"""

from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from stages.lib import pretrained
from stages.lib.runtime.schema import Refusal

ENDS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
)
"""Texts of tokens at which llama.cpp ends a generation, whatever the file names as its EOS."""


class GgufError(Refusal):
    """A GGUF file cannot be used."""


def convert(gguf: Path, out: Path, *, where: str) -> list[str]:
    """Write the model of a GGUF file to `out` as bfloat16 safetensors with its tokenizer.

    Returns:
        What differs from the file, a sentence each.

    Raises:
        GgufError: transformers does not know the architecture or how the tokenizer splits text, or
            the file lacks weights that the architecture has.
    """
    facts = _facts(gguf, where)
    tokenizer, notes = _tokenizer(gguf, facts, where)
    model = _model(gguf, where)
    ends = _ends(tokenizer)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    texts = ", ".join(f"{tokenizer.convert_ids_to_tokens(number)} ({number})" for number in ends)
    weights = f"the weights were {', '.join(facts['types'])} in {gguf.name}; they are bfloat16"
    return [weights, *notes, f"generation ends at {texts}"]


def _facts(gguf: Path, where: str) -> dict[str, Any]:
    """Tokenizer model, pre-tokenizer and tensor types, as the file names them."""
    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError, OSError) as error:
        raise GgufError(f"{where}: {gguf.name} is no GGUF file: {error}") from None
    field = {key: reader.get_field(f"tokenizer.ggml.{key}") for key in ("model", "pre")}
    facts: dict[str, Any] = {
        key: found.contents() if found else None for key, found in field.items()
    }
    return facts | {"types": sorted({tensor.tensor_type.name for tensor in reader.tensors})}


def _tokenizer(gguf: Path, facts: dict[str, Any], where: str) -> tuple[Any, list[str]]:
    """Read the tokenizer, and make it split text as the file says.

    For byte-level vocabularies whose splitting it does not know, transformers falls back to that of
    GPT-2 without a word. SmolLM splits off each digit first: with the fallback, the blank line
    before "1." is two tokens and not the one that the model was trained on.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, **pretrained.SAFE
        )
    except (ValueError, KeyError, OSError) as error:
        raise GgufError(
            f"{where}: the tokenizer of {gguf.name} cannot be read: {_line(error)}"
        ) from None
    split = facts["pre"]
    if split == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        return tokenizer, ["each digit is a token of its own, as pre-tokenizer smollm asks"]
    if facts["model"] == "gpt2" and split != "gpt-2" and split not in GGUF_PRE_TOKENIZER_SPLITS:
        known = ", ".join(["gpt-2", "smollm", *GGUF_PRE_TOKENIZER_SPLITS])
        raise GgufError(
            f"{where}: {gguf.name} splits text by pre-tokenizer {split!r}, which is not known here "
            f"({known}); take the model from the hub"
        )
    return tokenizer, []


def _model(gguf: Path, where: str) -> Any:
    """Load the weights in bfloat16; transformers draws the progress bar."""
    # Without `dequantize` the model refuses to be saved, and may stay packed on a GPU.
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **pretrained.SAFE,
            output_loading_info=True,
        )
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise GgufError(
            f"{where}: the weights of {gguf.name} cannot be read: {_line(error)}"
        ) from None
    absent = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if absent:  # transformers would draw them at random
        raise GgufError(
            f"{where}: {gguf.name} lacks weights of {type(model).__name__}, {len(absent)} in all: "
            f"{absent[0]}; take the model from the hub"
        )
    return model


def _ends(tokenizer: Any) -> list[int]:
    """Ids of the tokens that end a text: the file's EOS first, then those that do so by name.

    A model tuned for chat ends a turn with one token and was pre-trained to end a document with
    another; it goes on to write either.
    """
    added = tokenizer.added_tokens_decoder.items()
    special = {token.content: number for number, token in added if token.special}
    named = sorted(special[text] for text in ENDS if text in special)
    eos = tokenizer.eos_token_id
    return list(dict.fromkeys([*([] if eos is None else [eos]), *named]))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
