"""Reads params.yaml, one section at a time, and refuses what does not fit."""

from pathlib import Path
from typing import Any

from stages.lib.runtime import yaml
from stages.lib.runtime.schema import Refusal, check


class ParamError(Refusal):
    """params.yaml and the code disagree."""


def read(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """Return the whole file as plain data.

    Raises:
        ParamError: the file is absent or no YAML; the message has the line.
    """
    return _mapping(yaml.read(path, ParamError, absent="run from the repository root"), str(path))


def parse(text: str, where: str) -> dict[str, Any]:
    """Return the whole file as plain data, of its text: `read`, where it is not in the workspace.

    Args:
        text: of the file.
        where: how the error message names it.

    Raises:
        ParamError: it is no YAML; the message has the line.
    """
    return _mapping(yaml.parse(text, where, ParamError), where)


def _mapping(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ParamError(f"{where}: must be a mapping of sections, not {type(found).__name__}")
    return found


def load(section: str, into: Any, path: Path = Path("params.yaml")) -> Any:
    """Return one section of params.yaml as an instance of `into`.

    There are no defaults in code, so params.yaml is the whole truth about a run.

    Args:
        section: a key of the file, or a dotted path to an entry: `policies.dpo`.
        into: a `Strict` class, a union of such, or a plain type.

    Raises:
        ParamError: the section is absent, or a key in it is missing, unknown, of the wrong type or
            out of range. The message names the file, the key, the value and what would do.
    """
    return check(part(read(path), section, str(path)), into, f"{path}: {section}", ParamError)


def part(settings: Any, section: str, where: str = "params.yaml") -> Any:
    """Return what a dotted path leads to in plain data.

    Args:
        settings: the whole file.
        section: a key of it, or a path to an entry: `policies.dpo`.
        where: how the error message names the file.

    Raises:
        ParamError: there is no such entry.
    """
    found, walked = settings, []
    for key in section.split("."):
        if not isinstance(found, dict) or key not in found:
            has = ", ".join(map(str, found)) if isinstance(found, dict) else repr(found)
            at = f"{where}: {'.'.join(walked)}" if walked else where
            raise ParamError(f"{at} has no '{key}'; it has {has}")
        found, walked = found[key], [*walked, key]
    return found


def section(settings: Any, name: str, where: str = "params.yaml") -> dict[str, Any]:
    """Return a section of names to values.

    Raises:
        ParamError: it is not there, or something else.
    """
    found: dict[str, Any] = check(
        part(settings, name, where), dict[str, Any], f"{where}: {name}", ParamError
    )
    return found


def at(settings: Any, key: str) -> Any:
    """Return what a dotted key leads to in plain data; None where there is nothing."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings
