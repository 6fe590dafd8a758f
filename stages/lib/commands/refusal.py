"""How a command ends that cannot do what it is asked: one line on stderr, status 1."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from stages.lib.runtime import surroundings
from stages.lib.runtime.schema import Refusal

P = ParamSpec("P")


def in_one_line(main: Callable[P, int | None]) -> Callable[P, int]:
    """Let a command's `main` return its status: its own or 0, and 1 after the line of a refusal."""

    @wraps(main)
    def ending(*given: P.args, **named: P.kwargs) -> int:
        try:
            return main(*given, **named) or 0
        except Exception as error:
            said = error if _is_refusal(error) else surroundings.denied(error)
            if said is None:
                raise
            print(f"{type(said).__name__}: {' '.join(str(said).split())}", file=sys.stderr)
            return 1

    return ending


def _is_refusal(error: Exception) -> bool:
    """Say whether it is ours, or one of DVC's: of dvc.yaml, a name, its cache or a remote."""
    from dvc.exceptions import DvcException

    return isinstance(error, Refusal | DvcException)
