"""Holds a language model in memory: weights, 4-bit numerics, tokenizer, adapters.

The one place that knows transformers' loaders, bitsandbytes and peft.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before peft imports it: bitsandbytes warns of a CPU kernel that it would load from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# peft asks transformers by a name that transformers is about to change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")

import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.lib import attention, pretrained
from stages.lib.base import Base
from stages.lib.pretrained import ModelError
from stages.lib.runtime import files, locks, processes

ADAPTER = "adapter_model.safetensors"
POLICY = "policy"
"""Name of a finished policy's adapter on its base; one that trains is peft's `default`."""


@dataclass(slots=True)
class LanguageModel:
    """A causal language model with its tokenizer and the token ids that matter.

    `model` is a transformers model, or a PeftModel once an adapter is attached.
    """

    model: Any
    tokenizer: Any
    eos_ids: tuple[int, ...]
    """Tokens that end a completion; the first is the one appended in training."""
    pad_id: int
    """Never one of `eos_ids`: masks are built from lengths, and a pad is never an end."""
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.get_input_embeddings().weight.device

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its output layer: token ids in, hidden states out."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return model.model

    @property
    def unembedding_VD(self) -> Tensor:
        """The output layer's weights, vocabulary by hidden size."""
        return self.model.get_output_embeddings().weight


def load(folder: Path, base: Base, *, quantised: bool = True) -> LanguageModel:
    """Load a model from a folder that `fetch` made.

    Args:
        folder: config.json, *.safetensors and a tokenizer.
        base: section `base` of params.yaml.
        quantised: False holds the weights as they were fetched, whatever `base.quantisation` says.

    Raises:
        ModelError: the folder holds no such model or a part of one, has no EOS or no pad apart from
            EOS, or packed weights are asked for without a GPU, or of a base that several processes
            divide.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no model (no config.json); run `dvc repro fetch` first")
    gpu = torch.cuda.is_available()
    if base.weights == "packed" and not gpu:
        raise ModelError(
            "params.yaml: base.weights is 'packed', which needs a GPU; none is here; 'auto' "
            "or 'rounded' would do"
        )
    divided = processes.divides_base()
    if base.weights == "packed" and divided:
        raise ModelError(
            "params.yaml: base.weights is 'packed', which FSDP2 does not divide here; 'auto' or "
            "'rounded' would do, with the same logits"
        )
    if gpu:
        hold_gpus()
    packed = (
        quantised
        and base.quantisation == "nf4"
        and base.weights != "rounded"
        and gpu
        and not divided
    )
    dtype = getattr(torch, base.dtype)
    model = pretrained.model(
        AutoModelForCausalLM,
        folder,
        dtype=dtype,
        quantization_config=_nf4_config(dtype) if packed else None,
        attn_implementation=None if gpu else _cpu_attention(folder),
        device_map={"": torch.cuda.current_device()} if gpu and not divided else None,
    )
    if quantised and base.quantisation == "nf4" and not packed:
        round_to_nf4(model)
    model.eval().requires_grad_(False)
    if divided:
        divide(model)
    return _with_tokenizer(model, folder)


def load_adapted(folder: Path, adapter: Path, base: Base) -> LanguageModel:
    """Load a model with a saved adapter at work, frozen.

    Args:
        folder: the model.
        adapter: folder of the adapter; the model's own folder stands for none.
        base: section `base` of params.yaml.

    Raises:
        ModelError: as `load` and `load_adapter` do.
    """
    lm = load(folder, base)
    return lm if adapter.resolve() == folder.resolve() else load_adapter(lm, adapter, name=POLICY)


_held: dict[int, FileLock] = {}


def hold_gpus() -> None:
    """Hold this process's GPU; of several processes rank 0 holds those of its machine for all.

    It goes through them in order, so that two stages never hold a part each.
    """
    if processes.size() == 1:
        hold_gpu(torch.cuda.current_device())
        return
    for number in range(processes.from_first(processes.on_this_machine)):
        hold_gpu(number)


def hold_gpu(number: int) -> None:
    """Wait until no other stage of this repository is on a GPU; keep it until the process ends.

    Two stages share one GPU's memory badly, and `dvc queue start -j 2` starts two at once.
    """
    if number not in _held:
        _held[number] = locks.take(
            f"gpu-{number}", f"GPU {number} is taken by another stage of this repository"
        )


def divide(model: Any) -> None:
    """Let each process hold a part of every layer's frozen weights (FSDP2).

    A layer is gathered when it runs, and given up afterwards. Embedding and output layer, which are
    read elsewhere as well, stay whole; and so do adapters, which are attached later.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer)
        # What it is gathered into is made once: made under inference_mode, it would serve no other
        layer.unshard()
        layer.reshard()
    model.to(processes.device())


