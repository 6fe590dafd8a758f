"""The algorithms that there are: a folder each beside this file, found by its name.

A folder's `__init__.py` has one class of knobs with `algorithm: Literal["<folder>"]`, and `train`.
"""

import importlib
import typing
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import Field

from stages.lib.algorithms.task import Entry, Task, TrainedEntry

NAMES = sorted(init.parent.name for init in Path(__file__).parent.glob("*/__init__.py"))


def module(name: str) -> ModuleType:
    """Return an algorithm's module; torch and TRL it imports where it trains, and not here."""
    return importlib.import_module(f"stages.lib.algorithms.{name}")


def knobs(name: str) -> type[Entry]:
    """Return the class of an algorithm's entries in params.yaml."""
    (own,) = (
        kind
        for kind in vars(module(name)).values()
        if isinstance(kind, type) and issubclass(kind, Entry) and _is_named(kind, name)
    )
    return own


def _is_named(kind: type[Entry], name: str) -> bool:
    field = kind.model_fields.get("algorithm")
    return field is not None and typing.get_args(field.annotation) == (name,)


Policy = Annotated[reduce(or_, map(knobs, NAMES)), Field(discriminator="algorithm")]
"""An entry of `policies`, of whichever algorithm."""


def train(policy: Any, task: Task) -> dict[str, float]:
    """Train a policy by its algorithm, with a seed of its own if it has one."""
    if isinstance(policy, TrainedEntry) and policy.seed is not None:
        task = replace(task, seed=policy.seed)
    return module(policy.algorithm).train(policy, task)
