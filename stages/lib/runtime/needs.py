"""What each stage of params.yaml takes at its peak, by the formulas of `memory`.

Reads plain params and the config.json of models that `fetch` brought; docs/scale-up.md says how
near the sums are to what was measured.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.lib.runtime import files, memory
from stages.lib.runtime.memory import Held, Pass, Shape

PROCESS = 1.1 * 2**30
"""Bytes of interpreter, libraries and what the C library does not give back, on a CPU."""
CONTEXT = 0.6 * 2**30
"""Bytes of CUDA's own context on a GPU, beside what torch counts: a round figure, not measured."""
PASSAGE = 140
"""Tokens of a passage of neutral text."""
CHARACTERS = 3
"""A token, at least: English has near four."""
UNSEEN = 512
"""Tokens of a prompt where nothing limits them and stage `prompts` has not run."""
READ_AT_ONCE = 4096
"""Tokens of a batch where params.yaml has no say, such as a reference's log-probabilities."""
SECTIONS = {
    "provoke": "provokers",
    "sample": "samplers",
    "revise": "revisers",
    "rank": "labelers",
    "pretrain": "pretrain",
    "reward": "reward",
    "grade": "graders",
    "align": "policies",
    "evaluate": "policies",
    "score": "scorers",
}
"""Stages that may hold a model, in an order in which they run, and the section that each is in."""
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Need:
    """What one stage takes at its peak."""

    stage: str
    parts: Mapping[str, float]
    """Bytes of weights, adapters, batch and process."""
    lower: str
    """The parameter to lower where all of it is too much."""

    @property
    def bytes(self) -> float:
        """All of it."""
        return math.fsum(self.parts.values())


@dataclass(frozen=True, slots=True)
class World:
    """A params.yaml, the folder around it, and how models are held there."""

    settings: Entry
    root: Path
    gpu: bool

    @property
    def held(self) -> Held:
        """How models are held; on a CPU no weights are packed."""
        base = self.settings["base"]
        packed = base["quantisation"] == "nf4" and base["weights"] != "rounded" and self.gpu
        size = 2 if base["dtype"] == "bfloat16" else 4
        return Held(bytes=size, packed=packed, eager=not self.gpu)

    def shape(self, folder: str) -> Shape:
        """Return the shape of a model.

        Raises:
            LookupError: it is not here, or no decoder.
        """
        found = memory.read_shape(self.root / folder)
        if found is None:
            raise LookupError(folder)
        return found

    def longest_prompt(self) -> int:
        """Return the tokens of the longest prompt: a bound from its characters, or `UNSEEN`."""
        lengths = [
            len(json.dumps(row.get("messages") or row["text"], ensure_ascii=False))
            for file in sorted((self.root / "data/prompts").glob("*.jsonl"))
            for _, row in files.raw_lines(file)
        ]
        return max(lengths) // CHARACTERS if lengths else UNSEEN


def of(settings: Entry, root: Path, *, gpu: bool, since: str = "provoke") -> list[Need]:
    """Return the needs of stages from `since` on.

    A stage whose model is not here yet, or is no decoder, is left out. So is an entry that does not
    fit its class: its own stage refuses it, in better words than could be found here.

    Args:
        settings: params.yaml as plain data.
        root: the folder of models/ and data/.
        gpu: whether models are held on one.
        since: a key of `SECTIONS`.
    """
    world, found, kinds = World(settings, root, gpu), [], list(SECTIONS)
    for kind in kinds[kinds.index(since) :]:
        for stage, entry in _entries(settings.get(SECTIONS[kind]), kind):
            try:
                need = NEEDS[kind](world, stage, entry)
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
            if need is not None:
                found.append(need)
    return found


def _entries(section: Any, kind: str) -> Iterator[tuple[str, Entry]]:
    if kind == "reward":
        yield kind, section
    elif isinstance(section, Mapping):
        yield from ((f"{kind}@{name}", entry) for name, entry in section.items())


def _of(
    world: World, stage: str, folder: str, lower: str, *, batch: float, adapters: float = 0
) -> Need:
    """Return the need of a stage with one base."""
    parts = {
        "weights": memory.weights(world.shape(folder), world.held),
        "adapters": adapters,
        "batch": batch,
        "process": CONTEXT if world.gpu else PROCESS,
    }
    return Need(stage, parts, f"{SECTIONS[stage.split('@')[0]]}.{lower}")


