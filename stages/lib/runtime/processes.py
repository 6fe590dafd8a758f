"""The processes that share a stage's work, on one machine or several; one alone is rank 0 of 1.

`launching` starts them. Each runs the whole stage with the same params and data, does its part of
what is costly, and learns the others' parts here, so that all hold the same results; what rank 0
writes and logs is what the stage wrote. A function that calls one below has to be called by all.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from stages.lib.runtime.schema import Refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(days=3)
"""How long one waits for the others: rank 0 may wait as long for a lock. The launcher ends all when
one dies, so that nobody waits for the dead."""


def size() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def on_this_machine() -> int:
    """Return how many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's part of a batch: every `size`-th item, from its rank on."""
    return items[rank() :: size()]


def require_even(name: str, count: int) -> None:
    """Refuse a batch that the processes cannot divide evenly.

    Raises:
        Refusal: `count`, called `name` in params.yaml, is no multiple of their number.
    """
    if count % size():
        raise Refusal(
            f"params.yaml: {size()} processes share {name} {count}, which does not come out even; "
            f"start a number of processes that divides {count}"
        )


def device() -> "torch.device":
    """Return where this process computes."""
    return _join()[0]


def divides_base() -> bool:
    """Whether each process holds a part of the frozen base (FSDP2), so that all move in step.

    A layer is whole only while all of them run it: each has to run as many forward passes as the
    others.
    """
    return size() > 1 and _join()[1]


@functools.cache
def _join() -> tuple["torch.device", bool]:
    """Join the others, once."""
    import torch
    from accelerate import PartialState

    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise Refusal(
            "DeepSpeed divides the state of what is trained, which is a small adapter here; to "
            "divide the frozen base, launch with launch/fsdp2.yaml"
        )
    joined = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE).device
    # Taken away, or transformers' Trainer divides the model once more, adapter included
    return joined, os.environ.pop("ACCELERATE_USE_FSDP", "false") == "true"


def gather(value: T) -> list[T]:
    """Return each process's value, by rank; anything that pickles."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    device()
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def barrier() -> None:
    """Wait until every process has come this far."""
    gather(None)


def leave() -> None:
    """Wait until every process has come to its end, and part from the others.

    Who ends while another is still connected may be ended by a signal in its last moments.
    """
    if size() == 1:
        return
    import torch.distributed as dist

    barrier()
    dist.destroy_process_group()


def from_first(act: Callable[[], T]) -> T:
    """Do something in rank 0 alone, and return its result in all."""
    return gather(act() if rank() == 0 else None)[0]  # type: ignore[return-value]


def shared(
    items: Sequence[T], work: Callable[[list[T]], Iterable[R]], *, cost: Callable[[T], float]
) -> list[R]:
    """Return `work(items)`, of which each process does a part.

    Args:
        items: what is to be done, the same in every process.
        work: returns one result an item, in order; it calls nothing of this module.
        cost: of an item; dealt from the largest on, so that parts take about as long.

    Returns:
        One result an item, in the order of items, whoever did it.
    """
    if size() == 1 or divides_base():
        return list(work(list(items)))
    order = sorted(range(len(items)), key=lambda i: (-cost(items[i]), i))
    mine = share(order)
    done = list(zip(mine, work([items[i] for i in mine]), strict=True)) if mine else []
    found = dict(pair for part in gather(done) for pair in part)
    return [found[i] for i in range(len(items))]


def total(value: "Tensor") -> "Tensor":
    """Return the sum of a tensor over all processes, where the tensor is."""
    if size() == 1:
        return value
    import torch.distributed as dist

    summed = value.detach().to(device(), copy=True)
    dist.all_reduce(summed)
    return summed.to(value.device)


def means(values: Mapping[str, float], count: float) -> dict[str, float]:
    """Return means over all processes of means over `count` things in each."""
    if size() == 1:
        return dict(values)
    import torch

    # What is not a number in a process that has no part is none of the others' business
    weighted = [value * count if count else 0.0 for value in values.values()]
    *sums, number = total(torch.tensor([*weighted, count], dtype=torch.float64)).tolist()
    return {name: one / number for name, one in zip(values, sums, strict=True)}


def add_gradients(parameters: Iterable["Tensor"]) -> None:
    """Replace each parameter's gradient by the sum over all processes, in one message."""
    if size() == 1:
        return
    import torch

    own = [p for p in parameters if p.requires_grad]
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in own]
    summed = total(torch.cat([grad.reshape(-1) for grad in grads]))
    for parameter, grad in zip(own, summed.split([p.numel() for p in own]), strict=True):
        parameter.grad = grad.view_as(parameter)


def copy_first(parameters: Iterable["Tensor"]) -> None:
    """Give every process rank 0's parameters: other hardware may have rounded otherwise."""
    if size() == 1:
        return
    import torch.distributed as dist

    for parameter in parameters:
        if parameter.requires_grad:
            dist.broadcast(parameter.data, 0)
