"""Speed of sampling, DPO and PPO beside their peers, and beside what the machine can do.

    python tests/bench_speed.py                              # make bench; after `make repro`
    python tests/bench_speed.py sampling dpo --rounds 5 --threads 2
    python tests/bench_speed.py dpo --peers bare         # beside those alone whose names begin so

Ours and the peer take turns in one process, on the same weights, prompts, pairs and adapter sizes;
what is printed is each one's median and range over the rounds, and the median of the rounds' ratios.
The peers are transformers' `generate`, TRL's DPOTrainer and TRL's RLOOTrainer, as they come but for
what a line here says.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from datasets import Dataset
from ruamel.yaml import YAML
from torch.utils.data import SequentialSampler
from transformers import DynamicCache, GenerationConfig, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, RLOOConfig, RLOOTrainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from stages.lib import models, online, reward_model, sampling  # noqa: E402
from stages.lib.algorithms.dpo import Dpo  # noqa: E402
from stages.lib.algorithms.dpo.trainer import GroupedDPOTrainer, group_logps  # noqa: E402
from stages.lib.algorithms.ppo.knobs import Ppo  # noqa: E402
from stages.lib.algorithms.ppo.loop import Training  # noqa: E402
from stages.lib.algorithms.ppo.rollouts import Reference, Roles  # noqa: E402
from stages.lib.algorithms.ppo.values import RewardValue  # noqa: E402
from stages.lib.base import Base  # noqa: E402
from stages.lib.groups import Group, collate  # noqa: E402
from stages.lib.records import Completion, Pair, Prompt  # noqa: E402
from stages.lib.runtime import files, params  # noqa: E402
from stages.lib.sampling import Decoding, Request  # noqa: E402
from stages.lib.tokens import encode, encode_prompt  # noqa: E402

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)
TOKENS = 24  # a completion, as in the default run
PEERS: tuple[str, ...] = ("",)  # all
Timed = Callable[[], float]
"""Does a piece of work and returns its rate, tokens a second."""


def base() -> Base:
    return params.load("base", Base)


def policy(name: str, kind: type):
    """An entry of `policies` of params.yaml, without its anchor, which no peer has."""
    plain = YAML(typ="safe").load(Path("params.yaml"))["policies"][name]
    return kind.model_validate(plain | {"anchor": None, "snapshots": 0})


def clock(work: Callable[[], int]) -> float:
    """Tokens that `work` says it did, a second."""
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


def compare(title: str, ours: Timed, peers: dict[str, Timed], *, rounds: int) -> None:
    """Let all take turns, each round in another order, and print what came of it."""
    wanted = {name: peer for name, peer in peers.items() if name.startswith(PEERS)}
    every = {"ours": ours, **wanted}
    seen: dict[str, list[float]] = {name: [] for name in every}
    for number in range(rounds + 1):  # the first round warms up and does not count
        names = list(every)
        for name in names if number % 2 else reversed(names):
            rate = every[name]()
            if number:
                seen[name].append(rate)
    print(f"\n{title}")
    for name, rates in seen.items():
        ratios = [mine / theirs for mine, theirs in zip(seen["ours"], rates, strict=True)]
        print(
            f"  {name:34} {statistics.median(rates):8.1f} tokens/s "
            f"[{min(rates):.1f}, {max(rates):.1f}]"
            + (f"   ours / it {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if name != "ours" else ""),
            flush=True,
        )  # fmt: skip


def machine() -> None:
    """Print what the machine does at best: matrix products and copies."""
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
        seconds = min(_seconds(lambda a=a, b=b: a @ b) for _ in range(10))
        print(f"  {dtype!s:34} {2 * 2048**3 / seconds / 1e12:8.3f} TFLOP/s in 2,048 x 2,048")
    big = torch.zeros(100_000_000)
    target = torch.zeros_like(big)
    seconds = min(_seconds(lambda: target.copy_(big)) for _ in range(5))
    print(f"  {'copy':34} {2 * 4 * 1e8 / seconds / 1e9:8.2f} GB/s read and written", flush=True)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def prompts(count: int) -> list[Prompt]:
    """The first continuation prompts of role test."""
    found = files.read_lines(Path("data/prompts/test.jsonl"), Prompt)
    return [p for p in found if p.form == "continuation"][:count]


def sampling_speed(rounds: int) -> None:
    """Completions of 24 tokens from the whole vocabulary: ours, generate at 16 and at its best."""
    lm = models.load(Path("models/base"), base())
    requests = [Request(p.id, encode_prompt(lm, p.body()), 4) for p in prompts(64)]

    def ours() -> int:
        draws = sampling.sample(
            lm, requests, ALL, max_tokens=TOKENS, seed=1, batch_tokens=8192, label=None
        )
        return sum(len(draw.ids) for draw in draws)

    settings = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=TOKENS,
        pad_token_id=lm.pad_id, eos_token_id=list(lm.eos_ids),
    )  # fmt: skip
    rows = [r.ids for r in requests for _ in range(r.samples)]

    def generate(batch: int) -> int:
        made = 0
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            width = max(map(len, some))
            ids = torch.tensor([[lm.pad_id] * (width - len(r)) + list(r) for r in some])
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in some])
            out = lm.model.generate(ids, attention_mask=mask, generation_config=settings)[:, width:]
            made += int((out != lm.pad_id).sum())
        return made

    @torch.inference_mode()
    def bare() -> int:
        """The likeliest token, fed back, with nothing around it."""
        width = max(map(len, rows))
        ids = torch.tensor([[lm.pad_id] * (width - len(r)) + list(r) for r in rows])
        cache, step = DynamicCache(config=lm.model.config), ids
        for _ in range(TOKENS):
            hidden = lm.backbone(input_ids=step, past_key_values=cache, use_cache=True)
            logits = hidden.last_hidden_state[:, -1] @ lm.unembedding_VD.T
            step = logits.argmax(-1, keepdim=True)
        return len(rows) * TOKENS

    peers = {f"generate, {n} at once": lambda n=n: clock(lambda: generate(n)) for n in (16, 64)}
    peers["bare greedy loop, all at once"] = lambda: clock(bare)
    compare("sampling", lambda: clock(ours), peers, rounds=rounds)


def groups(lm, count: int) -> list[Group]:
    """Prompts whose four completions are set against each other in all six pairs.

    Which one is chosen goes by index: stock TRL knows hard labels only, and no labels of params.
    """
    known = {p.id: p for p in files.read_lines(Path("data/prompts/train.jsonl"), Prompt)}
    answers: dict[str, list[Completion]] = {}
    for one in files.read_lines(Path("data/completions/base.jsonl"), Completion):
        if one.prompt_id in known and known[one.prompt_id].role == "align":
            answers.setdefault(one.prompt_id, []).append(one)
    found = []
    for prompt_id, own in answers.items():
        body = known[prompt_id].body()
        sequences = tuple(
            encode(lm, body, c.text, c.finish, max_tokens=256, where=c.id) for c in own
        )
        if len(set(sequences)) == 4:
            chosen, rejected = zip(*combinations(range(4), 2), strict=True)
            pair = _pair(prompt_id)
            found.append(Group(prompt_id, prompt_id, sequences, (pair,) * 6, chosen, rejected))
    return found[:count]


def _pair(prompt_id: str) -> Pair:
    """A hard label of weight 1; trainers read the sequences, not its texts."""
    return Pair.model_construct(id=prompt_id, prompt_id=prompt_id, p_chosen=1.0, weight=1.0)


def in_order(trainer):
    """Let a trainer go through its rows as they stand."""
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)
    trainer.remove_callback(PrinterCallback)
    return trainer


def dpo_speed(rounds: int) -> None:
    """Two passes over 16 prompts with six pairs each, reference included, tokens of pairs a second."""
    knobs = policy("dpo", Dpo).model_copy(update={"epochs": 2, "warmup": 0.0})
    rows = groups(models.load(Path("models/base"), base()), 16)
    work = knobs.epochs * sum(
        len(g.sequences[c]) + len(g.sequences[r])
        for g in rows for c, r in zip(g.chosen, g.rejected, strict=True)
    )  # fmt: skip
    curves: dict[str, list[float]] = {}

    def trained(name: str, make: Callable) -> float:
        torch.manual_seed(1)
        lm = models.load(Path("models/base"), base())
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            trainer = make(lm, Path(folder))
            trainer.train()
            seconds = time.perf_counter() - started
        curves[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return work / seconds

    def ours(lm, folder: Path):
        reference = group_logps(lm, rows, label="reference")
        torch.manual_seed(1)
        return in_order(GroupedDPOTrainer(lm, knobs, rows, reference, seed=1, checkpoints=folder))

    def stock(lm, folder: Path, **options):
        return in_order(Stock(lm, knobs, rows, folder, **options))

    def bare() -> float:
        """Forward and backward of the same batches, padded, all tokens once, and nothing else."""
        lm = models.load(Path("models/base"), base())
        models.add_lora(lm, rank=knobs.lora_rank, alpha=knobs.lora_alpha, seed=1)
        lm.model.train()
        started = time.perf_counter()
        for _ in range(knobs.epochs):
            for start in range(0, len(rows), knobs.batch_prompts):
                _forward_backward(lm, rows[start : start + knobs.batch_prompts])
        return work / (time.perf_counter() - started)

    compare(
        "DPO",
        lambda: trained("ours", ours),
        {
            "TRL": lambda: trained("TRL", stock),
            "TRL, reference computed before": lambda: trained(
                "TRL precomputed", lambda *a: stock(*a, precompute_ref_log_probs=True)
            ),
            "bare forward and backward, padded": bare,
        },
        rounds=rounds,
    )
    for name, curve in curves.items():
        print(f"  loss, {name:28}", " ".join(f"{loss:.3f}" for loss in curve))


class Stock(DPOTrainer):
    """TRL's trainer on token ids, so that both learn from the same tokens."""

    def __init__(self, lm, knobs: Dpo, rows: list[Group], folder: Path, **options) -> None:
        plain = [
            {
                "prompt_ids": list(g.sequences[c].prompt),
                "chosen_ids": list(g.sequences[c].completion),
                "rejected_ids": list(g.sequences[r].completion),
            }
            for g in rows for c, r in zip(g.chosen, g.rejected, strict=True)
        ]  # fmt: skip
        arguments = DPOConfig(
            output_dir=str(folder), beta=knobs.beta, learning_rate=knobs.learning_rate,
            max_grad_norm=knobs.max_grad_norm, weight_decay=0.0, warmup_steps=0, seed=1,
            num_train_epochs=knobs.epochs, per_device_train_batch_size=6 * knobs.batch_prompts,
            bf16=True, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, logging_steps=1, report_to="none",
            save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, **options,
        )  # fmt: skip
        super().__init__(
            model=lm.model, args=arguments, train_dataset=Dataset.from_list(plain),
            processing_class=lm.tokenizer,
            peft_config=models.lora_config(rank=knobs.lora_rank, alpha=knobs.lora_alpha),
        )  # fmt: skip

    def _prepare_dataset(self, dataset, *_):
        return dataset


