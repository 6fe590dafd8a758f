"""Are the gradients of packed 4-bit weights whole, before and after a generate in eval mode?

    a packed   NF4 packed in 4 bits, bfloat16 arithmetic            base.weights: packed
    b rounded  the same values held in bfloat16                     base.weights: rounded
    c float32  the NF4 values in float32, float32 arithmetic        base.weights: rounded, dtype: float32
    d same32   the weights of b in float32, float32 arithmetic      what a and b approximate
    t trap     b, with no gradient through the frozen base          what bitsandbytes' repacking leaves

All have the same LoRA (rank 16, A and B of the same random numbers, B not 0) and the same batch of eight
sequences. Gradients are taken in train mode under models.training_precision.

    python tests/bench_gradients.py [folder]        without a GPU, a is packed on the CPU
"""

import gc
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, ".")
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

from stages.lib import likelihood, models, sampling, tokens
from stages.lib.base import Base
from stages.lib.records import Message

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "models/base")
GPU = torch.cuda.is_available()
ROUNDS = 10 if GPU else 0  # of timing
PAIRS = [
    (
        "The old man at the bus stop looked at me and said",
        (
            " that the bus would be late again, as it was every day of that winter.",
            " you are a fool to wait here in the rain, so go home.",
        ),
    ),
    (
        "Nobody in the village liked the new teacher, because",
        (
            " she gave them more work than the last one did.",
            " he was rude, loud and always late, and he smelled of cheap wine on most mornings.",
        ),
    ),
    (
        [Message(role="user", content="Give me two tips for a good night's sleep.")],
        (
            "1. Go to bed at the same time each day.\n\n2. Keep the room dark and cool.",
            "Sleep is for the weak, and so are you.",
        ),
    ),
    (
        [Message(role="user", content="What is 12 times 11?")],
        ("12 times 11 is 132.", "I do not know, and I do not care. Ask a calculator."),
    ),
]


def load(weights: str, dtype: str) -> models.LanguageModel:
    base = Base(quantisation="nf4", weights=weights, dtype=dtype)
    if weights != "packed" or GPU:
        return models.load(FOLDER, base)
    kind = getattr(torch, dtype)  # models.load refuses this without a GPU
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=kind, quantization_config=models._nf4_config(kind), local_files_only=True
    )
    return models._with_tokenizer(model.eval().requires_grad_(False), FOLDER)


def linears(lm: models.LanguageModel) -> dict[str, torch.Tensor]:
    """The frozen weights of every linear layer but the output, on the CPU, unpacked."""
    skip = lm.model.get_output_embeddings()
    found = {}
    for name, module in lm.model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not skip:
            weight = module.weight.data
            if isinstance(module, Linear4bit):
                weight = functional.dequantize_4bit(weight, module.weight.quant_state)
            found[name] = weight.cpu()
    return found


def adapt(lm: models.LanguageModel) -> models.LanguageModel:
    """Attach the project's adapter, and fill it with numbers that no device decides."""
    models.add_lora(lm, rank=16, alpha=32, seed=1)
    generator = torch.Generator().manual_seed(7)
    for name, one in sorted(lm.model.named_parameters()):
        if one.requires_grad:
            scale = (
                0.01 if "lora_B" in name else (3 * one.shape[1]) ** -0.5
            )  # B after some training; A as peft's
            one.data.copy_(torch.randn(one.shape, generator=generator) * scale)
    return lm


def batch(lm: models.LanguageModel) -> list[tokens.TokenSequence]:
    return [
        tokens.encode(lm, prompt, text, "stop", max_tokens=256, where="batch")
        for prompt, texts in PAIRS
        for text in texts
    ]


def gradient(lm: models.LanguageModel) -> tuple[float, dict[str, torch.Tensor]]:
    lm.model.train()
    lm.model.zero_grad(set_to_none=True)
    with models.training_precision(lm):
        loss = -likelihood.sequence_logps(lm, batch(lm)).mean()
    loss.backward()
    found = {n: p.grad.double().cpu() for n, p in lm.model.named_parameters() if p.requires_grad}
    return loss.item(), found


def step_ms(lm: models.LanguageModel) -> float:
    times = []
    for _ in range(ROUNDS + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        lm.model.zero_grad(set_to_none=True)
        with models.training_precision(lm):
            loss = -likelihood.sequence_logps(lm, batch(lm)).mean()
        loss.backward()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[2:])


@torch.no_grad()
def answer(lm: models.LanguageModel) -> str:
    """Generate in eval mode without gradient, one row (another kernel) and several, by both ways there are."""
    lm.model.eval()
    count = 12 if GPU else 3
    with models.training_precision(lm):  # as PPO samples: the adapter is float32
        for rows in (1, 8):
            ids = torch.tensor([tokens.encode_prompt(lm, PAIRS[0][0])] * rows, device=lm.device)
            out = lm.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=lm.pad_id,
            )
        request = sampling.Request("0", tokens.encode_prompt(lm, PAIRS[2][0]), 4)
        decoding = sampling.Decoding(temperature=1.0, top_k=0, top_p=1.0)
        sampling.sample(
            lm, [request], decoding, max_tokens=count, seed=1, batch_tokens=4096, label=None
        )
    return lm.tokenizer.decode(out[0, ids.shape[1] :])


