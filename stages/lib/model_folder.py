"""A model folder: safetensors weights, configuration and tokenizer, and what can be said of them.

Everything here reads JSON and the headers of safetensors files. No model is loaded, so that a
folder of any architecture, a causal language model or a classifier, passes without torch.
"""

import json
import math
import shutil
import struct
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "identity.json"
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Of configuration and tokenizer files; nothing that can hold code."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class FolderError(Refusal):
    """A folder holds no model that can be used."""


def copy(source: Path, out: Path, *, where: str, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Copy weights, configuration and tokenizer from `source` to `out`.

    Subfolders, code, pickles and documents stay behind: a pickle runs code when it is loaded.

    Args:
        source: the folder to read.
        out: the folder to write.
        where: names the model in error messages.
        patterns: of the names to look at; the rest of `source` is as if it were not there.

    Returns:
        The names of the files and folders left out.

    Raises:
        FolderError: `source` is no folder, or lacks config.json, safetensors weights, one of the
            shards that its index names, or a tokenizer.
    """
    if not source.is_dir():
        raise FolderError(f"{where}: {source} is no folder")
    entries = [entry for entry in source.iterdir() if any(fnmatch(entry.name, p) for p in patterns)]
    present = {entry.name for entry in entries} - {CARD}
    _check_complete(source, present, where)
    weights = weight_files(source, present, where=where)
    unused = {INDEX} if weights == [WEIGHTS] else set()
    plain = {
        entry.name for entry in entries if entry.is_file() and entry.name.endswith(TEXT_SUFFIXES)
    }
    kept = (plain & present - unused) | set(weights)
    for name in sorted(kept):
        shutil.copyfile(source / name, out / name)
    return sorted(present - kept)


def _check_complete(source: Path, names: set[str], where: str) -> None:
    if "config.json" not in names:
        raise FolderError(f"{where}: {source} holds no config.json; it holds {_listed(names)}")
    if not names & {WEIGHTS, INDEX}:
        raise FolderError(
            f"{where}: {source} holds no {WEIGHTS} and no {INDEX}; it holds {_listed(names)}; "
            "pickled weights run code when they are loaded: save the model again with "
            "save_pretrained of transformers"
        )
    if not names & set(TOKENIZERS):
        raise FolderError(
            f"{where}: {source} holds no tokenizer; one of {', '.join(TOKENIZERS)} would do"
        )
    if read_object(source / "config.json").get("quantization_config"):
        raise FolderError(
            f"{where}: the weights of {source} are quantised already (quantization_config in "
            "config.json); take the model they were made from"
        )


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:8]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def weight_files(folder: Path, present: set[str], *, where: str) -> list[str]:
    """Return the names of the files that hold the weights: the one, or the shards of the index.

    Args:
        folder: of the model.
        present: names of its files.
        where: names the model in error messages.

    Raises:
        FolderError: a shard is absent, or the index names a file outside the folder.
    """
    if WEIGHTS in present:
        return [WEIGHTS]
    shards = sorted(set(read_object(folder / INDEX).get("weight_map", {}).values()))
    for shard in shards:
        if shard not in present or not shard.endswith(".safetensors"):
            raise FolderError(
                f"{where}: {INDEX} names {shard}, which {folder} does not hold; the copy is not "
                "whole"
            )
    return shards


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; an absent file is an empty one.

    Raises:
        FolderError: it holds something else.
    """
    found = files.read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise FolderError(f"{path}: must hold a JSON object, not {type(found).__name__}")
    return found


def parameters(folder: Path, *, where: str) -> Counter[str]:
    """Count the parameters by dtype, from the headers of the safetensors files.

    Integer tensors are buffers, such as position ids, and do not count. Tied weights are stored
    once and count once.

    Raises:
        FolderError: a file is no safetensors file, or is cut short.
    """
    counts: Counter[str] = Counter()
    for name in weight_files(folder, {entry.name for entry in folder.iterdir()}, where=where):
        for tensor in _header(folder / name, where).values():
            if tensor["dtype"] in FLOATS:
                counts[FLOATS[tensor["dtype"]]] += math.prod(tensor["shape"])
    if not counts:
        raise FolderError(
            f"{where}: the safetensors files hold no tensor of {', '.join(FLOATS.values())}"
        )
    return counts


def _header(path: Path, where: str) -> dict[str, Any]:
    """The tensors of a safetensors file: its first 8 bytes are the length of a JSON header."""
    size = path.stat().st_size
    try:
        with path.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            header = json.loads(content.read(length)) if length <= size else {}
        header.pop("__metadata__", None)
        end = max(tensor["data_offsets"][1] for tensor in header.values())
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise FolderError(f"{where}: {path.name} is no safetensors file") from None
    if 8 + length + end != size:
        raise FolderError(
            f"{where}: {path.name} has {size} bytes, and its header promises {8 + length + end}"
        )
    return header


def tokens(folder: Path) -> dict[str, Any]:
    """What the configuration and the tokenizer say of the tokens that mark ends and padding."""
    tokenizer = read_object(folder / "tokenizer_config.json")
    return {
        "bos": _content(tokenizer.get("bos_token")),
        "eos": _content(tokenizer.get("eos_token")),
        "pad": _content(tokenizer.get("pad_token")),
        "ends": end_ids(folder),
    }


def _content(token: Any) -> str | None:
    """A token's text; older tokenizers keep it in an object."""
    return token.get("content") if isinstance(token, dict) else token


def end_ids(folder: Path) -> list[int]:
    """Ids of the tokens that end a completion, in the order in which the configuration has them."""
    found = read_object(folder / "generation_config.json").get("eos_token_id")
    if found is None:
        found = read_object(folder / "config.json").get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def give_pad(folder: Path, *, where: str) -> list[str]:
    """Give a causal language model's tokenizer a pad token that never ends a text (property 1).

    Many tokenizers pad with a token that is also an end, or have none. The new one is a special
    token that the vocabulary has already, so that no weight changes: one named for padding, else
    the last that is no end, BOS, unknown token or part of the chat template, else the unknown one.

    Returns:
        What was changed, a sentence each; nothing where the pad is good.

    Raises:
        FolderError: no special token is free.
    """
    architectures = read_object(folder / "config.json").get("architectures") or []
    added = read_object(folder / "tokenizer.json").get("added_tokens")
    if added is None or not any(name.endswith("ForCausalLM") for name in architectures):
        return []
    settings = read_object(folder / "tokenizer_config.json")
    ids = {token["content"]: token["id"] for token in added if token["special"]}
    eos, old = _content(settings.get("eos_token")), _content(settings.get("pad_token"))
    ends = {text for text, number in ids.items() if text == eos or number in end_ids(folder)}
    if old is not None and old not in ends:
        return []
    new = _free_token(ids, ends, settings, _chat_template(folder, settings))
    if new is None:
        raise FolderError(
            f"{where}: pad token {old!r} is an end or missing, and no special token is free to "
            f"replace it: {_listed(set(ids))}; add one to the tokenizer"
        )
    _set_pad(folder, new, ids[new])
    was = "missing" if old is None else f"{old}, which is also an end"
    return [f"the pad token was {was}; it is {new} ({ids[new]})"]


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    return files.read_text(file) if file.is_file() else str(settings.get("chat_template", ""))


def _free_token(
    ids: dict[str, int], ends: set[str], settings: dict[str, Any], template: str
) -> str | None:
    unknown = _content(settings.get("unk_token"))
    taken = ends | {_content(settings.get("bos_token"))}
    free = sorted(
        (text for text in ids if text not in taken and text not in template), key=ids.__getitem__
    )
    named = [text for text in free if "pad" in text.lower()]
    others = [text for text in free if text != unknown]
    return (named[:1] or others[-1:] or free[:1] or [None])[0]


def _set_pad(folder: Path, text: str, number: int) -> None:
    values = {
        "tokenizer_config.json": ("pad_token", text),
        "special_tokens_map.json": ("pad_token", text),
        "config.json": ("pad_token_id", number),
        "generation_config.json": ("pad_token_id", number),
    }
    for name, (key, value) in values.items():
        if (folder / name).is_file() or name == "tokenizer_config.json":
            files.write_json(folder / name, read_object(folder / name) | {key: value})
