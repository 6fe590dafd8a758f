"""Measures a model on the tasks of lm-evaluation-harness, which is an optional extra.

The one place that knows lm_eval. It is handed the model in memory and loads none, so what it
measures is the base as every stage holds it.
"""

import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.models import LanguageModel
from stages.lib.runtime.schema import Refusal
from stages.lib.statistics import Estimate, bootstrap_mean

REQUIREMENT = "lm-eval==0.4.13"
"""As in the extra `harness` of pyproject.toml."""


class TaskError(Refusal):
    """lm-evaluation-harness or a task of it cannot be used."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks that the harness has."""

    names: tuple[str, ...]
    manager: Any
    """lm_eval's own, which finds them again for each model."""


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task, or of a group of tasks."""

    task: str
    metric: str
    """With the filter that answers went through, where there is one: `exact_match.strict-match`."""
    value: float
    higher_is_better: bool | None
    documents: Mapping[str, float] | None
    """What each document gives; None where the value is not the mean of these, as a perplexity is
    not."""


def find(names: Sequence[str], include: Path | None = None) -> Tasks:
    """Return tasks by name, their data read once, so that what is missing is missed at once.

    Args:
        names: tasks, groups or tags of the harness.
        include: folder of further tasks, each a YAML file of the harness's kind.

    Raises:
        TaskError: the harness is not installed, has no such task, cannot read its data, or
            would run code that the model writes.
    """
    if include and not include.is_dir():
        raise TaskError(f"{include}: no such folder of tasks")
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        package = (error.name or "lm_eval").partition(".")[0]
        raise TaskError(
            f"{package} is not installed; `.venv/bin/pip install -c requirements.lock "
            f"{REQUIREMENT}` installs lm-evaluation-harness, which is not in the lock file"
        ) from None
    manager = TaskManager(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TaskError(f"TASKS: lm-evaluation-harness has no '{name}'{hint}")
        try:
            opened = manager.load([name])["tasks"].values()
        except Exception as error:  # whatever a task's own code, a reader of data or a hub throws
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TaskError(f"{name}: cannot be opened: {reason}") from None
        if any(getattr(task, "UNSAFE_CODE", False) for task in opened):
            raise TaskError(f"{name}: runs code that the model writes, which is not done here")
    return Tasks(tuple(names), manager)


def wrap(lm: LanguageModel, *, batch: int) -> Any:
    """Return a model, with the adapter that is active, in the form that the harness asks.

    Log-probabilities are taken in float32, as `likelihood` takes them: in bfloat16, the harness's
    habit, one of −3 nats is rounded to a multiple of 1/64.
    """
    from lm_eval.models.huggingface import HFLM

    with _without_warnings("lm_eval.models.huggingface"):  # that a model in memory is not loaded
        return HFLM(
            pretrained=lm.model,
            tokenizer=lm.tokenizer,
            batch_size=batch,
            softmax_dtype="float32",
        )


def measure(lm: LanguageModel, tasks: Tasks, *, limit: int | None, batch: int) -> Mapping[str, Any]:
    """Return what the harness finds, with every document's own results.

    Args:
        lm: the model; an adapter that is active takes part.
        tasks: what it is asked.
        limit: documents a task, the first ones; None: all.
        batch: requests that go through the model together.
    """
    from lm_eval import simple_evaluate

    return simple_evaluate(
        wrap(lm, batch=batch),
        tasks=list(tasks.names),
        task_manager=tasks.manager,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,  # of its own intervals, which are not paired
    )


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def scores(found: Mapping[str, Any]) -> list[Score]:
    """Return every metric that the harness took, in its order.

    Args:
        found: what `measure` returns.
    """
    rows = []
    for task, own in found["results"].items():
        better = found["higher_is_better"].get(task, {})
        for key, raw in own.items():
            name, comma, through = key.partition(",")
            value = _number(raw)
            if not comma or name.endswith("_stderr") or value is None:
                continue  # a title, a count, or an error that is not paired
            metric = name if through == "none" else f"{name}.{through}"
            documents = _documents(found, task, name, through, value)
            rows.append(Score(task, metric, value, better.get(name), documents))
    return rows


def _documents(
    found: Mapping[str, Any], task: str, metric: str, through: str, value: float
) -> dict[str, float] | None:
    """Return what each document gives to a metric, if the metric is the mean of that."""
    own: dict[str, float] = {}
    for leaf in _leaves(found, task):
        for sample in found["samples"][leaf]:
            if sample["filter"] == through and metric in sample:
                one = _number(sample[metric])
                if one is None:
                    return None
                own[f"{leaf}/{sample['doc_id']}/{sample['prompt_hash'][:16]}"] = one
    # The harness does not say how it came by a value; that of a mean can be checked.
    return own if own and math.isclose(np.mean(list(own.values())), value, abs_tol=1e-9) else None


def _leaves(found: Mapping[str, Any], task: str) -> list[str]:
    """Return the tasks of a group of tasks and of its groups; a task is its own."""
    parts = found.get("group_subtasks", {}).get(task) or [task]
    return [leaf for part in parts for leaf in ([part] if part == task else _leaves(found, part))]


def _number(raw: Any) -> float | None:
    return float(raw) if isinstance(raw, bool | int | float | np.number | np.bool_) else None


def difference(policy: Score, baseline: Score, *, resamples: int, seed: int) -> Estimate:
    """Return policy minus baseline, with an interval where documents can be paired.

    Both answered the same documents, so what is resampled is each document's difference: policies
    that get the same ones wrong are told apart by few.

    Returns:
        an estimate whose ends are NaN and whose n is 0 where the metric is no mean over documents,
        or the two have not the same ones.
    """
    own, other = policy.documents, baseline.documents
    if own is None or other is None or own.keys() != other.keys():
        return Estimate(policy.value - baseline.value, math.nan, math.nan, 0)
    changes = [own[document] - other[document] for document in own]
    return bootstrap_mean(changes, list(own), resamples=resamples, seed=seed)
