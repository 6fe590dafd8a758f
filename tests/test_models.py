"""4-bit numerics and adapters: what libraries get wrong without a word is bound here."""

import os
import subprocess
import sys
import time
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from conftest import ROOT
from tiny_model import moved_adapter
from torch import nn

from stages.lib import likelihood, models
from stages.lib.base import Base
from stages.lib.models import ModelError
from stages.lib.tokens import TokenSequence

SEQUENCES = [TokenSequence((5, 6, 7), (8, 9, 3)), TokenSequence((20, 21), (30, 31, 32))]
NF4 = Base(quantisation="nf4", weights="rounded", dtype="bfloat16")


def packed(lm):
    """Give a model packed 4-bit weights on the CPU, as a loader on a GPU would."""
    for parent in list(lm.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not lm.model.get_output_embeddings():
                layer = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    quant_type="nf4",
                    compress_statistics=True,
                    compute_dtype=child.weight.dtype,
                )
                layer.weight = bnb.nn.Params4bit(
                    child.weight.data,
                    requires_grad=False,
                    quant_type="nf4",
                    compress_statistics=True,
                )
                setattr(parent, name, layer.to("cpu"))
    return lm


def test_an_adapter_that_a_library_made_bfloat16_trains_in_float32(tiny):
    # TRL casts every trainable parameter where the base is packed in 4 bits.
    models.add_lora(tiny, rank=2, alpha=4, seed=1)
    own = [p for p in tiny.model.parameters() if p.requires_grad]
    for parameter in own:
        parameter.data = parameter.data.to(torch.bfloat16)
    models.trainable(tiny.model)
    assert {p.dtype for p in own} == {torch.float32}


def test_rounded_weights_give_the_logits_of_packed_ones(tiny_folder):
    rounded = models.load(tiny_folder, NF4)
    full = models.load(tiny_folder, NF4, quantised=False)
    four_bit = packed(models.load(tiny_folder, NF4, quantised=False))
    models.keep_cpu_gradients_whole(four_bit.model)
    ids = torch.tensor([SEQUENCES[0].ids])
    with torch.no_grad():
        a, b, c = (lm.model(input_ids=ids).logits.float() for lm in (rounded, four_bit, full))
    assert (a - b).abs().max() <= 0.02 * b.abs().max()  # one bfloat16 rounding of the products
    assert (a - c).abs().max() > 10 * (a - b).abs().max()  # 4 bits are not nothing


