"""What preference-model pretraining is worth: accuracy on people's pairs, with it and without.

    python tests/bench_pretraining.py ../shared/data FOLDER           # make repro made models/base
    python tests/bench_pretraining.py ../shared/data FOLDER --sizes 100 300 --seeds 1

A reward model is pretrained on stackexchange-small. Then reward models learn from n pairs of
hh-rlhf-harmless-base, from the base and from the pretrained one, with equal settings, and rank the
same held-out pairs, which share no first turn with those learned from. `probe` fits the head alone,
on ten draws of n pairs; `trained` is what the stage `reward` does; `head anew` goes on from the
pretrained adapter with a head that is probed again.

Each result is a file of its own in FOLDER, and one that is there is not made again: calls with
`--start base` and `--start pretrained` share the work between two cores, a third one prints the
table and writes table.json. About two hours on one core, a third of it for n = 1000. Intervals
resample first turns.
"""

import argparse
import gzip
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from stages.lib import models, order, pretraining, reward_trainer
from stages.lib.base import Base
from stages.lib.groups import Group, collate, group
from stages.lib.pretraining import Pretrain
from stages.lib.records import Message, Pair
from stages.lib.reward_model import Head, last_states_of, read_head
from stages.lib.reward_training import Trained
from stages.lib.runtime import files, params
from stages.lib.statistics import bootstrap_mean
from stages.lib.tokens import TooLong

PRETRAIN = Pretrain(
    reads="stackexchange-small", hub=None, max_tokens=224, question_tokens=128, too_long="cut", max_answers=3,
    min_difference=1, held_out=0.2, probe_l2=3e-3, lora_rank=8, lora_alpha=16, learning_rate=1e-3, warmup=0.1,
    epochs=1, batch_prompts=8, max_grad_norm=1.0, resamples=2000, bins=10,
)  # fmt: skip
REWARD = Trained(
    source="trained", reads="models/base", starts_from="models/base", roles=["reward"], probe_l2=3e-3,
    lora_rank=8, lora_alpha=16, learning_rate=5e-4, warmup=0.1, epochs=1, batch_prompts=4, max_grad_norm=1.0,
    max_tokens=256, normaliser_completions=2, resamples=2000, bins=10,
)  # fmt: skip
HELD_OUT = 0.36
DRAWS = 10
ARMS = {"base": ["probe", "trained"], "pretrained": ["probe", "trained", "head anew"]}


def transcripts(file: Path, left_out: Counter[str]) -> list[Pair]:
    """Read pairs of transcripts that differ in their last turn; count the others."""
    pairs = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows, start=1):
        (*before, chosen), (*other, rejected) = (
            turns(row[side]) for side in ("chosen", "rejected")
        )
        if before != other or chosen[0] != "assistant" or not all(text for _, text in before):
            left_out["pairs that differ before the last turn, or have an empty one"] += 1
        elif not chosen[1] or not rejected[1] or chosen == rejected:
            left_out["pairs with an empty answer, or twice the same"] += 1
        else:
            pairs.append(one_pair(number, before, chosen[1], rejected[1]))
    return pairs


