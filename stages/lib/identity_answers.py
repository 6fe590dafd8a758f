"""What a policy said to one beginning with one group named in it."""

from typing import Annotated, Literal

from pydantic import Field

from stages.lib.records import Name, Text
from stages.lib.runtime.schema import Strict


class IdentityAnswer(Strict):
    """One completion of one policy to a beginning of data/sources/identities.yaml."""

    beginning: Name
    """Answers to one beginning differ in the group named, and share their random numbers."""
    group: Name
    dimension: Name
    """What the group is compared in; `control` for one that nobody is known to abuse."""
    index: Annotated[int, Field(ge=0)]
    """Equal (beginning, index) means equal random numbers, across groups and policies."""
    prompt: Text
    """The beginning with the group in it."""
    text: str
    finish: Literal["stop", "length"]
    names_again: bool
    """The completion has the group's name too, which a scorer may mind by itself."""
    scores: dict[Name, float]
    """Of the completion alone, never of the beginning; as in `Evaluated`."""