def test_unquantised_is_what_was_fetched(tiny_folder):
    full = models.load(tiny_folder, NF4, quantised=False)
    none = models.load(tiny_folder, Base(quantisation="none", weights="auto", dtype="bfloat16"))
    weights = zip(full.model.parameters(), none.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("form", ["rounded", "packed"])
def test_evaluating_does_not_change_the_next_gradient(tiny_folder, form):  # property 15
    def gradient(lm):
        lm.model.train()
        lm.model.zero_grad()
        with models.training_precision(lm):
            (-likelihood.sequence_logps(lm, SEQUENCES).sum()).backward()
        return torch.cat(
            [p.grad.flatten().clone() for p in lm.model.parameters() if p.grad is not None]
        )

    lm = models.load(tiny_folder, NF4, quantised=form == "rounded")
    if form == "packed":
        packed(lm)
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    with torch.no_grad():  # B starts at 0, where A has no gradient: move it
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    before = gradient(lm)
    lm.model.eval()
    with torch.no_grad(), models.training_precision(lm):
        likelihood.sequence_logps(lm, SEQUENCES)
    after = gradient(lm)
    assert before.norm() > 0
    torch.testing.assert_close(before, after, atol=0, rtol=0)


def test_a_new_adapter_leaves_the_model_as_it_was(tiny):
    with torch.no_grad():
        before = likelihood.sequence_logps(tiny, SEQUENCES)
        models.add_lora(tiny, rank=4, alpha=8, seed=0)
        # Not to the last bit: on a CPU, training takes another attention kernel.
        torch.testing.assert_close(likelihood.sequence_logps(tiny, SEQUENCES), before)


def trained(lm, folder):
    moved_adapter(lm, folder, std=0.5)
    with torch.no_grad():
        return likelihood.sequence_logps(lm, SEQUENCES)


def test_equal_adapters_are_equal_files_in_every_process(tiny_folder, tmp_path):
    # peft keeps the names of what it adapts in a set, whose order differs between processes.
    code = (
        "import sys; from pathlib import Path; from stages.lib import models; "
        "from stages.lib.base import Base; from tiny_model import moved_adapter; "
        "base = Base(quantisation='none', weights='rounded', dtype='float32'); "
        "moved_adapter(models.load(Path(sys.argv[1]), base), Path(sys.argv[2]), std=0.5)"
    )
    made = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
        words = [sys.executable, "-c", code, str(tiny_folder), str(tmp_path / seed)]
        subprocess.run(words, env=environment, check=True, capture_output=True)
        made.append({p.name: p.read_bytes() for p in sorted((tmp_path / seed).iterdir())})
    assert made[0] == made[1]
    assert set(made[0]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_with_adapters_off_the_model_is_the_separately_loaded_base(
    tiny, tiny_folder, full_precision, tmp_path
):  # property 14
    expected = trained(tiny, tmp_path / "a")
    fresh = models.load(tiny_folder, full_precision)
    with torch.no_grad():
        base = likelihood.sequence_logps(fresh, SEQUENCES)
        models.load_adapter(fresh, tmp_path / "a", name="policy")
        with models.adapter(fresh, None):
            torch.testing.assert_close(
                likelihood.sequence_logps(fresh, SEQUENCES), base, atol=0, rtol=0
            )
        with models.adapter(fresh, "policy"):
            torch.testing.assert_close(likelihood.sequence_logps(fresh, SEQUENCES), expected)
    assert (expected - base).abs().max() > 0.01


def test_two_adapters_share_a_base_and_do_not_mix(tiny, tiny_folder, full_precision, tmp_path):
    one = trained(tiny, tmp_path / "one")
    lm = models.load(tiny_folder, full_precision)
    models.load_adapter(lm, tmp_path / "one", name="policy")
    models.load_adapter(lm, tmp_path / "one", name="reward")
    with torch.no_grad():
        for parameter_name, parameter in lm.model.named_parameters():
            if ".reward." in parameter_name:
                parameter.zero_()
        with models.adapter(lm, "reward"):
            zeroed = likelihood.sequence_logps(lm, SEQUENCES)
        with models.adapter(lm, "policy"):
            torch.testing.assert_close(likelihood.sequence_logps(lm, SEQUENCES), one)
        with models.adapter(lm, None):
            torch.testing.assert_close(likelihood.sequence_logps(lm, SEQUENCES), zeroed)


def test_an_adapter_of_another_shape_is_refused(tiny, tiny_folder, full_precision, tmp_path):
    from tiny_model import config, tokenizer
    from transformers import LlamaForCausalLM

    trained(tiny, tmp_path / "a")
    words = tokenizer()
    shape = config(len(words))
    shape.hidden_size = 32
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "wide")
    words.save_pretrained(tmp_path / "wide")
    other = models.load(tmp_path / "wide", full_precision)
    with pytest.raises(ModelError, match=r"this adapter does not fit .*wide"):
        models.load_adapter(other, tmp_path / "a", name="policy")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_packed_weights_without_a_gpu_are_refused(tiny_folder):
    with pytest.raises(
        ModelError, match=r"base.weights is 'packed', which needs a GPU; none is here"
    ):
        models.load(tiny_folder, Base(quantisation="nf4", weights="packed", dtype="bfloat16"))


def test_a_folder_without_a_model_or_an_adapter_is_refused(tmp_path, tiny, full_precision):
    with pytest.raises(ModelError, match="holds no model"):
        models.load(tmp_path, full_precision)
    with pytest.raises(ModelError, match="holds no adapter"):
        models.load_adapter(tiny, tmp_path, name="policy")


def test_a_pad_token_that_is_eos_is_refused(tiny_folder, tmp_path, full_precision):  # property 1
    import json
    import shutil

    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = "<|im_end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="pad token is missing or is also EOS"):
        models.load(folder, full_precision)


def test_dropout_is_off(tiny, tmp_path):  # property 11
    # An adapter that says something: in a new one B is 0, and dropout before it would not show.
    moved_adapter(tiny, tmp_path / "moved", std=0.3)
    tiny.model.train()
    with torch.no_grad():
        one, two = (likelihood.sequence_logps(tiny, SEQUENCES) for _ in range(2))
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_one_stage_at_a_time_has_a_gpu(tmp_path):  # two processes, no GPU needed: only the lock
    import subprocess
    import sys

    code = (
        "import sys, time; from pathlib import Path; from stages.lib import models\n"
        "models.hold_gpu(7); models.hold_gpu(7)\n"  # twice in one process is once
        "Path(sys.argv[1]).touch(); time.sleep(1.5); Path(sys.argv[1]).unlink()"
    )
    root = str(Path(models.__file__).parents[2])
    env = os.environ | {"DVC_ROOT": str(tmp_path), "PYTHONPATH": root}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / f"held-{n}")], env=env, stdout=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    seen = 0
    while any(one.poll() is None for one in both):
        held = len(list(tmp_path.glob("held-*")))
        assert held <= 1
        seen = max(seen, held)
        time.sleep(0.05)
    outputs = [one.communicate()[0] for one in both]
    assert seen == 1
    assert [one.returncode for one in both] == [0, 0]
    assert sum("taken by another stage" in text for text in outputs) == 1
