"""What every stage does around its `run`: arguments, params, tracking, and errors of one line."""

import inspect
import os
import sys
import time
import typing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages.lib.runtime import files, launching, params, processes, room, surroundings
from stages.lib.runtime.schema import Refusal

Metrics = dict[str, float]


def nobody(section: Any) -> bool:
    """Share nothing."""
    return False


def everyone(section: Any) -> bool:
    """Share always."""
    return True


def main(
    run: Callable[..., Metrics],
    *sections: str,
    record: str = "reports/runs/{stage}.json",
    shared: Callable[[Any], bool] = nobody,
) -> None:
    """Run a stage from the command line.

    The positional parameters of `run` are sections of params.yaml, named by `sections` in order and
    typed by their annotations; `{name}` in one stands for the first argument on the command line.
    Its keyword-only parameters are the command line's arguments, in order: paths, or `name: str`.

    What `run` returns is logged as the metrics of this stage's MLflow run, and its identity is
    written to `record`. A `Refusal` ends the process with status 1 and one line, and so does what
    the machine denies: a full disk, a file that may not be written.

    `shared` says, of the first section, whether several processes can share the work: then the
    stage is started again by `launching`, where that is asked for. Rank 0 alone logs, prints and
    writes.
    """
    try:
        arguments = _arguments(run, sys.argv[1:])
        if processes.rank():
            launching.be_silent()
            run(*_sections(run, sections, arguments).values(), **arguments)
            processes.leave()
        elif launching.wanted() and shared(_first(_sections(run, sections, arguments))):
            sys.exit(launching.launch())
        else:
            _tracked(run, sections, arguments, record)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        said = error if isinstance(error, Refusal) else surroundings.denied(error)
        if said is None and processes.size() == 1:
            raise
        launching.tell(said or error)
        sys.exit(1)


def _tracked(
    run: Callable[..., Metrics], sections: Sequence[str], arguments: dict[str, Any], record: str
) -> None:
    """Run a stage, under guard and in MLflow."""
    from stages.lib.runtime import declared, guard, locks, tracking

    started = time.perf_counter()
    stage = os.environ.get("DVC_STAGE") or Path(inspect.getfile(run)).stem
    with ExitStack() as held:
        inputs = None
        if "DVC_ROOT" in os.environ:  # DVC runs this; one that was killed may have left another
            held.enter_context(locks.of_stage(stage))
            inputs = declared.stage(stage)
            held.enter_context(guard.watching(inputs))
            guard.require_whole(inputs)
        shown = _sections(run, sections, arguments)
        room.require(stage, params.read(), Path())
        own = held.enter_context(tracking.stage_run(stage, shown, inputs))
        metrics = run(*shown.values(), **arguments)
        processes.leave()  # none has failed
        guard.require_unchanged()
        own.finish(metrics, seconds=time.perf_counter() - started)
        files.write_json(Path(record.format(stage=stage)), own.identity())


def _sections(
    run: Callable[..., Metrics], sections: Sequence[str], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the sections of params.yaml that a stage takes, by their path."""
    typed = typing.get_type_hints(run, include_extras=True)
    names = [p.name for p in inspect.signature(run).parameters.values() if _is_section(p)]
    paths = [section.format(**arguments) for section in sections]
    return {path: params.load(path, typed[name]) for path, name in zip(paths, names, strict=True)}


def _first(sections: dict[str, Any]) -> Any:
    return next(iter(sections.values()))


def _is_section(parameter: inspect.Parameter) -> bool:
    return parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _arguments(run: Callable[..., Metrics], argv: list[str]) -> dict[str, Any]:
    wanted = [p for p in inspect.signature(run).parameters.values() if not _is_section(p)]
    if len(argv) != len(wanted):
        usage = " ".join(p.name for p in wanted)
        raise Refusal(f"{Path(sys.argv[0]).name} takes {len(wanted)} arguments: {usage}")
    types = typing.get_type_hints(run)
    return {p.name: types[p.name](given) for p, given in zip(wanted, argv, strict=True)}
