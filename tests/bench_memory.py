"""Peak memory of one PPO step: four roles on one base against four models loaded apart.

    python tests/bench_memory.py            # make bench; a random model of SmolLM2-1.7B's shape
    python tests/bench_memory.py --layers 32 --hidden 4096 --intermediate 11008 --heads 32   # 7 B

Both forms run the same code on the same prompts, each in a process of its own: policy, reference,
reward model and value function with an adapter each, NF4 (packed where there is a GPU). What is
measured is the peak during the second step: what torch allocated on the GPU, or the anonymous memory
of the process, which leaves out the pages of weight files that the system may drop. Weights are
random, so what it says means nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from test_ppo import P, but
from tiny_model import tokenizer
from tiny_online import asks, write_head

from stages.lib import models, reward_model
from stages.lib.algorithms.ppo.loop import Training
from stages.lib.algorithms.ppo.rollouts import Reference, Roles
from stages.lib.algorithms.ppo.values import AdapterValue
from stages.lib.base import Base

BASE = Base(quantisation="nf4", weights="auto", dtype="bfloat16")
TEXTS = [f"Letter {n}, which an old sailor wrote to the friends he had left" for n in range(8)]
KNOBS = but(
    P, batch_prompts=4, samples=4, minibatch_prompts=4, microbatch_prompts=2, epochs=1, max_tokens=24,
    lora_rank=16, lora_alpha=32, learning_rate=1e-4, value__kind="adapter", value__learning_rate=1e-4,
    look__prompts=2, look__samples=1,
)  # fmt: skip


def build(folder: Path, size: argparse.Namespace) -> int:
    """Write a random model in the shape of Llama, and a reward model for it; return its parameters."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads,
        tie_word_embeddings=True, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    count = sum(p.numel() for p in model.parameters())
    del model
    lm = models.load(folder / "base", BASE)
    models.add_lora(lm, rank=8, alpha=16, seed=0)
    models.save_adapter(lm, folder / "reward")
    write_head(folder / "reward", size.hidden, max_tokens=256)
    return count


def roles(folder: Path, form: str) -> Roles:
    """Load one model for all, or one for each."""

    def load():
        return models.load(folder / "base", BASE)

    policy = load()
    other = {key: policy if form == "one" else load() for key in ("reference", "reward", "value")}
    models.add_lora(policy, rank=16, alpha=32, seed=0)
    reward = reward_model.load(other["reward"], folder / "reward", name="reward")
    if form == "four":  # peft needs a first adapter before it takes a second
        reward_model.load(other["value"], folder / "reward", name="first")
    value = AdapterValue(other["value"], folder / "reward", reward)
    return Roles(policy, Reference(other["reference"], None), reward, None, value)


def measure(folder: Path, form: str) -> None:
    """Run two steps; print the peak of the second as JSON."""
    who = roles(folder, form)
    given = asks(who.lm, TEXTS)
    with tempfile.TemporaryDirectory() as checkpoints:
        run = Training(who, KNOBS, given, given, seed=0, checkpoints=Path(checkpoints))
        run._step()
        started = time.perf_counter()
        with Peak() as peak:
            run._step()
    print(json.dumps({"gib": peak.bytes / 2**30, "seconds": time.perf_counter() - started}))


class Peak:
    """The most memory that was in use at once while it was open."""

    bytes = 0

    def __enter__(self) -> "Peak":
        self._over = threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            status = Path("/proc/self/status").read_text()
            (line,) = (x for x in status.splitlines() if x.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)


def main() -> None:
    """Measure both forms and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--intermediate", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "FORM"))
    given = parser.parse_args()
    if given.measure:
        measure(Path(given.measure[0]), given.measure[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        count = build(Path(scratch), given)
        found = {}
        for form in ("one", "four"):
            command = [sys.executable, __file__, "--measure", scratch, form]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[form] = json.loads(done.stdout.splitlines()[-1])
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, interpreter included"
    )
    print(f"PPO step, {count / 1e9:.2f} B parameters, NF4, 16 completions of 24 tokens; {where}")
    for form, one in found.items():
        print(
            f"{form:>5} base{'s' * (form == 'four')}  {one['gib']:6.2f} GiB  {one['seconds']:6.1f} s"
        )
    print(f"ratio        {found['one']['gib'] / found['four']['gib']:.2f}")


if __name__ == "__main__":
    main()