def _forward_backward(lm, some: list[Group]) -> None:
    batch = collate(some).sequences
    width = max(map(len, batch))
    ids = torch.tensor([[*s.ids, *[lm.pad_id] * (width - len(s))] for s in batch])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in batch])
    labels = torch.tensor(
        [[-100] * len(s.prompt) + [*s.completion] + [-100] * (width - len(s)) for s in batch]
    )
    with models.training_precision(lm):
        lm.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    lm.model.zero_grad()


def ppo_speed(rounds: int) -> None:
    """A step of 48 completions of 24 tokens: rollout, scores, log-probabilities, updates."""
    knobs = policy("ppo", Ppo)
    count = knobs.batch_prompts * knobs.samples

    def open_base():
        lm = models.load(Path("models/base"), base())
        return lm, online.asks(
            lm, Path("data/prompts"), knobs.categories, learned=knobs.batch_prompts, held_out=1
        )

    lm, (learned, held_out) = open_base()
    models.add_lora(lm, rank=knobs.lora_rank, alpha=knobs.lora_alpha, seed=1)
    reward, _ = reward_model.load_both(lm, Path("models/reward"))
    with tempfile.TemporaryDirectory() as folder:
        run = Training(
            Roles(lm, Reference(lm, None), reward, None, RewardValue(reward)), knobs, learned,
            held_out, seed=1, checkpoints=Path(folder),
        )  # fmt: skip
        other = rloo(knobs, *open_base())

        def ours() -> int:
            row = run._step()
            run.progress.stopped_by = None
            return round(row["length"] * count)

        compare("PPO", lambda: clock(ours), {"RLOO of TRL": other}, rounds=rounds)


