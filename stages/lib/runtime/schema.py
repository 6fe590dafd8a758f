"""Strict models for params and records, and errors that fit on one line.

Everything a person can write (params.yaml, a label file, a prompt) is checked by a subclass of
`Strict`: no unknown key, no missing key, no conversion of types. pydantic does the checking; this
module turns its report into one sentence that says where, what was found and what would do.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class Refusal(Exception):
    """Something the user gave cannot be used; one line says where, what, and what would do."""

    def __str__(self) -> str:
        """Return the line; what would break it, or move a terminal's cursor, is escaped."""
        text = super().__str__()
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_.:/#-]*$": "a name of letters, digits and _ . : / # -",
    r"^[a-z][a-z0-9-]*$": "a name of lower-case letters, digits and hyphens",
    r"^[0-9a-f]{40}$": "a commit of 40 hexadecimal digits",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
}
"""What the patterns of fields mean, in words."""


class Strict(BaseModel):
    """A typed, immutable set of named values; every field must be given, nothing else may be.

    `protected_namespaces` is emptied because pydantic reserves names that begin with `model_`,
    a word this project cannot do without.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library here takes: numpy's older generator no negative and none of 33 bits."""

T = TypeVar("T")


def check(value: Any, into: Any, where: str, error: type[Refusal] = Refusal) -> Any:
    """Return `value` as an instance of the type `into`.

    Args:
        value: plain data, as YAML or JSON gives it.
        into: a `Strict` class, or a union of them told apart by a discriminator.
        where: how the message begins, `params.yaml: pairs` or `labels.jsonl:12`.
        error: the class of error to raise.

    Raises:
        Refusal: of class `error`, one line, naming the first thing that is wrong.
    """
    try:
        return _adapter(into).validate_python(value)
    except ValidationError as report:
        raise error(_sentence(report, where, into)) from None


def check_json(line: bytes, into: Any, where: str, error: type[Refusal] = Refusal) -> Any:
    """Return a line of JSON as `check` returns what it holds.

    Raises:
        Refusal: of class `error`, one line; also where it is not JSON.
    """
    try:
        return _adapter(into).validate_json(line)  # twice as fast as by way of plain data
    except ValidationError:
        return check(plain(line, where, error), into, where, error)


def plain(line: bytes, where: str, error: type[Refusal]) -> Any:
    """Return a line, or a whole file, of JSON as plain data.

    Raises:
        Refusal: of class `error`: it is not JSON.
    """
    try:
        return json.loads(line)
    except RecursionError:
        raise error(f"{where}: not JSON that can be read: it is nested too deeply") from None
    except ValueError as fault:  # also what is no UTF-8, and a number of 5,000 digits
        raise error(f"{where}: not JSON: {fault}") from None


@lru_cache(maxsize=64)
def _adapter(into: Any) -> TypeAdapter[Any]:
    """Building one takes longer than reading twenty lines."""
    plain = not (isinstance(into, type) and issubclass(into, BaseModel))
    return TypeAdapter(into, config=ConfigDict(strict=True, allow_inf_nan=False) if plain else None)


def _sentence(report: ValidationError, where: str, into: Any) -> str:
    problems = report.errors(include_url=False)
    # An unknown key beside a missing one is a typing error in the first; name that one.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path, owner = _walk(first["loc"], into)
    name = ".".join(path)
    joint = ": " if where[-1:].isdigit() else "."
    place = f"{where}{joint}{name}" if name else where
    if first["type"] == "extra_forbidden":
        return f"{place} is not a parameter of {_accepts(owner, path[-1])}"
    if first["type"] == "missing":
        return f"{place} is missing{_meaning(owner, path[-1])}"
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = first["ctx"]
        key = f"{where}{joint}{'.'.join([*path, context['discriminator'].strip(chr(39))])}"
        if "tag" not in context:
            return f"{key} is missing"
        return f"{key} must be one of {context['expected_tags']}, not '{context['tag']}'"
    if first["type"] in ("value_error", "assertion_error"):
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    return f"{place} must {_wanted(first)}, not {_short(first['input'])}"


def _wanted(problem: Any) -> str:
    """Say what would do, from pydantic's `Input should be less than 1` and the like."""
    kind, limits = problem["type"], problem.get("ctx", {})
    if kind.startswith("model") or kind == "dict_type":
        return "be a mapping of names to values"
    if kind == "string_pattern_mismatch":
        pattern = limits["pattern"]
        return f"be {PATTERNS[pattern]}" if pattern in PATTERNS else f"match {pattern}"
    said = re.sub(r"^\w+ should ", "", problem["msg"])
    return re.sub(r" after validation, not \d+$", "", said)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _walk(loc: Sequence[Any], kind: Any) -> tuple[list[str], type[BaseModel] | None]:
    """Follow an error's path through the types: the path as a reader knows it, and its last class.

    pydantic puts what chose a union's member (a discriminator's value, a type's name) into the
    path; a reader has no use for it.
    """
    path: list[str] = []
    owner: type[BaseModel] | None = None
    for part in loc:
        members = _members(kind)
        if len(members) > 1:
            if chosen := tuple(m for m in members if part in _names(m)):
                kind = typing.Union[chosen]  # noqa: UP007  # of several that another tag tells apart
                continue
        elif members:
            kind = members[0]
        path.append(str(part))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            owner = kind
            field = kind.model_fields.get(str(part))
            kind = field.annotation if field else Any
        else:  # a list's items or a mapping's values
            kind = (*getattr(kind, "__args__", ()), Any)[
                -2 if getattr(kind, "__args__", ()) else -1
            ]
    return path, owner


def _members(kind: Any) -> list[Any]:
    """The types a value may have: those of a union without None, or the one."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(kind) if arg is not type(None) for m in _members(arg)]
    return [kind]


def _names(member: Any) -> set[str]:
    """What pydantic may call a union's member in a path."""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return {
            "int",
            "float",
            "str",
            "bool",
            "list[str]",
            getattr(member, "__name__", str(member)),
        }
    literals = [
        typing.get_args(field.annotation)
        for field in member.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
    ]
    tags = {values[0] for values in literals if len(values) == 1 and isinstance(values[0], str)}
    return tags | {member.__name__}


def _accepts(owner: type[BaseModel] | None, key: str) -> str:
    if owner is None:
        return "anything here"
    fields = sorted(owner.model_fields)
    near = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(fields)}"
    return f"{owner.__name__}; {hint}"


def _meaning(owner: type[BaseModel] | None, field: str) -> str:
    info = owner.model_fields.get(field) if owner else None
    if info is None or not info.description:
        return ""
    return f" ({' '.join(info.description.split()).rstrip('.')})"
