"""What this machine has to hold models in, and a refusal of what cannot fit, before it starts."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.runtime import needs
from stages.lib.runtime.needs import Need
from stages.lib.runtime.schema import Refusal

GIB = 2**30
DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""One of them is there where torch may find a GPU; where none is, torch need not be asked."""


class Room(NamedTuple):
    """Where models are held."""

    bytes: int
    where: str
    gpu: bool


class RoomError(Refusal):
    """Something would not fit into memory."""


def here() -> Room:
    """Return the memory of the GPU that stages use, or else that of this machine.

    All of it, not what is free now: another stage of this repository may hold a GPU at the moment,
    and stages take turns on it (`models.hold_gpu`).
    """
    if any(Path(device).exists() for device in DEVICES):
        import torch  # two seconds, which a machine without a GPU goes without

        if torch.cuda.is_available():
            _, total = torch.cuda.mem_get_info()
            return Room(total, f"on {torch.cuda.get_device_name()}", True)
    return Room(machine(), "in this machine", False)


def machine(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of this machine, or the least that a control group around us allows."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = groups / _group().lstrip("/")
    for folder in (own, *own.parents):
        for name in ("memory.max", "memory/memory.limit_in_bytes"):
            limit = folder / name
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                found.append(int(text))
    return min(found)


def _group() -> str:
    """Return this process's control group, version 2; "/" where it has none."""
    listed = Path("/proc/self/cgroup")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    return next((line[3:] for line in lines if line.startswith("0::")), "/")


def require(stage: str, settings: dict[str, Any], root: Path) -> None:
    """Refuse to begin what cannot be finished: this stage, or one that comes after it.

    Args:
        stage: as DVC names it, `align@ppo`.
        settings: params.yaml as plain data.
        root: the folder of models/ and data/.

    Raises:
        RoomError: the estimate of a stage is more than there is.
    """
    kind = stage.split("@")[0]
    if kind not in needs.SECTIONS or not isinstance(settings.get("base"), dict):
        return
    there = here()
    for need in needs.of(settings, root, gpu=there.gpu, since=kind):
        if need.bytes > there.bytes:
            raise RoomError(refusal(need, there))


def refusal(need: Need, there: Room) -> str:
    """Return the one line that says what does not fit, and what would."""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in need.parts.items() if size)
    fixed = need.bytes - need.parts["batch"]
    cure = (
        f"lower {need.lower}"
        if fixed < there.bytes
        else "take a smaller model, or a device with more memory"
    )
    return (
        f"{need.stage} would take about {need.bytes / GIB:.1f} GiB ({parts}), and there are "
        f"{there.bytes / GIB:.1f} GiB {there.where}; {cure}"
    )