def rloo(knobs: Ppo, lm, asked) -> Timed:
    """A training by TRL's RLOO that does one step a call."""
    learned, _ = asked
    scorer: list = []

    def score(prompts, completions, **_):
        return reward_model.scores(
            scorer[0],
            [
                reward_model.Answer(p, c, "length")
                for p, c in zip(prompts, completions, strict=True)
            ],
            label=None,
        )

    with tempfile.TemporaryDirectory() as folder:
        arguments = RLOOConfig(
            output_dir=folder, learning_rate=knobs.learning_rate, beta=knobs.kl.beta, seed=1,
            per_device_train_batch_size=knobs.batch_prompts * knobs.samples, max_steps=1,
            num_generations=knobs.samples, max_completion_length=knobs.max_tokens, top_k=0,
            temperature=1.0, bf16=True, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, report_to="none",
            save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        trainer = RLOOTrainer(
            model=lm.model, reward_funcs=score, args=arguments, processing_class=lm.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [a.prompt.body() for a in learned]}),
            peft_config=models.lora_config(rank=knobs.lora_rank, alpha=knobs.lora_alpha),
        )  # fmt: skip
    clocked = Clocked()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clocked)
    own = replace(lm, model=trainer.model)
    scorer.append(reward_model.load(own, Path("models/reward"), name="reward"))

    def step() -> float:
        trainer.train()
        length = [row for row in trainer.state.log_history if "completions/mean_length" in row][-1]
        made = length["completions/mean_length"] * knobs.batch_prompts * knobs.samples
        return made / clocked.seconds

    return step


class Clocked(TrainerCallback):
    """Seconds of the last step."""

    def on_step_begin(self, *_, **__):
        self._began = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds = time.perf_counter() - self._began


PARTS = {"sampling": sampling_speed, "dpo": dpo_speed, "ppo": ppo_speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peers", nargs="+", default=[""], help="those whose names begin so; all")
    given = parser.parse_args()
    global PEERS
    PEERS = tuple(given.peers)
    if given.threads:
        torch.set_num_threads(given.threads)
    for part in given.parts or PARTS:
        machine()
        PARTS[part](given.rounds)


if __name__ == "__main__":
    main()
