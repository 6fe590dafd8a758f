"""How many bytes a decoder takes at its peak, from the shapes in its config.json. No torch.

Every formula counts what the code holds, in the manner of Korthikanti et al. 2022
(arXiv:2205.05198), and is compared with what torch keeps for a backward pass in
tests/test_memory.py.

Symbols: h hidden size, A heads times head width, I intermediate size, V vocabulary, r LoRA rank,
e bytes a number (2 in bfloat16, 4 in float32).
"""

from dataclasses import dataclass
from pathlib import Path

from stages.lib.runtime import files

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""4.127 for a packed number: its 4, an 8-bit scale for 64 of them, a 32-bit one for 256 scales
(double quantisation, Dettmers et al. 2023, arXiv:2305.14314, section 3)."""
ADAM = 16
"""Bytes a trained number: itself, its gradient and two moments, each in float32."""
CHUNK = 64
"""Rows whose logits are in memory at once, in `likelihood` and in `sampling`."""
MATRICES = 7
"""Linear layers of a block: q, k, v, o, gate, up, down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder in the manner of Llama: Llama, Mistral, Qwen2, SmolLM2 and their like."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""

    @property
    def attended(self) -> int:
        """A: numbers of a query."""
        return self.heads * self.head_width

    @property
    def kept(self) -> int:
        """Numbers of a key, or of a value."""
        return self.kv_heads * self.head_width

    @property
    def block(self) -> int:
        """Numbers in the linear layers of one block."""
        attention = 2 * self.hidden * (self.attended + self.kept)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def linear(self) -> int:
        """Numbers in the linear layers of all blocks: what is quantised."""
        return self.layers * self.block

    @property
    def rest(self) -> int:
        """Numbers in embedding, output layer and norms: what is not quantised."""
        tables = 1 if self.tied else 2
        return self.vocabulary * self.hidden * tables + (2 * self.layers + 1) * self.hidden

    def lora(self, rank: int) -> int:
        """Numbers of an adapter of this rank on every linear layer but the output."""
        attention = 4 * self.hidden + 2 * (self.attended + self.kept)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


def read_shape(folder: Path) -> Shape | None:
    """Return the shape of the model in a folder; None where it is absent or is no such decoder."""
    if not (folder / "config.json").is_file():
        return None
    config = files.read_json(folder / "config.json")
    try:
        heads = config["num_attention_heads"]
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],  # encoders have none, and are no decoders
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )
    except KeyError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How models are held: section `base` of params.yaml on the machine at hand."""

    bytes: int
    """e: of a number that is not packed, and of an activation."""
    packed: bool
    """Whether linear layers take 4 bits a number."""
    eager: bool
    """Whether training keeps the attention's scores, as it does on a CPU (`models.trainable`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Sequences that go through a model together; the prompt of several is read once."""

    prompts: int
    sequences: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def read(self) -> int:
        """Tokens read: the last one of a sequence is predicted only."""
        return self.prompts * self.prompt_tokens + self.sequences * self._read_of_completion

    @property
    def looked_at(self) -> int:
        """Tokens whose keys and values are there to be attended to, a copy for each sequence."""
        own = self.prompt_tokens + self._read_of_completion
        return self.prompts * self.prompt_tokens + self.sequences * own

    @property
    def scores(self) -> int:
        """Pairs of a token and one that it may attend to, of one head."""
        own = self._read_of_completion * (self.prompt_tokens + self._read_of_completion)
        return self.prompts * self.prompt_tokens**2 + self.sequences * own

    @property
    def predicted(self) -> int:
        """Tokens whose probability is asked."""
        return self.sequences * self.completion_tokens

    @property
    def _read_of_completion(self) -> int:
        return self.completion_tokens - 1


def weights(shape: Shape, held: Held, *, quantised: bool = True) -> float:
    """Return the bytes of a model without adapters.

    packed    linear * 4.127 / 8 + rest * e
    otherwise (linear + rest) * e
    """
    linear = NF4_BITS / 8 if held.packed and quantised else held.bytes
    return shape.linear * linear + shape.rest * held.bytes


def trained_adapter(shape: Shape, rank: int, held: Held) -> float:
    """Return the bytes of an adapter that trains: float32 with moments, and what autocast casts."""
    cast = held.bytes if held.bytes < 4 else 0
    return shape.lora(rank) * (ADAM + cast)


def training(shape: Shape, held: Held, batch: Pass, *, rank: int) -> float:
    """Return the bytes that a forward pass keeps for its backward pass, and the latter's own peak.

        block    read * (8h + e(2h + 2A + 4I + 7r)) + looked_at * 2eA
                 + scores * heads * (4 + e), where held.eager (4 in float32)
        logits   predicted * 4V
        peak     read * 4eI, logits and gradient of one chunk, one layer dequantised where packed

    Two norms keep their input in float32 (8h); q, k and v read one tensor, gate and up another
    (2h); keys and values are repeated for every head; `act(gate) * up` keeps four tensors.
    """
    e, h, attended = held.bytes, shape.hidden, shape.attended
    token = 8 * h + e * (2 * (h + attended) + 4 * shape.intermediate + MATRICES * rank)
    block = batch.read * token + batch.looked_at * 2 * e * attended
    if held.eager:
        block += batch.scores * shape.heads * (4 + (e if e < 4 else 0))
    logits = batch.predicted * shape.vocabulary * 4
    peak = batch.read * 4 * e * shape.intermediate + 3 * CHUNK * shape.vocabulary * 4
    return shape.layers * block + logits + peak + _dequantised(shape, held)


def answering(
    shape: Shape, held: Held, *, batch_tokens: int, read_at_once: float, completion_tokens: int
) -> float:
    """Return the bytes of a batch that is sampled or read without gradients.

        cache    batch_tokens * layers * 2 * kv_heads * head_width * e, one layer of it twice
        read     read_at_once * (8h + e(6h + 3I)), of one block and of the states that come out
        logits   rows * V * e + one chunk of them five times in float32

    Args:
        shape: of the model.
        held: how it is held.
        batch_tokens: of prompts and completions.
        read_at_once: of them, in one pass: while it samples, those of the prompts, each read once
            for all of its completions; where completions are given, all.
        completion_tokens: of a completion, at most; 0 where no logits of whole rows are asked.
    """
    layer = batch_tokens * 2 * shape.kept * held.bytes
    token = 8 * shape.hidden + held.bytes * (6 * shape.hidden + 3 * shape.intermediate)
    rows = batch_tokens // (completion_tokens + 1) if completion_tokens else 0
    logits = shape.vocabulary * (rows * held.bytes + 5 * CHUNK * 4)
    read = read_at_once * token
    return (shape.layers + 1) * layer + read + logits + _dequantised(shape, held)


def _dequantised(shape: Shape, held: Held) -> float:
    """Bytes of the largest linear layer, which is whole in memory while a packed one is used."""
    return shape.hidden * shape.intermediate * held.bytes if held.packed else 0