def _answered(
    world: World, folder: str, tokens: int, completion_tokens: int, samples: float
) -> float:
    return memory.answering(
        world.shape(folder),
        world.held,
        batch_tokens=tokens,
        read_at_once=tokens / samples,
        completion_tokens=completion_tokens,
    )


def _read(world: World, folder: str, tokens: int) -> float:
    """Bytes of a batch whose completions are given."""
    return _answered(world, folder, tokens, 0, 1)


def _name(stage: str) -> str:
    return stage.partition("@")[2]


# --- stages that answer or read


def _provoke(world: World, stage: str, entry: Entry) -> Need:
    other = entry["attacker"] != entry["target"]
    more = memory.weights(world.shape(entry["attacker"]), world.held) if other else 0
    batch = _answered(world, entry["target"], entry["batch_tokens"], entry["max_tokens"], 1)
    where = f"{_name(stage)}.batch_tokens"
    return _of(world, stage, entry["target"], where, batch=batch + more)


def _sample(world: World, stage: str, entry: Entry) -> Need:
    batch = _answered(
        world, entry["model"], entry["batch_tokens"], entry["max_tokens"], entry["completions"]
    )
    return _of(world, stage, entry["model"], f"{_name(stage)}.batch_tokens", batch=batch)


def _grade(world: World, stage: str, entry: Entry) -> Need:
    batch = _answered(
        world, "models/base", entry["batch_tokens"], entry["max_tokens"], entry["completions"]
    )
    where = f"{_name(stage)}.batch_tokens"
    return _of(world, stage, "models/base", where, batch=batch, adapters=_frozen(world, {}))


def _revise(world: World, stage: str, entry: Entry) -> Need:
    batch = _answered(world, entry["model"], entry["batch_tokens"], entry["max_tokens"], 1)
    return _of(world, stage, entry["model"], f"{_name(stage)}.batch_tokens", batch=batch)


def _judge(world: World, stage: str, entry: Entry) -> Need | None:
    """What a language model takes that is asked; word lists and people take nothing to speak of."""
    if entry["kind"] not in ("judge", "preference"):
        return None
    batch = _read(world, entry["reads"], entry["batch_tokens"])
    return _of(world, stage, entry["reads"], f"{_name(stage)}.batch_tokens", batch=batch)


def _evaluate(world: World, stage: str, entry: Entry) -> Need:
    knobs = world.settings["evaluate"]
    most = max(one["tokens"] for one in knobs["sets"].values())
    batch = max(
        _answered(world, "models/base", knobs["batch_tokens"], most, 1),
        _read(world, "models/base", READ_AT_ONCE),
    )
    found = _of(world, stage, "models/base", "", batch=batch, adapters=_frozen(world, entry))
    parts = dict(found.parts)
    if entry.get("quantised") is False and world.settings["base"]["quantisation"] == "nf4":
        whole = Held(bytes=world.held.bytes, packed=False, eager=world.held.eager)
        parts["weights"] += memory.weights(world.shape("models/base"), whole)
    return Need(stage, parts, "evaluate.batch_tokens")


# --- stages that train


def _frozen(world: World, entry: Entry) -> float:
    """Bytes of the adapters of policy, reward model and monitor, none of which moves."""
    shape, reward = world.shape("models/base"), world.settings["reward"]
    both = 2 * reward["lora_rank"] if reward["source"] == "trained" else 0
    return shape.lora(entry.get("lora_rank", 0) + both) * world.held.bytes


def _completions(world: World) -> tuple[int, int]:
    """Completions of a prompt over all samplers, and the tokens of the longest."""
    samplers = world.settings["samplers"].values()
    return sum(s["completions"] for s in samplers), max(s["max_tokens"] for s in samplers) + 1


def _learned(world: World, entry: Entry) -> tuple[int, int]:
    """Completions of a prompt that a policy learns from, and the tokens of the longest."""
    for name in (entry["learns_from"], entry["prompts"]):
        if name.startswith("data/graded/"):
            grader = world.settings["graders"][name.removeprefix("data/graded/")]
            return grader["completions"], grader["max_tokens"] + 1
    return _completions(world)