def flat(one: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([one[name].flatten() for name in sorted(one)])


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return ((flat(one) - flat(other)).norm() / flat(other).norm()).item()


def worst(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, str]:
    gaps = {n: ((one[n] - other[n]).norm() / other[n].norm()).item() for n in one}
    name = max(gaps, key=gaps.__getitem__)
    return gaps[name], name.removeprefix("base_model.model.model.").removesuffix(".default.weight")


def free() -> None:
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


results: dict[str, tuple[float, dict[str, torch.Tensor]]] = {}
held: dict[str, float] = {}
speed: dict[str, float] = {}
weights: dict[str, dict[str, torch.Tensor]] = {}
facts: list[str] = []


def take(key: str, lm: models.LanguageModel) -> None:
    if GPU:
        held[key] = torch.cuda.memory_allocated() / 2**20
    results[key] = gradient(adapt(lm))


print("gpu", torch.cuda.get_device_name() if GPU else "none", "torch", torch.__version__)

lm = load("packed", "bfloat16")
weights["a"] = linears(lm)
kinds = {type(m).__name__ for m in lm.model.modules() if isinstance(m, torch.nn.Linear)}
facts.append(f"a: linear layers {sorted(kinds)}, {len(weights['a'])} of them compared")
take("a before", lm)
facts.append(
    f"batch: {len(batch(lm))} sequences, {sum(map(len, batch(lm)))} tokens; "
    f"{flat(results['a before'][1]).numel():,} numbers in the gradient"
)
results["a again"] = gradient(lm)  # what two equal runs differ by
facts.append(f"a answers: {answer(lm)!r}")
results["a after"] = gradient(lm)
if GPU:
    speed["a before"] = step_ms(lm)
del lm
free()

lm = load("rounded", "bfloat16")
weights["b"] = linears(lm)
take("b", lm)
facts.append(f"b answers: {answer(lm)!r}")
results["b after"] = gradient(lm)
if GPU:
    speed["b"] = step_ms(lm)
hooks = [
    m.register_forward_hook(lambda _m, _i, out: out.detach())
    for n, m in lm.model.named_modules()
    if n.endswith(".base_layer")
]
results["t trap"] = gradient(lm)
for hook in hooks:
    hook.remove()
lm.model.float()  # d: the very weights of b and its adapter
results["d same32"] = gradient(lm)
del lm
free()

lm = load("rounded", "float32")
weights["c"] = linears(lm)
take("c float32", lm)
if GPU:
    speed["c float32"] = step_ms(lm)
del lm
free()

c, d = results["c float32"][1], results["d same32"][1]
print("\n".join(facts))
print(
    f"{'':10} {'loss':>10} {'|g|':>10} {'to c':>8} {'to d':>8} {'worst tensor to d':>44} {'MiB':>6} {'ms/step':>8}"
)
table = {}
for key, (loss, found) in results.items():
    gap, name = worst(found, d)
    table[key] = {
        "loss": loss,
        "norm": flat(found).norm().item(),
        "to_c": apart(found, c),
        "to_d": apart(found, d),
        "worst": gap,
        "worst_name": name,
        "mib": held.get(key),
        "ms": speed.get(key),
    }
    row = table[key]
    print(
        f"{key:10} {loss:10.4f} {row['norm']:10.4f} {row['to_c']:8.5f} {row['to_d']:8.5f} {gap:10.5f} {name:>33} "
        f"{held.get(key, float('nan')):6.0f} {speed.get(key, float('nan')):8.1f}"
    )

same = max(
    (weights["a"][n].float() - weights["b"][n].float()).abs().max().item() for n in weights["b"]
)
rounding = max(
    ((weights["b"][n].float() - weights["c"][n]).norm() / weights["c"][n].norm()).item()
    for n in weights["c"]
)
repeat = apart(results["a again"][1], results["a before"][1])
after = apart(results["a after"][1], results["a before"][1])
print(
    f"weights: a and b differ by {same:.3g} at most; b from c by {rounding:.2g} of their norm (bfloat16)"
)
print(f"a, run twice: {repeat:.2e} apart; before and after answering: {after:.2e}")
row, b = table["a before"], table["b"]
checks = {
    "weights of a and b are equal to the last bit": weights["a"].keys() == weights["b"].keys()
    and same == 0,
    "b is c within bfloat16's rounding of the weights": rounding < 2**-8,
    "a before: gradient is finite and not 0": 0 < row["norm"] < float("inf"),
    "a before: as near c as b is (1.5 times, or 0.005 more)": row["to_c"]
    <= max(1.5 * b["to_c"], b["to_c"] + 0.005),
    "a before: as near d as b is (1.5 times, or 0.005 more)": row["to_d"]
    <= max(1.5 * b["to_d"], b["to_d"] + 0.005),
    "a before: norm within 3 % of c's": abs(row["norm"] / table["c float32"]["norm"] - 1) < 0.03,
    "a after: loss as before (1e-5 of it)": abs(table["a after"]["loss"] / row["loss"] - 1) < 1e-5,
    "a after: gradient as before (1e-3, or 3 times what two runs differ by)": after
    <= max(1e-3, 3 * repeat),
    "a after: as near d as before (1.1 times)": table["a after"]["to_d"] <= 1.1 * row["to_d"],
    "the trap would have been seen (over 5 times as far)": table["t trap"]["to_d"]
    > 5 * max(row["to_d"], table["a after"]["to_d"]),
}
for text, good in checks.items():
    print("PASS" if good else "FAIL", text)
print("PASS gradients" if all(checks.values()) else "FAIL gradients")
sys.exit(not all(checks.values()))
