"""A small world of prompts, completions and labels, on which the stage `pairs` is run."""

import json

import pytest

from stages import pairs as stage
from stages.lib.labels.flags import Quality
from stages.lib.records import Demonstration, Pair, Signal
from stages.lib.runtime import files
from stages.lib.split import Shares, Split

LABELERS = {name: {"kind": "lexicon"} for name in ("ann", "bob", "eve")}
SAMPLERS = {"base": {"model": "models/base"}}
UNASKED = {
    "min_skill": None,
    "min_self_consistency": None,
    "min_gold": None,
    "max_position_follow": None,
    "max_tie_rate": None,
    "min_prompts": 1,
    "leave_out": False,
}
SPLIT = Split(
    near_duplicate=0.6,
    salt="1",
    shares=Shares(sft=0.0, reward=0.2, monitor=0.2, align=0.2, validation=0.2, test=0.2),
)
ROLES = ["reward", "monitor", "align", "validation", "test"]


def settings(**changed):
    given = {
        "criteria": {"harmless": 1.0},
        "combine": "apart",
        "labelers": [],
        "sources": [],
        "revisions": [],
        "quality": UNASKED,
        "consensus": "soft",
        "ties": "drop",
        "min_p_chosen": 0.5,
        "skill_prior": [4.0, 2.0],
        "junk_pairs": True,
        "mixed_samplers": False,
        "max_rejected": 0.05,
        "elo_resamples": 20,
        "agreement_resamples": 20,
    }
    given |= changed
    given["quality"] = Quality(**(UNASKED | given["quality"]))
    return stage.Pairs(**given)


def prompt(number, role):
    return {
        "id": f"p{number}",
        "form": "continuation",
        "category": "insult",
        "source": "test",
        "text": f"beginning {number}",
        "messages": None,
        "role": role,
        "cluster": f"p{number}",
    }


def completion(number, index, sampler="base"):
    return {
        "id": f"p{number}#{index}",
        "prompt_id": f"p{number}",
        "sampler": sampler,
        "index": index,
        "text": f"answer {index}",
        "finish": "stop",
        "tokens": 3,
        "logp": -1.0,
    }


def ranking(labeler, number, ranks, junk=(), **more):
    given = {
        "schema_version": 1,
        "kind": "ranking",
        "criterion": "harmless",
        "prompt_id": f"p{number}",
        "labeler": labeler,
        "shown": [f"p{number}#{k}" for k in [*ranks, *junk]],
        "ranks": {f"p{number}#{k}": rank for k, rank in ranks.items()},
        "junk": {f"p{number}#{k}": "garbled" for k in junk},
        "revision": 1,
    }
    return given | more


def by_people(kind, labeler, number, **more):
    """A line of data/rankings/people.jsonl that is no ranking."""
    given = {
        "schema_version": 1,
        "kind": kind,
        "criterion": "harmless",
        "prompt_id": f"p{number}",
        "labeler": labeler,
        "revision": 1,
    }
    return given | more


def thumb(labeler, number, index, up, **more):
    return by_people("thumbs", labeler, number, completion_id=f"p{number}#{index}", up=up, **more)


def written(labeler, number, answer, **more):
    return by_people("demonstration", labeler, number, answer=answer, **more)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class World:
    """A folder with ten prompts, two in each role, three completions each, and three labelers."""

    def __init__(self, root):
        self.root = root
        self.out, self.metrics = root / "pairs", root / "labels.json"
        by_split = {"train": [], "validation": [], "test": []}
        for k in range(10):
            role = ROLES[k % 5]
            split = role if role in by_split else "train"
            by_split[split].append(prompt(k, role))
        for split, rows in by_split.items():
            files.write_lines(root / "prompts" / f"{split}.jsonl", rows)
        self.write("completions/base", [completion(k, c) for k in range(10) for c in range(3)])
        for name in LABELERS:
            # ann and bob agree; eve exchanges the last two, so on p#1:p#2 the vote is 2 to 1
            ranks = {0: 1, 1: 3, 2: 2} if name == "eve" else {0: 1, 1: 2, 2: 3}
            self.write(f"rankings/{name}", [ranking(name, k, ranks) for k in range(10)])

    def write(self, name, rows):
        files.write_lines(self.root / f"{name}.jsonl", rows)

    def change(self, name, line, **fields):
        rows = read(self.root / f"{name}.jsonl")
        rows[line - 1] |= fields
        self.write(name, rows)

    def run(self, labelers=None, samplers=None, seed=1, only=(), **changed):
        return stage.run(
            settings(labelers=list(only), **changed),
            LABELERS if labelers is None else labelers,
            SAMPLERS if samplers is None else samplers,
            SPLIT,
            seed,
            rankings=self.root / "rankings",
            completions=self.root / "completions",
            prompts=self.root / "prompts",
            preferences=self.root / "preferences",
            revisions=self.root / "revisions",
            out=self.out,
            metrics=self.metrics,
        )

    def refusal(self, error, **given):
        with pytest.raises(error) as refusal:
            self.run(**given)
        assert not self.out.exists()
        assert not self.metrics.exists()
        message = str(refusal.value)
        assert "\n" not in message
        return message.replace(f"{self.root}/", "")

    def pairs(self, split):
        return files.read_lines(self.out / f"{split}.jsonl", Pair)

    def signals(self):
        return files.read_lines(self.out / "signals.jsonl", Signal)

    def demonstrations(self):
        return files.read_lines(self.out / "demonstrations.jsonl", Demonstration)

    def report(self):
        return files.read_json(self.metrics)

    def quality(self, criterion="harmless"):
        return self.report()["criteria"][criterion]


def outcome(world):
    written = {path.name: path.read_bytes() for path in sorted(world.out.iterdir())}
    return written | {"metrics": world.metrics.read_bytes()}