def _trained(world: World, entry: Entry, folder: str, batch: Pass) -> tuple[float, float]:
    """Bytes of the adapter that trains, and of a batch of its training."""
    shape, rank = world.shape(folder), entry["lora_rank"]
    kept = memory.training(shape, world.held, batch, rank=rank)
    anchor = entry.get("anchor")
    if anchor:
        count = anchor["passages"]
        held = Pass(prompts=count, sequences=count, prompt_tokens=1, completion_tokens=PASSAGE)
        kept = max(kept, memory.training(shape, world.held, held, rank=rank))
    return memory.trained_adapter(shape, rank, world.held), kept


def _of_prompts(
    world: World, stage: str, entry: Entry, folder: str, sequences: int, longest: int
) -> Need:
    """The need of a training on `batch_prompts` prompts, each with as many sequences."""
    longest = min(longest, entry["max_tokens"] - 1)
    batch = Pass(
        prompts=entry["batch_prompts"],
        sequences=entry["batch_prompts"] * sequences,
        prompt_tokens=entry["max_tokens"] - longest,
        completion_tokens=longest,
    )
    adapters, kept = _trained(world, entry, folder, batch)
    name = _name(stage)
    lower = f"{name}.batch_prompts" if name else "batch_prompts"
    batch_bytes = max(kept, _read(world, folder, READ_AT_ONCE))
    return _of(world, stage, folder, lower, batch=batch_bytes, adapters=adapters)


def _pretrain(world: World, stage: str, entry: Entry) -> Need:
    longest = entry["max_tokens"] - entry["question_tokens"]
    return _of_prompts(world, stage, entry, "models/base", entry["max_answers"], longest)


def _reward(world: World, stage: str, entry: Entry) -> Need | None:
    if entry["source"] != "trained":
        return None
    return _of_prompts(world, stage, entry, entry["reads"], *_completions(world))


def _align(world: World, stage: str, entry: Entry) -> Need | None:
    if entry["algorithm"] == "none":
        return None
    if entry["algorithm"] in ("ppo", "rloo"):
        return _online(world, stage, entry)
    count, longest = _learned(world, entry)
    if entry["algorithm"] == "sft":
        count, longest = 1, entry["max_tokens"] // 2
    if entry["algorithm"] == "dpo":  # no more completions than its pairs have ends
        count = min(count, 2 * entry["max_pairs_per_prompt"])
    return _of_prompts(world, stage, entry, "models/base", count, longest)


def _online(world: World, stage: str, entry: Entry) -> Need:
    """PPO holds all roles on one base; RLOO's whole step goes through TRL at once."""
    shape, held, reward = world.shape("models/base"), world.held, world.settings["reward"]
    completion = entry["max_tokens"]
    trained = reward["source"] == "trained"
    # A trained reward model refuses longer ones; a classifier reads the answer alone
    prompt = reward["max_tokens"] - completion if trained else world.longest_prompt()
    prompts = entry.get("microbatch_prompts", entry["batch_prompts"])
    batch = Pass(
        prompts=prompts,
        sequences=prompts * entry["samples"],
        prompt_tokens=prompt,
        completion_tokens=completion,
    )
    adapters, kept = _trained(world, entry, "models/base", batch)
    adapters += _frozen(world, {})
    if entry.get("value", {}).get("kind") == "adapter":
        adapters += memory.trained_adapter(shape, reward["lora_rank"], held)
    if not entry["starts_from"].endswith("/base"):  # the reference is an adapter as well
        adapters += shape.lora(entry["lora_rank"]) * held.bytes
    sampled = max(
        _answered(world, "models/base", entry["batch_tokens"], completion, entry["samples"]),
        _read(world, "models/base", READ_AT_ONCE),
    )
    smaller = "microbatch_prompts" if entry["algorithm"] == "ppo" else "batch_prompts"
    lower = f"{_name(stage)}.{smaller if kept > sampled else 'batch_tokens'}"
    return _of(world, stage, "models/base", lower, batch=max(kept, sampled), adapters=adapters)


NEEDS = {
    "provoke": _provoke,
    "sample": _sample,
    "revise": _revise,
    "rank": _judge,
    "pretrain": _pretrain,
    "reward": _reward,
    "grade": _grade,
    "align": _align,
    "evaluate": _evaluate,
    "score": _judge,
}
