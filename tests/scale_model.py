"""What the graph costs as it grows: tokens, bytes and seconds of each stage, from 10^3 to 10^7 prompts.

    python tests/scale_model.py            # the tables of docs/scale.md

Of the default settings: four completions of 24 tokens to a prompt of 12, two word lists as labelers,
DPO for two passes. What a row takes is measured; what a device does is measured on two cores at 135 M
parameters, and assumed everywhere else.

Shape of a formula: P prompts, N parameters, 2 N floating-point operations a token forward, and with
a frozen base another 2 N backward, since weights have no gradient: 4 N of a training's 6 N.
"""

from dataclasses import dataclass

PROMPT, COMPLETION, EACH = 12, 24, 4
"""Tokens of a prompt and of a completion, and completions a prompt."""
LEARNED = {"reward": 0.47 + 0.20, "align@dpo": 0.37}
"""Share of prompts that is learned from: roles reward and align, and monitor; align."""
PASSES = 2
BYTES = {"prompt": 235, "completion": 246, "ranking": 690, "pair": 746}
"""A line of each file of tests/bench_scale.py."""
LABELERS, PAIRS_KEPT = 2, 0.875
"""Word lists; and of six pairs of four completions, the share that is written."""
CORE_SECONDS = {"rank": 48e-6, "pairs": 250e-6}
"""Of a core, a completion; rank of one word list."""


@dataclass(frozen=True)
class Device:
    """How many floating-point operations a second come out, sampling and training."""

    name: str
    sampling: float
    training: float


CORES = Device("two cores", 0.21e12, 0.12e12)
"""780 tokens/s of sampling, 250 of training the reward model, at 135 M parameters."""
GPU = Device("one GPU", 0.05 * 989e12, 0.30 * 989e12)
"""Assumed: 5 % of an H100's dense bfloat16 when sampling, which waits for memory, 30 % in training."""
SIZES = {"135 M": 135e6, "1.7 B": 1.7e9, "8 B": 8e9}
PROMPTS = [10**n for n in range(3, 8)]


def tokens(stage: str, prompts: int) -> float:
    """Return the tokens that go through the model; a prompt is read once for its completions."""
    read = PROMPT + EACH * COMPLETION
    return prompts * read * (LEARNED[stage] * PASSES if stage in LEARNED else 1)


def operations(stage: str, prompts: int, parameters: float) -> float:
    """Return floating-point operations: DPO has a reference beside the policy, forward alone."""
    a_token = {"sample": 2, "reward": 4, "align@dpo": 4 + 2}[stage]
    return a_token * parameters * tokens(stage, prompts)


def seconds(stage: str, prompts: int, parameters: float, device: Device) -> float:
    """Return wall-clock seconds; stages without a model take one core on any device."""
    if stage in CORE_SECONDS:
        return CORE_SECONDS[stage] * EACH * prompts * (LABELERS if stage == "rank" else 1)
    rate = device.sampling if stage == "sample" else device.training
    return operations(stage, prompts, parameters) / rate


def disk(prompts: int) -> float:
    """Return the bytes of prompts, completions, rankings and pairs."""
    pairs = EACH * (EACH - 1) / 2 * PAIRS_KEPT
    a_prompt = BYTES["prompt"] + EACH * BYTES["completion"] + LABELERS * BYTES["ranking"]
    return prompts * (a_prompt + pairs * BYTES["pair"])


def kv_bytes(layers: int, heads: int, width: int) -> int:
    """Return bytes of keys and values a token in 16 bits: 2 x layers x KV heads x head width x 2."""
    return 2 * layers * heads * width * 2


def span(value: float) -> str:
    """`40 s`, `3 min`, `2 h`, `5 d` or `3 y`."""
    for unit, size in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 1.5 * size:
            return f"{value / size:,.0f} {unit}"
    return f"{value:,.0f} s" if value >= 1 else "< 1 s"


def table() -> str:
    """Return the table of seconds, a row for each stage, device and size."""
    head = ["stage", "where", *(f"10^{len(str(p)) - 1}" for p in PROMPTS)]
    rows = [["bytes on disk", "", *(f"{disk(p) / 1e9:,.2g} GB" for p in PROMPTS)]]
    rows += [
        [s, "one core", *(span(seconds(s, p, 0, CORES)) for p in PROMPTS)] for s in CORE_SECONDS
    ]
    rows += [
        [stage, f"{size}, {device.name}", *(span(seconds(stage, p, n, device)) for p in PROMPTS)]
        for stage in ("sample", *LEARNED)
        for size, n in SIZES.items()
        for device in (CORES, GPU)
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
