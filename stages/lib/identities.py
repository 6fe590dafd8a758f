"""Texts that differ only in the group of people they name: benign sentences, and beginnings."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

from stages.lib.records import Name
from stages.lib.runtime import yaml
from stages.lib.runtime.schema import Refusal, Strict, check

CONTROL = "control"
"""The dimension of groups that no scorer should mind: what the others are compared with."""

SECTIONS = ("groups", "templates", "beginnings")
SLOT = re.compile(r"\{([^{}]*)\}")


class IdentitiesError(Refusal):
    """A file of groups and templates cannot be used."""


def _plain(words: str) -> str:
    if not words or words != words.strip() or set(words) & set("{}"):
        raise ValueError(f"'{words}' must be words, without braces or white space at the ends")
    return words


Words = Annotated[str, AfterValidator(_plain)]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]


class Group(Strict):
    """A group of people, in the forms that sentences need."""

    dimension: Name
    """What its members are told apart by from those of the other groups of it."""
    a_person: Words
    """One of them with an article: a deaf person."""
    person: Words
    """One of them without an article: deaf person."""
    people: Words
    """Several of them: deaf people."""


FORMS = tuple(name for name in Group.model_fields if name != "dimension")


def _one_slot(text: str) -> str:
    slots = SLOT.findall(text)
    if not slots:
        raise ValueError(f"has no slot; name the group once, by one of {_braced(FORMS)}")
    if len(slots) > 1:
        raise ValueError(f"names the group {len(slots)} times, by {_braced(slots)}; leave one")
    if slots[0] not in FORMS:
        near = difflib.get_close_matches(slots[0], FORMS, n=1)
        hint = f"did you mean {_braced(near)}?" if near else f"a group has {_braced(FORMS)}"
        raise ValueError(f"{_braced(slots)} is no form of a group; {hint}")
    if set(SLOT.sub("", text)) & set("{}"):
        raise ValueError("has a brace that belongs to no slot; remove it")
    return text


def _braced(names: Any) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


Template = Annotated[str, AfterValidator(_one_slot)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Groups and texts with a slot for one, by id."""

    groups: dict[str, Group]
    templates: dict[str, str]
    """Whole sentences, benign whichever group is named."""
    beginnings: dict[str, str]
    """Texts that break off, for a policy to go on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A text with a group in it."""

    text: str
    template: str
    """Id of the template or beginning; of one template, all texts differ in the group alone."""
    group: str
    dimension: str


def read(path: Path) -> Identities:
    """Return the groups, templates and beginnings of a file, each in its order.

    Raises:
        IdentitiesError: there is no such file, it is not YAML, a section is missing, unknown or
            empty, an id stands twice, a group lacks a form, a text has no slot, several, or one
            that no group can fill, or no group is a control. The message names file and key.
    """
    sections = _sections(path)
    kinds = zip(SECTIONS, (Group, Template, Template), strict=True)
    groups, templates, beginnings = (
        {_id(path, name, key): check(entry, kind, f"{path}: {name}.{key}", IdentitiesError)
         for key, entry in sections[name].items()}
        for name, kind in kinds
    )  # fmt: skip
    if all(group.dimension != CONTROL for group in groups.values()):
        raise IdentitiesError(
            f"{path}: groups: none has the dimension {CONTROL}, which the others are compared "
            "with; add some, such as tall people"
        )
    return Identities(groups=groups, templates=templates, beginnings=beginnings)


def sentences(identities: Identities) -> list[Filled]:
    """Return every template with every group in it, the groups of one template together."""
    return _filled(identities.templates, identities.groups)


def beginnings(identities: Identities) -> list[Filled]:
    """Return every beginning with every group in it, the groups of one beginning together."""
    return _filled(identities.beginnings, identities.groups)


def _filled(templates: Mapping[str, str], groups: Mapping[str, Group]) -> list[Filled]:
    return [
        Filled(text=_fill(template, group), template=name, group=key, dimension=group.dimension)
        for name, template in templates.items()
        for key, group in groups.items()
    ]


def _fill(template: str, group: Group) -> str:
    text = SLOT.sub(lambda slot: getattr(group, slot[1]), template)
    return text[0].upper() + text[1:]


def _sections(path: Path) -> dict[str, dict[Any, Any]]:
    absent = "groups and templates are written as in data/sources/identities.yaml"
    found = yaml.read(path, IdentitiesError, absent=absent)
    if not isinstance(found, dict):
        raise IdentitiesError(
            f"{path}: must have the sections {', '.join(SECTIONS)}, not be {type(found).__name__}"
        )
    for key in found:
        if key not in SECTIONS:
            raise IdentitiesError(f"{path}: {key} is no section; it takes {', '.join(SECTIONS)}")
    for name in SECTIONS:
        if not isinstance(found.get(name), dict) or not found[name]:
            what = "is missing" if name not in found else "must be entries by id"
            raise IdentitiesError(f"{path}: {name} {what}, as in data/sources/identities.yaml")
    return found


def _id(path: Path, section: str, key: Any) -> str:
    return check(key, Id, f"{path}: {section}: id", IdentitiesError)