def turns(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [(roles[a], b.strip()) for a, b in zip(parts[::2], parts[1::2], strict=True)]


def one_pair(number: int, before: list[tuple[str, str]], chosen: str, rejected: str) -> Pair:
    first = " ".join(before[0][1].casefold().split())
    return Pair(
        id=f"hh{number}", prompt_id=f"prompt{number}", cluster=order.by_hash(first)[:16],
        role="test" if order.place(first) < HELD_OUT else "reward", category="hh", criterion="harmless",
        prompt=[Message(role=role, content=text) for role, text in before],
        chosen_id=f"{number}a", rejected_id=f"{number}b", chosen=chosen, rejected=rejected,
        chosen_finish="stop", rejected_finish="stop", p_chosen=1.0, weight=1.0, margin=1.0, votes=1,
        labelers=["crowd"], junk=False,
    )  # fmt: skip


def grouped(lm, pairs: list[Pair], left_out: Counter[str]) -> list[Group]:
    """Encode each pair; those that do not fit are counted."""
    found = []
    for pair in pairs:
        try:
            found += group(lm, [pair], max_tokens=REWARD.max_tokens)
        except TooLong:
            left_out[f"pairs over {REWARD.max_tokens} tokens"] += 1
    return found


def drawn(groups: list[Group], n: int, seed: int) -> list[Group]:
    """The first n by a hash of its own for each seed: smaller draws lie in larger ones."""
    return sorted(groups, key=lambda g: order.by_hash(f"{seed}:{g.prompt_id}"))[:n]


class Bench:
    """One start, base or pretrained: its data, and the results in its folder."""

    def __init__(self, given: argparse.Namespace, start: str) -> None:
        self.given, self.start, self.left_out = given, start, Counter()
        self.base = params.load("base", Base, Path(__file__).parent.parent / "params.yaml")
        self.pretrained = given.folder / "pretrained"
        pairs = transcripts(given.data / "hh-rlhf-harmless-base/test.jsonl.gz", self.left_out)
        groups = grouped(self.load(), pairs, self.left_out)
        self.pool = [g for g in groups if g.pairs[0].role == "reward"]
        self.held_out = [g for g in groups if g.pairs[0].role == "test"]

    def load(self):
        return models.load(self.given.base, self.base)

    def pretrain(self) -> None:
        """Make the model that everything else of this start goes on from."""
        if not (self.pretrained / "report.json").is_file():
            started = time.time()
            self.pretrained.mkdir(parents=True, exist_ok=True)
            place = (
                self.given.data / "stackexchange-small",
                self.pretrained,
                self.pretrained / "curves.csv",
            )
            report = pretraining.train(
                PRETRAIN, pretraining.Task(self.base, 1, self.given.base, *place)
            )
            files.write_json(
                self.pretrained / "report.json", report | {"seconds": time.time() - started}
            )

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Last states of pool and held-out pairs, chosen before rejected, by the start's adapter."""
        file = self.given.folder / f"states-{self.start}.pt"
        if not file.is_file():
            lm = self.load()
            if self.start == "pretrained":
                models.continue_adapter(lm, self.pretrained)
            both = [collate(some).sequences for some in (self.pool, self.held_out)]
            torch.save([last_states_of(lm, some, label=self.start) for some in both], file)
        return tuple(torch.load(file))

    def probes(self) -> None:
        """Fit the head alone to each draw; and the pretrained head as it is, n = 0."""
        pool_BD, held_out_BD = self.states()
        place = {g.prompt_id: i for i, g in enumerate(self.pool)}
        if self.start == "pretrained":
            head = read_head(self.pretrained)
            self.keep("probe", 0, 0, held_out_BD @ head.weight[0].detach() / head.scale)
        scale = Head(pool_BD.shape[1], seed=0).scale
        for n in self.given.sizes:
            for seed in range(1, DRAWS + 1):
                some = drawn(self.pool, n, seed)
                rows = [2 * place[g.prompt_id] + side for g in some for side in (0, 1)]
                direction_D = reward_trainer.best_direction(
                    pool_BD[rows] / scale, collate(some), l2=REWARD.probe_l2
                )
                self.keep("probe", n, seed, held_out_BD @ direction_D / scale)

    def trained(self, arm: str, n: int, seed: int) -> None:
        """Train as the stage does, and score the held-out pairs."""
        if self.file(arm, n, seed).is_file():
            return
        lm, some, started = self.load(), drawn(self.pool, n, seed), time.time()
        if self.start == "base":
            head = reward_trainer.new_head(lm, REWARD, some, seed=seed)
        else:
            head = reward_trainer.pretrained_head(lm, REWARD, self.pretrained)
            if arm == "head anew":
                reward_trainer.probe(lm, head, some, l2=REWARD.probe_l2)
        checkpoints = self.given.folder / "checkpoints" / self.file(arm, n, seed).stem
        reward_trainer.fit_scorer(lm, head, REWARD, some, seed=seed, checkpoints=checkpoints)
        states_BD = last_states_of(lm, collate(self.held_out).sequences, label=arm)
        self.keep(arm, n, seed, head(states_BD))
        print(f"{self.start} {arm} n={n} seed={seed}: {time.time() - started:.0f} s", flush=True)

    def file(self, arm: str, n: int, seed: int) -> Path:
        return self.given.folder / f"margins-{self.start}-{arm.replace(' ', '_')}-{n}-{seed}.json"

    def keep(self, arm: str, n: int, seed: int, scores_B: torch.Tensor) -> None:
        files.write_json(self.file(arm, n, seed), (scores_B[::2] - scores_B[1::2]).tolist())

    def run(self) -> None:
        """Make whatever is not there yet, cheapest first."""
        if self.start == "pretrained":
            self.pretrain()
        self.probes()
        for n in self.given.sizes:
            for seed in self.given.seeds:
                for arm in ARMS[self.start][1:]:
                    self.trained(arm, n, seed)

    def right(self, arm: str, n: int) -> np.ndarray | None:
        """For each held-out pair the share of runs that rank it rightly, ties half."""
        seeds = range(1, DRAWS + 1) if arm == "probe" else self.given.seeds
        found = [self.file(arm, n, seed) for seed in (seeds if n else [0])]
        if not all(file.is_file() for file in found):
            return None
        margins = np.array([files.read_json(file) for file in found])
        return ((margins > 0) + 0.5 * (margins == 0)).mean(0)


def table(base: Bench, pretrained: Bench) -> dict:
    """Accuracies with intervals, and paired differences to the base's arm of the same kind."""
    clusters = [g.cluster for g in base.held_out]
    draws = {"resamples": REWARD.resamples, "seed": 1}
    lengths = [len(g.pairs[0].chosen) - len(g.pairs[0].rejected) for g in base.held_out]
    shorter = [(x < 0) + 0.5 * (x == 0) for x in lengths]
    rows = [{"arm": "shorter answer", **bootstrap_mean(shorter, clusters, **draws).plain()}]
    for n in [0, *base.given.sizes]:
        for side in (base, pretrained):
            for arm in ARMS[side.start]:
                right = side.right(arm, n)
                if right is None:
                    continue
                row = {"arm": f"{side.start}, {arm}", "train_pairs": n}
                row |= bootstrap_mean(right, clusters, **draws).plain()
                other = base.right("probe" if arm == "probe" else "trained", n)
                if side is pretrained and other is not None:
                    row["gain"] = bootstrap_mean(right - other, clusters, **draws).plain()
                rows.append(row)
    sizes = {"pool": len(base.pool), "held_out": len(base.held_out), "left_out": base.left_out}
    return {"sizes": sizes, "rows": rows}


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--start", choices=list(ARMS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    both = {start: Bench(given, start) for start in ARMS}
    for start in [given.start] if given.start else ARMS:
        both[start].run()
    if given.start is None:
        found = table(**both)
        files.write_json(given.folder / "table.json", found)
        print(json.dumps(found["sizes"]))
        for row in found["rows"]:
            gain = f"  gain {shown(row['gain'], '+.3f')}" if "gain" in row else ""
            print(f"{row['arm']:<24} {row.get('train_pairs', ''):>5}  {shown(row, '.3f')}{gain}")


def shown(estimate: dict, form: str) -> str:
    """An estimate with its interval."""
    value, low, high = (format(estimate[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
