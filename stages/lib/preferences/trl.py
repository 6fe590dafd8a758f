"""TRL's preference format, for training elsewhere (huggingface.co/docs/trl/dataset_formats).

    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", …}       standard
    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], …}   conversational
    {"chosen": "The sky is blue.", "rejected": "The sky is green.", …}           implicit prompt
    {"prompt": "The sky is", "completion": " blue.", "label": true, …}           unpaired

A continuation is standard, a chat conversational; a data set has one form, so they are two files.
What else a pair or signal has stands in columns of the same names, which TRL passes over; with them
every form is read back to the very record. TRL finds an implicit prompt as the longest common
beginning, which takes in what two answers begin with alike; `prompt_characters` says where it
really ends. TRL's own losses know neither weights nor a `p_chosen` below 1.
"""

from collections.abc import Mapping
from typing import Any, Literal

from stages.lib.preferences.form import messages_of, refuse
from stages.lib.records import Message, Pair, Signal
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import check

Layout = Literal["standard", "conversational"]
TEXTS = {"prompt", "chosen", "rejected"}


def layout_of(record: Pair | Signal) -> Layout:
    """Return which file a record belongs in."""
    return "standard" if isinstance(record.prompt, str) else "conversational"


def preference(pair: Pair, *, implicit: bool) -> dict[str, Any]:
    """Return a pair as a row.

    Args:
        pair: preferred completion first.
        implicit: put the prompt before both answers instead of beside them.
    """
    extra = pair.model_dump(mode="json", exclude=TEXTS)
    prompt, chosen, rejected = (
        _prompt(pair),
        _answer(pair, pair.chosen),
        _answer(pair, pair.rejected),
    )
    if not implicit:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | extra
    if isinstance(pair.prompt, str):
        extra["prompt_characters"] = len(pair.prompt)
    return {"chosen": prompt + chosen, "rejected": prompt + rejected} | extra


def unpaired(signal: Signal) -> dict[str, Any]:
    """Return a signal as a row."""
    extra = signal.model_dump(mode="json", exclude={"prompt", "text", "up"})
    answer = _answer(signal, signal.text)
    return {"prompt": _prompt(signal), "completion": answer, "label": signal.up} | extra


def _prompt(record: Pair | Signal) -> Any:
    if isinstance(record.prompt, str):
        return record.prompt
    return [message.model_dump() for message in record.prompt]


def _answer(record: Pair | Signal, text: str) -> Any:
    if isinstance(record.prompt, str):
        return text
    return [{"role": "assistant", "content": text}]


def pair_of(row: Mapping[str, Any], where: str) -> Pair:
    """Return the pair of a row, explicit or implicit.

    Raises:
        RecordError: it has not the columns of a pair.
    """
    plain = dict(row)
    characters = plain.pop("prompt_characters", None)
    if "prompt" not in plain:
        plain["prompt"] = _common_prompt(plain, characters, where)
    for side in ("chosen", "rejected"):
        plain[side] = _text(plain.get(side), side, where)[_length(plain, row) :]
    found: Pair = check(_with_messages(plain, where), Pair, where, RecordError)
    return found


def _length(plain: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """Return the characters of a text's prompt that stand before the answer."""
    return len(plain["prompt"]) if "prompt" not in row and isinstance(plain["prompt"], str) else 0


def _common_prompt(plain: Mapping[str, Any], characters: Any, where: str) -> Any:
    chosen = plain.get("chosen")
    if isinstance(chosen, list):
        return messages_of(chosen, where, "chosen")[:-1]
    if type(characters) is not int:
        refuse(where, "has neither prompt nor prompt_characters, so nothing says where it ends")
    return _text(chosen, "chosen", where)[:characters]


def _text(value: Any, name: str, where: str) -> str:
    """Return an answer: a text, or the last turn of a list."""
    if isinstance(value, str):
        return value
    return messages_of(value, where, name)[-1]["content"]


def signal_of(row: Mapping[str, Any], where: str) -> Signal:
    """Return the signal of an unpaired row.

    Raises:
        RecordError: it has not the columns of a signal.
    """
    plain = dict(row)
    for column in ("completion", "label"):
        if column not in plain:
            refuse(where, f"has no column '{column}'; it has {', '.join(row)}")
    plain["text"] = _text(plain.pop("completion"), "completion", where)
    plain["up"] = plain.pop("label")
    found: Signal = check(_with_messages(plain, where), Signal, where, RecordError)
    return found


def _with_messages(plain: dict[str, Any], where: str) -> dict[str, Any]:
    if isinstance(plain.get("prompt"), list):
        turns = messages_of(plain["prompt"], where, "prompt")
        plain["prompt"] = [check(turn, Message, where, RecordError) for turn in turns]
    return plain
