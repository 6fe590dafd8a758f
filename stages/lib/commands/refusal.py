"""How a command ends that cannot do what it is asked: one line on stderr, status 1."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

from stages.lib.runtime import surroundings
from stages.lib.runtime.schema import Refusal

P = ParamSpec("P")


def in_one_line(main: Callable[P, int | None]) -> Callable[P, int]:
    """Let a command's `main` return its status: its own or 0, and 1 after the line of a refusal."""

    @wraps(main)
    def ending(*given: P.args, **named: P.kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of ASCII gets \u2013 and no error
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = main(*given, **named) or 0
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # `| head` has seen enough; nor may Python flush at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            said = error if _is_refusal(error) else surroundings.denied(error)
            if said is None:
                raise
            print(f"{type(said).__name__}: {' '.join(str(said).split())}", file=sys.stderr)
            return 1

    return ending


@contextmanager
def of_the_graph(path: str) -> Iterator[None]:
    """Say of a file that a stage wrote that it is not as stages write it, where a block stumbles.

    Raises:
        Refusal: the block found no such key, or a value of another kind.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        said = f"{type(error).__name__}: {error}"
        raise Refusal(
            f"{path}: is not as the graph writes it ({said}); `dvc checkout {path}` or `dvc repro` "
            "brings it back"
        ) from None


def _is_refusal(error: Exception) -> bool:
    """Say whether it is ours, or one of DVC's: of dvc.yaml, a name, its cache or a remote."""
    from dvc.exceptions import DvcException

    return isinstance(error, Refusal | DvcException)