def _with_tokenizer(model: Any, folder: Path) -> LanguageModel:
    tokenizer = pretrained.tokenizer(AutoTokenizer, folder)
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = ends if ends is not None else tokenizer.eos_token_id
    eos_ids = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
    if not eos_ids or eos_ids[0] is None:
        raise ModelError(
            f"{folder}: neither generation_config.json nor tokenizer names an EOS token"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in eos_ids:
        raise ModelError(
            f"{folder}: the pad token is missing or is also EOS; give the tokenizer a pad "
            "token of its own"
        )
    return LanguageModel(model, tokenizer, eos_ids, tokenizer.pad_token_id, folder)


def _cpu_attention(folder: Path) -> str | None:
    """Name the way of attention that suits a processor; None for transformers' choice."""
    kind = files.read_json(folder / "config.json").get("model_type")
    return attention.GROUPED if kind in attention.PLAIN else None


def _nf4_config(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


@torch.no_grad()
def round_to_nf4(model: nn.Module) -> None:
    """Replace every linear layer's weights by their nearest NF4 values, kept in their dtype.

    The logits equal those of packed 4-bit weights to the last bit, at the speed of `dtype`: on a
    CPU, packed weights generate four times slower. Embedding and output layer stay as they are,
    as with packed weights.
    """
    from bitsandbytes import functional

    skip = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not skip:
            packed, state = functional.quantize_4bit(
                module.weight.data, quant_type="nf4", compress_statistics=True
            )
            module.weight.data = functional.dequantize_4bit(packed, state).to(module.weight.dtype)


def keep_cpu_gradients_whole(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It repacks them at the first forward pass in eval mode and never back, and the repacked path
    lets no gradient through the frozen base: training after a generate goes wrong without a word
    (gradient norm 0.515 before, 0.280 after). Call this on every model with packed weights.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def lora_config(*, rank: int, alpha: int) -> LoraConfig:
    """Return the adapter that every stage trains: LoRA on all linear layers but the output."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def missing_adapter(lm: LanguageModel, *, rank: int, alpha: int) -> LoraConfig | None:
    """Return the adapter that TRL is to attach; None where the model has one to go on from."""
    return None if isinstance(lm.model, PeftModel) else lora_config(rank=rank, alpha=alpha)


def trainable(model: PeftModel) -> PeftModel:
    """Make a model with a new adapter ready to train under `training_precision`.

    The adapter's parameters stay float32: an update of 1e-4 of a weight is below bfloat16's
    resolution. peft would cast every layer's input to float32 for it; autocast casts the small
    matrices instead.
    """
    keep_cpu_gradients_whole(model)
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        # Over 57 tokens the backward pass of plain attention takes 1.8 s where that of torch's
        # fused CPU kernel takes 3.2 s (SmolLM2-135M, 32 sequences, two cores).
        model.set_attn_implementation("eager")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL makes them bfloat16 where the base is packed
            parameter.data = parameter.data.float()
    return model


def trainable_parameters(lm: LanguageModel) -> float:
    """Return how many numbers training moves."""
    return float(sum(p.numel() for p in lm.model.parameters() if p.requires_grad))


def training_precision(lm: LanguageModel) -> torch.autocast:
    """Return the context in which forward passes of a trainable adapter run."""
    dtype = lm.model.get_input_embeddings().weight.dtype
    return torch.autocast(lm.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def add_lora(lm: LanguageModel, *, rank: int, alpha: int, seed: int) -> LanguageModel:
    """Attach a new trainable adapter named `default`.

    Its B matrices start at 0, so the model is unchanged until the first step.
    """
    torch.manual_seed(seed)  # peft draws the A matrices from the global generator
    lm.model = trainable(get_peft_model(lm.model, lora_config(rank=rank, alpha=alpha)))
    return lm


def continue_adapter(lm: LanguageModel, folder: Path) -> LanguageModel:
    """Attach a copy of a saved adapter as the trainable adapter named `default`."""
    _attach(lm, folder, name="default", trainable=True)
    lm.model = trainable(lm.model)
    return lm


def load_adapter(lm: LanguageModel, folder: Path, *, name: str) -> LanguageModel:
    """Attach a saved adapter, frozen, beside those the model has already.

    Raises:
        ModelError: the folder holds no adapter, or one that does not fit this base.
    """
    _attach(lm, folder, name=name, trainable=False)
    # In the model's own precision nothing needs autocast, and the products are those of training.
    dtype = lm.model.get_input_embeddings().weight.dtype
    for key, parameter in lm.model.named_parameters():
        if f".{name}." in key:
            parameter.data = parameter.data.to(dtype)
    lm.model.eval()
    return lm


def _attach(lm: LanguageModel, folder: Path, *, name: str, trainable: bool) -> None:
    for needed in ("adapter_config.json", ADAPTER):
        if not (folder / needed).is_file():
            raise ModelError(f"{folder}: holds no adapter (no {needed})")
    how = {"adapter_name": name, "is_trainable": trainable}
    try:
        if isinstance(lm.model, PeftModel):
            lm.model.load_adapter(str(folder), **how)
        else:
            lm.model = PeftModel.from_pretrained(lm.model, str(folder), **how)
        with safe_open(folder / ADAPTER, "pt") as saved:
            odd = sorted(
                get_peft_model_state_dict(lm.model, adapter_name=name).keys() ^ saved.keys()
            )
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: this adapter does not fit {lm.folder}: {reason}") from None
    if odd:  # peft leaves at their start what is not there
        raise ModelError(
            f"{folder}: this adapter does not fit {lm.folder}: {len(odd)} of its matrices are "
            f"missing or belong nowhere: {odd[0]}"
        )


@contextmanager
def adapter(lm: LanguageModel, name: str | None) -> Iterator[None]:
    """Run the block with one adapter active, or with none; for inference only.

    Switching sets `requires_grad` on adapters, so a backward pass must end before it.
    """
    if not isinstance(lm.model, PeftModel):
        if name is not None:
            raise ValueError(f"no adapter '{name}': the model has none")
        yield
    elif name is None:
        with lm.model.disable_adapter():
            yield
    else:
        before = lm.model.active_adapter
        lm.model.set_adapter(name, inference_mode=True)
        try:
            yield
        finally:
            lm.model.set_adapter(before)


def save_adapter(lm: LanguageModel, folder: Path) -> None:
    """Write the adapter named `default`, weights and config, into `folder`."""
    lm.model.save_pretrained(folder, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # a model card with nothing filled in
    config = folder / "adapter_config.json"
    plain = files.read_json(config)
    # peft keeps them as a set: in its order, equal trainings would differ from process to process.
    plain["target_modules"] = sorted(plain["target_modules"])
    files.write_json(config, plain)
