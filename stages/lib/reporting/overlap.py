"""Proves that no evaluated prompt was learned from."""

from collections.abc import Sequence
from pathlib import Path

from stages.lib.records import Evaluated, Prompt
from stages.lib.reporting.inputs import SPLITS
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

TRAINING = ("sft", "reward", "monitor", "align")
"""The roles of prompts that something was learned from."""


def none(folder: Path, evaluated: Sequence[Evaluated]) -> dict[str, int]:
    """Count evaluated and training prompts and what they share; refuse a shared one.

    Raises:
        RecordError: an evaluated prompt is unknown, has a training role, is a near-duplicate of a
            training prompt, or has its very text.
    """
    known = {
        prompt.id: prompt
        for split in SPLITS
        for prompt in files.read_lines(folder / f"{split}.jsonl", Prompt)
    }
    learned = [prompt for prompt in known.values() if prompt.role in TRAINING]
    clusters = {prompt.cluster: prompt.id for prompt in learned}
    texts = {_same(prompt.plain()): prompt.id for prompt in learned}
    asked = {row.prompt_id for row in evaluated}
    for name in sorted(asked):
        if name not in known:
            raise RecordError(f"evaluated prompt {name} stands in no file of {folder}")
        prompt = known[name]
        twin = clusters.get(prompt.cluster) or texts.get(_same(prompt.plain()))
        if twin:
            alike = f"has role {prompt.role}" if twin == name else f"is alike to {twin}"
            raise RecordError(
                f"evaluated prompt {name} {alike}, which models learned from; evaluate.split must "
                "be validation or test, and a cluster must have one role"
            )
    return {
        "evaluated": len(asked),
        "evaluated_clusters": len({known[name].cluster for name in asked}),
        "training": len(learned),
        "training_clusters": len(clusters),
        "shared_prompts": len(asked & {prompt.id for prompt in learned}),
        "shared_clusters": len({known[name].cluster for name in asked} & clusters.keys()),
        "shared_texts": len({_same(known[name].plain()) for name in asked} & texts.keys()),
    }


def _same(text: str) -> str:
    return " ".join(text.lower().split())
