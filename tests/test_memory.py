"""The memory that a stage takes is known before it starts: estimates against what was taken."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph import ROOT
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from stages.lib import likelihood, models
from stages.lib.prefix import with_completions
from stages.lib.runtime import entry, memory, needs, params, room
from stages.lib.runtime.memory import Held, Pass, Shape
from stages.lib.runtime.needs import Need
from stages.lib.runtime.room import GIB, Room, RoomError
from stages.lib.tokens import TokenSequence

SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
BF16 = Held(bytes=2, packed=False, eager=False)


def shape(h=256, i=704, layers=2, heads=8, kv=8, v=1000, tied=True):
    return Shape(
        hidden=h, layers=layers, heads=heads, kv_heads=kv, head_width=h // heads, intermediate=i,
        vocabulary=v, tied=tied,
    )  # fmt: skip


def decoder(s, *, dtype=torch.bfloat16, kind="llama"):
    """A random model of a shape, with nothing but its embedding table for a tokenizer."""
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[kind]
    own = model(config(
        vocab_size=s.vocabulary, hidden_size=s.hidden, intermediate_size=s.intermediate,
        num_hidden_layers=s.layers, num_attention_heads=s.heads, num_key_value_heads=s.kv_heads,
        tie_word_embeddings=s.tied,
    ))  # fmt: skip
    own = own.to(dtype).eval().requires_grad_(False)
    return models.LanguageModel(own, None, (3,), 0, Path())


@pytest.fixture
def world(tmp_path):
    """The default parameters, and a folder in which the default base has been fetched."""
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "models/base/config.json").write_text(json.dumps(SMOLLM2))
    return params.read(ROOT / "params.yaml"), tmp_path


def test_double_quantised_nf4_takes_4_127_bits():
    # 4 + 8/64 + 32/(64 * 256) = 4 + 0.125 + 0.00195
    assert round(memory.NF4_BITS, 3) == 4.127
    s = shape()
    packed = memory.weights(s, replace(BF16, packed=True))
    assert packed == pytest.approx(s.linear * 4.127 / 8 + s.rest * 2, rel=1e-3)
    assert memory.weights(s, replace(BF16, packed=True), quantised=False) == memory.weights(s, BF16)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("s", [shape(kv=2), shape(tied=False)], ids=["shared keys", "untied"])
def test_a_shape_has_as_many_numbers_as_the_model_and_its_adapter(s, kind):
    lm = decoder(s, kind=kind)
    numbers = {n: p.numel() for n, p in lm.model.named_parameters() if not n.endswith(".bias")}
    assert s.linear + s.rest == sum(numbers.values())
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    assert s.lora(4) == models.trainable_parameters(lm)


def sequences(batch, vocabulary):
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        return tuple(torch.randint(4, vocabulary, (n,), generator=generator).tolist())

    each = batch.sequences // batch.prompts
    prompts = [draw(batch.prompt_tokens) for _ in range(batch.prompts)]
    return [TokenSequence(p, draw(batch.completion_tokens)) for p in prompts for _ in range(each)]


def kept_for_backward(lm, some):
    """Bytes of what the backward pass of a loss keeps, parameters apart; each storage once."""
    own = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # held, so that none is used again
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        models.training_precision(lm),
    ):
        likelihood.sequence_logps(lm, some)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("s", "batch"),
    [
        (shape(), Pass(prompts=1, sequences=8, prompt_tokens=32, completion_tokens=32)),
        (shape(kv=2), Pass(prompts=1, sequences=8, prompt_tokens=128, completion_tokens=32)),
        (shape(h=512, kv=2), Pass(prompts=2, sequences=8, prompt_tokens=32, completion_tokens=32)),
        (shape(i=1408), Pass(prompts=3, sequences=15, prompt_tokens=16, completion_tokens=32)),
    ],
    ids=["plain", "long prompts", "wide", "wide MLP"],
)
def test_a_backward_pass_keeps_what_the_formula_says_to_two_percent(attention, dtype, s, batch):
    lm = decoder(s, dtype=dtype)
    models.add_lora(lm, rank=16, alpha=32, seed=0)
    lm.model.set_attn_implementation(attention)
    held = Held(bytes=dtype.itemsize, packed=False, eager=attention == "eager")
    cast = s.lora(16) * 2 if held.bytes == 2 else 0  # `trained_adapter` has them
    later = batch.read * 4 * held.bytes * s.intermediate + 3 * memory.CHUNK * s.vocabulary * 4
    estimate = memory.training(s, held, batch, rank=16) - later + cast
    assert estimate == pytest.approx(
        kept_for_backward(lm, sequences(batch, s.vocabulary)), rel=0.02
    )


def test_a_batch_that_is_read_keeps_the_keys_and_values_of_the_formula():
    s, batch = shape(kv=2), Pass(prompts=2, sequences=8, prompt_tokens=20, completion_tokens=13)
    lm = decoder(s)
    with torch.inference_mode():
        prefix, ids_BT, _ = with_completions(lm, sequences(batch, s.vocabulary))
        prefix.read(ids_BT)
    cached = sum(t.nbytes for layer in prefix.cache.layers for t in (layer.keys, layer.values))
    tokens = 8 * 33
    assert cached == s.layers * tokens * 2 * s.kept * 2
    assert memory.answering(
        s, BF16, batch_tokens=tokens, read_at_once=0, completion_tokens=0
    ) == pytest.approx(cached * 3 / 2 + 5 * 64 * 1000 * 4)  # a layer of two is there twice


def measured():
    """The peaks of docs/measurements.md, in GiB, by stage."""
    text = (ROOT / "docs/measurements.md").read_text()
    rows = re.findall(r"^\| ([\w@]+)(?: \([^)]*\))? \| [\d,]+ \| ([\d.]+) \|$", text, flags=re.M)
    return {stage: float(gib) for stage, gib in rows}


def test_the_estimates_of_the_default_run_are_near_what_it_took(world):
    # Trainings are estimated at max_tokens, which no sequence reaches: above, never far below.
    took = measured()
    estimates = {need.stage: need.bytes / GIB for need in needs.of(*world, gpu=False)}
    compared = estimates.keys() & took.keys()
    assert {"sample@base", "reward", "align@dpo", "align@ppo", "evaluate@dpo"} <= compared
    for stage in compared:
        assert 0.77 < estimates[stage] / took[stage] < 1.32, stage


def test_the_table_of_estimates_in_the_documents_is_what_the_code_says(world):
    rows = re.findall(
        r"^\| ([\w@]+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs/scale-up.md").read_text(),
        flags=re.M,
    )
    estimates = {need.stage: need.bytes / GIB for need in needs.of(*world, gpu=False)}
    took = measured()
    assert len(rows) == 9
    for stage, estimate, real in rows:
        assert float(estimate) == round(estimates[stage], 1), stage
        assert float(real) == took[stage], stage


def test_the_step_of_ppo_in_the_measurements_is_estimated_to_ten_percent():
    # make bench: a random Llama of 1.6 B, four roles on one base, adapters of rank 16, 8 and 8,
    # two prompts of four answers at once; 5.04 GiB on a CPU, interpreter included
    text = (ROOT / "docs/measurements.md").read_text()
    took = float(re.search(r"16 completions of 24 tokens.*?\| ([\d.]+) GiB against", text)[1])
    s = shape(h=2048, i=8192, layers=24, heads=32, kv=32, v=700)
    assert s.linear + s.rest == pytest.approx(1.61e9, rel=0.01)
    held = replace(BF16, eager=True)
    batch = Pass(prompts=2, sequences=8, prompt_tokens=17, completion_tokens=24)
    estimate = (
        memory.weights(s, held)
        + memory.trained_adapter(s, 16, held)
        + memory.trained_adapter(s, 8, held)
        + s.lora(8) * 2
        + memory.training(s, held, batch, rank=16)
        + needs.PROCESS
    )
    assert estimate / GIB == pytest.approx(took, rel=0.1)


def test_a_gpu_packs_weights_and_keeps_no_attention_scores(world):
    by = {
        gpu: {n.stage: n for n in needs.of(*world, gpu=gpu)}["align@ppo"] for gpu in (False, True)
    }
    assert by[True].parts["weights"] < 0.5 * by[False].parts["weights"]
    assert by[True].parts["batch"] < by[False].parts["batch"]


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("samplers.base.batch_tokens", "sample@base"),
        ("labelers.judge.batch_tokens", "rank@judge"),
        ("reward.batch_prompts", "reward"),
        ("policies.dpo.batch_prompts", "align@dpo"),
        ("policies.ppo.microbatch_prompts", "align@ppo"),
        ("evaluate.batch_tokens", "evaluate@dpo"),
        ("scorers.judge.batch_tokens", "score@judge"),
    ],
)
def test_the_parameter_that_is_named_is_one_that_helps(world, key, stage):
    settings, root = world
    before = {n.stage: n for n in needs.of(settings, root, gpu=False)}[stage]
    assert before.lower == key
    place = settings
    *path, last = key.split(".")
    for part in path:
        place = place[part]
    place[last] = max(1, place[last] // 4)
    after = {n.stage: n for n in needs.of(settings, root, gpu=False)}[stage]
    assert after.bytes < before.bytes


def test_where_a_classifier_is_the_reward_the_longest_prompt_counts(world):
    settings, root = world
    settings["reward"] = {"source": "classifier", "reads": "models/hate", "max_tokens": 256}

    def batch():
        return {n.stage: n for n in needs.of(settings, root, gpu=True)}["align@ppo"].parts["batch"]

    unseen = batch()
    (root / "data/prompts").mkdir(parents=True)
    for name, length in (("train", 300), ("test", 3000)):
        row = json.dumps({"id": name, "text": "a" * length, "messages": None})
        (root / f"data/prompts/{name}.jsonl").write_text(row + "\n")
    assert batch() > unseen  # 3,002 characters are 1,000 tokens at most, more than the 512 assumed
    (root / "data/prompts/test.jsonl").unlink()
    assert batch() < unseen


def test_an_unquantised_policy_is_held_beside_the_quantised_base(world):
    by = {n.stage: n for n in needs.of(*world, gpu=True)}
    more = by["evaluate@unquantised"].parts["weights"] - by["evaluate@dpo"].parts["weights"]
    assert more == pytest.approx(2 * 134.5e6, rel=0.01)


def test_a_stage_without_a_model_or_with_an_entry_that_does_not_fit_has_no_estimate(world):
    settings, root = world
    settings["samplers"]["base"].pop("batch_tokens")
    settings["policies"]["dpo"]["batch_prompts"] = "many"
    stages = {need.stage for need in needs.of(settings, root, gpu=False)}
    assert not stages & {"sample@base", "align@dpo", "align@baseline", "rank@words", "prompts"}
    assert "align@ppo" in stages
    assert needs.of(settings, root / "models", gpu=False) == []


def test_what_cannot_fit_is_refused_with_stage_sum_and_what_to_lower(world, monkeypatch):
    monkeypatch.setattr(room, "here", lambda: Room(3 * GIB, "on a small card", True))
    room.require("sample@base", *world)  # all of it fits
    monkeypatch.setattr(room, "here", lambda: Room(int(2.5 * GIB), "on a small card", True))
    with pytest.raises(RoomError) as refused:
        room.require(
            "sample@base", *world
        )  # a later stage does not, so that this one need not begin
    assert re.fullmatch(
        r"align@ppo would take about \d\.\d GiB \(weights 0\.1, adapters 0\.\d, batch \d\.\d, "
        r"process 0\.6\), and there are 2\.5 GiB on a small card; "
        r"lower policies\.ppo\.microbatch_prompts",
        str(refused.value),
    )
    room.require("evaluate@ppo", *world)  # what comes before it is done already


def test_where_the_weights_alone_do_not_fit_nothing_is_to_be_lowered():
    need = Need("align@ppo", {"weights": 30 * GIB, "batch": GIB, "process": GIB}, "policies.ppo.x")
    line = room.refusal(need, Room(24 * GIB, "on a card", True))
    assert line.endswith("take a smaller model, or a device with more memory")
    assert "policies.ppo.x" not in line


def test_a_gpu_counts_with_all_its_memory_since_stages_take_turns_on_it(monkeypatch):
    monkeypatch.setattr(room, "DEVICES", ("/dev/null",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    assert room.here() == Room(24 * GIB, "on a card", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert room.here() == Room(room.machine(), "in this machine", False)


def test_a_control_group_limits_what_a_machine_has(tmp_path, monkeypatch):
    whole = room.machine(tmp_path)
    (tmp_path / "outer/inner").mkdir(parents=True)
    (tmp_path / "outer/memory.max").write_text("1000\n")
    (tmp_path / "outer/inner/memory.max").write_text("max\n")
    monkeypatch.setattr(room, "_group", lambda: "/outer/inner")
    assert room.machine(tmp_path) == 1000 < whole


def test_a_stage_is_refused_before_it_reads_anything(world, monkeypatch, capsys):
    from stages import sample

    _, root = world
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("DVC_STAGE", "sample@base")
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(room, "here", lambda: Room(GIB, "in a small machine", False))
    monkeypatch.setattr(
        sys, "argv", ["sample", "base", "models/base", "models/base", "data/prompts", "out.jsonl"]
    )
    with pytest.raises(SystemExit):
        entry.main(sample.run, "samplers.{name}", "base", "seed")
    line = capsys.readouterr().err
    assert line.startswith("RoomError: sample@base would take about 1.7 GiB")
    assert line.count("\n") == 1


def test_the_plan_needs_no_torch_where_there_is_no_gpu(tmp_path):
    import subprocess

    code = (
        "import sys; from stages.lib.runtime import needs, room; room.DEVICES = ();"
        "room.here(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
