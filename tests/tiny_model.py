"""A two-layer language model and its tokenizer, built from nothing in a second.

    python tests/tiny_model.py FOLDER

It has the shape of the real one (Llama, tied embeddings, chat template, EOS apart from pad) and
random weights: every stage runs on it, and nothing it says means anything.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SOURCES = Path(__file__).parent.parent / "data/sources/prompts"


def tokenizer(entries: int = 700) -> PreTrainedTokenizerFast:
    """A byte-level BPE, learnt from the project's own prompts."""
    texts = []
    for file in sorted(SOURCES.glob("*.jsonl"))[:5]:
        for line in file.read_text(encoding="utf-8").splitlines()[:60]:
            row = json.loads(line)
            texts.append(row.get("text") or row["messages"][0]["content"])
    bpe = Tokenizer(kinds.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=entries, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )


def config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )


def build(folder: Path, *, seed: int = 0, entries: int = 700) -> Path:
    """Write model and tokenizer; equal seeds give equal weights."""
    words = tokenizer(entries)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(len(words)))
    with torch.no_grad():  # so that the next token depends on the text, and EOS comes now and then
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def classifier(folder: Path, model: Path, **shape) -> Path:
    """Write a text classifier of the classes nothate and hate, with the tokenizer of a model."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    words = AutoTokenizer.from_pretrained(model)
    own = config(len(words))
    own.num_labels = 2
    own.id2label, own.label2id = {0: "nothate", 1: "hate"}, {"nothate": 0, "hate": 1}
    own.update(shape)
    torch.manual_seed(0)
    LlamaForSequenceClassification(own).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def moved_adapter(lm, folder: Path, *, std: float) -> Path:
    """Give a model an adapter that changes what it says, as training would, and save it."""
    from stages.lib import models

    models.add_lora(lm, rank=4, alpha=8, seed=0)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std, generator=torch.Generator().manual_seed(1))
    models.save_adapter(lm, folder)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
