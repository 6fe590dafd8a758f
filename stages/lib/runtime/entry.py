"""What every stage does around its `run`: arguments, params, tracking, and errors of one line."""

import inspect
import os
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.lib.runtime import files, params, room
from stages.lib.runtime.schema import Refusal

Metrics = dict[str, float]


def main(
    run: Callable[..., Metrics], *sections: str, record: str = "reports/runs/{stage}.json"
) -> None:
    """Run a stage from the command line.

    The positional parameters of `run` are sections of params.yaml, named by `sections` in order and
    typed by their annotations; `{name}` in one stands for the first argument on the command line.
    Its keyword-only parameters are the command line's arguments, in order: paths, or `name: str`.

    What `run` returns is logged as the metrics of this stage's MLflow run, and its identity is
    written to `record`. A `Refusal` ends the process with status 1 and one line.
    """
    try:
        arguments = _arguments(run, sys.argv[1:])
        from stages.lib.runtime import declared, guard, tracking

        started = time.perf_counter()
        stage = os.environ.get("DVC_STAGE") or Path(inspect.getfile(run)).stem
        inputs = declared.stage(stage) if "DVC_ROOT" in os.environ else None  # DVC runs this
        before = guard.snapshot(inputs) if inputs else {}
        typed = typing.get_type_hints(run, include_extras=True)
        names = [p.name for p in inspect.signature(run).parameters.values() if _is_section(p)]
        paths = [section.format(**arguments) for section in sections]
        values = [params.load(path, typed[name]) for path, name in zip(paths, names, strict=True)]
        room.require(stage, params.read(), Path())
        shown = dict(zip(paths, values, strict=True))
        with tracking.stage_run(stage, shown, inputs) as own:
            metrics = run(*values, **arguments)
            if inputs:
                guard.require_unchanged(inputs, before)
            own.finish(metrics, seconds=time.perf_counter() - started)
        files.write_json(Path(record.format(stage=stage)), own.identity())
    except Refusal as refusal:
        print(f"{type(refusal).__name__}: {refusal}", file=sys.stderr)
        sys.exit(1)


def _is_section(parameter: inspect.Parameter) -> bool:
    return parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _arguments(run: Callable[..., Metrics], argv: list[str]) -> dict[str, Any]:
    wanted = [p for p in inspect.signature(run).parameters.values() if not _is_section(p)]
    if len(argv) != len(wanted):
        usage = " ".join(p.name for p in wanted)
        raise Refusal(f"{Path(sys.argv[0]).name} takes {len(wanted)} arguments: {usage}")
    types = typing.get_type_hints(run)
    return {p.name: types[p.name](given) for p, given in zip(wanted, argv, strict=True)}
