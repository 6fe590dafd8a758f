"""How a command ends that cannot do what it is asked: one line on stderr, status 1."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from stages.lib.runtime import surroundings
from stages.lib.runtime.schema import Refusal

P = ParamSpec("P")


def in_one_line(main: Callable[P, None]) -> Callable[P, int]:
    """Let a command's `main` return its status: 0, or 1 after the line of its refusal."""

    @wraps(main)
    def ending(*given: P.args, **named: P.kwargs) -> int:
        try:
            main(*given, **named)
        except Exception as error:
            said = error if isinstance(error, Refusal) else surroundings.denied(error)
            if said is None:
                raise
            print(f"{type(said).__name__}: {said}", file=sys.stderr)
            return 1
        return 0

    return ending
