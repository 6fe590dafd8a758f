"""Reads prompts from files and from the Hugging Face hub into one form.

One class for each kind of source, told apart by `kind` and, for the hub, by `adapter`. Every row
becomes a `SourcePrompt`, is left out for a stated reason, or is refused by file and row.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from stages.lib.records import Form, Name, SourcePrompt, Text
from stages.lib.runtime.files import RecordError, raw_lines
from stages.lib.runtime.schema import Strict, check, plain

Row = tuple[str, int, Any]
"""Where a row stands, its number from 1, and its plain data."""

Toxicity = Annotated[float, Field(ge=0, le=1)]


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(
            f"'{path}' leaves the sources folder, where DVC would not see it change; "
            "copy the file into the folder"
        )
    return path


InsidePath = Annotated[Text, AfterValidator(_inside)]
"""A path relative to the folder of sources, and in it."""

Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*/[\w-][\w.-]*$")]
"""owner/name on the hub."""

Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
"""40 hexadecimal digits: a branch or tag may mean other data tomorrow."""


class Columns(Strict):
    """Which column of a row holds what; a dot reaches into an object, as in `prompt.text`.

    What is not named here is not read. Without `id`, a prompt is called by its file and row number.
    """

    text: Text | None = None
    """Text to go on with; of a chat, its one user turn."""
    messages: Text | None = None
    """Turns of a chat, a list of objects with `role` and `content`."""
    id: Text | None = None
    form: Text | None = None
    category: Text | None = None
    source: Text | None = None

    @model_validator(mode="after")
    def _one_body(self) -> "Columns":
        if (self.text is None) == (self.messages is None):
            raise ValueError("columns must name either 'text' or 'messages'")
        return self


class Local(Strict):
    """A file in the sources folder: .jsonl, .json (a list), .csv, each also .gz, or .parquet."""

    kind: Literal["local"]
    path: InsidePath
    """Relative to the sources folder."""
    columns: Columns | None = None
    """None: each row is a prompt by itself, with the fields of `SourcePrompt`."""
    form: Form | None = None
    """Of all rows, where they have none; `category` and `source` likewise."""
    category: Name | None = None
    source: Text | None = None

    @property
    def origin(self) -> str:
        """Name in the metrics, and first part of the ids that are made."""
        return self.path


class Provoked(Strict):
    """What an entry of `provokers` wrote, in the form of `SourcePrompt`."""

    kind: Literal["provoked"]
    entry: Name

    @property
    def path(self) -> str:
        """Relative to data/provocations."""
        return f"{self.entry}.jsonl"

    @property
    def origin(self) -> str:
        """Name in the metrics."""
        return f"provoked:{self.entry}"


class HubSource(Strict):
    """What every adapter of a hub dataset needs to know."""

    kind: Literal["hub"]
    repository: Repository
    """owner/name. A folder of this name in the sources folder is read instead of the hub."""
    revision: Commit
    """Commit, 40 hexadecimal digits: a branch or tag may mean other data tomorrow."""
    subset: Text | None = None
    """The hub calls it config; None is the only or the default one."""
    split: Text
    """As the repository names it, `train` mostly; it has nothing to do with roles here."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """How many are taken, from the first; None takes all."""

    @property
    def origin(self) -> str:
        """Name in the metrics, and first part of the ids."""
        return ":".join(part for part in (self.repository, self.subset, self.split) if part)


class RealToxicityPrompts(HubSource):
    """Rows with `prompt.text` and `prompt.toxicity`, Gehman et al. 2020 (arXiv:2009.11462)."""

    adapter: Literal["realtoxicityprompts"]
    category: Name
    min_toxicity: Toxicity | None = None
    """Perspective's score of the prompt; with a bound, rows without a score are left out."""
    max_toxicity: Toxicity | None = None


class Dialogue(HubSource):
    """Rows with a dialogue, as DialogSum's, each made a chat that asks for something to be done."""

    adapter: Literal["dialogue"]
    category: Name
    dialogue: Text
    """Name of the column."""
    instruction: Text
    """What stands before the dialogue, a blank line between them."""
    min_characters: Annotated[int, Field(ge=1)] | None = None
    """Of a dialogue; a shorter one is left out, and so is one longer than `max_characters`."""
    max_characters: Annotated[int, Field(ge=1)] | None = None


class HubColumns(HubSource):
    """Rows whose columns are named in params."""

    adapter: Literal["columns"]
    columns: Columns
    form: Form | None = None
    category: Name | None = None


Hub = Annotated[RealToxicityPrompts | Dialogue | HubColumns, Field(discriminator="adapter")]
Source = Annotated[Local | Provoked | Hub, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A prompt or row that goes no further."""

    reason: str
    id: str
    because: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """What one source gave."""

    origin: str
    """Path in the sources folder, or repository, subset and split."""
    prompts: list[tuple[str, SourcePrompt]]
    """Each with where it stands."""
    left_out: list[LeftOut]


def read(source: Source, folder: Path) -> Gathered:
    """Read one source.

    Args:
        source: its entry in params.
        folder: the sources folder; data/provocations for what was provoked.

    Raises:
        RecordError: the source cannot be read, a row does not fit, or none is left.
    """
    prompts: list[tuple[str, SourcePrompt]] = []
    left_out: list[LeftOut] = []
    for where, number, row in _rows(source, folder):
        if not isinstance(row, dict):
            _refuse(where, f"must be an object with named fields, not {type(row).__name__}")
        name = f"{without_ending(source.origin)}:{number}"
        dropped = _dropped(source, row, where, taken=len(prompts))
        if dropped:
            left_out.append(LeftOut(dropped[0], name, dropped[1]))
        else:
            plain = _plain(source, row, where, name)
            prompts.append((where, check(plain, SourcePrompt, where, RecordError)))
    if not prompts:
        rows = f"{len(left_out)} rows, all filtered out" if left_out else "no rows"
        _refuse(source.origin, f"gives no prompt; it has {rows}")
    return Gathered(source.origin, prompts, left_out)


def unread(sources: Sequence[Source], folder: Path) -> list[str]:
    """Return the files of the sources folder that no source names, so that none is forgotten."""
    own = [one for one in sources if not isinstance(one, Provoked)]
    named = [folder / (one.path if isinstance(one, Local) else one.repository) for one in own]
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(path.is_relative_to(name) for name in named)
    )


def _rows(source: Source, folder: Path) -> Iterator[Row]:
    return (hub_rows if isinstance(source, HubSource) else local_rows)(source, folder)


def _dropped(
    source: Source, row: dict[str, Any], where: str, *, taken: int
) -> tuple[str, str] | None:
    """Return reason and explanation where a row is filtered out."""
    if isinstance(source, RealToxicityPrompts):
        outside = _outside(source, row, where)
        if outside:
            return outside
    if isinstance(source, Dialogue):
        length = len(str(reach(row, source.dialogue, where)))
        if not (source.min_characters or 0) <= length <= (source.max_characters or length):
            return "length", f"{source.dialogue} has {length} characters"
    if isinstance(source, HubSource) and source.rows is not None and taken >= source.rows:
        return "rows", f"beyond the first {source.rows}"
    return None


def _outside(
    source: RealToxicityPrompts, row: dict[str, Any], where: str
) -> tuple[str, str] | None:
    low, high = source.min_toxicity, source.max_toxicity
    if low is None and high is None:
        return None
    score = reach(row, "prompt.toxicity", where)
    if score is None:
        return "no_toxicity", "prompt.toxicity is null"
    if not isinstance(score, int | float):
        _refuse(where, f"prompt.toxicity must be a number from 0 to 1, not {score!r}")
    if (low is not None and score < low) or (high is not None and score > high):
        return "toxicity", f"prompt.toxicity is {score:.4g}"
    return None


def _plain(source: Source, row: dict[str, Any], where: str, name: str) -> dict[str, Any]:
    """Return a row as the fields of `SourcePrompt`."""
    match source:
        case Local(columns=None) | Provoked():
            return _joined(row, _constants(source), where)
        case RealToxicityPrompts():
            found = {"form": "continuation", "text": reach(row, "prompt.text", where)}
        case Dialogue():
            dialogue = reach(row, source.dialogue, where)
            _refuse_blank(dialogue, source.dialogue, where)
            found = {"form": "chat", "text": f"{source.instruction}\n\n{dialogue}"}
        case _:
            found = _picked(row, source.columns, where)
    plain = {"id": name} | _joined(found, _constants(source), where)
    if plain.get("form") == "chat" and "text" in plain:
        _refuse_blank(plain["text"], "text", where)
        plain["messages"] = [{"role": "user", "content": plain.pop("text")}]
    return plain


def _refuse_blank(value: Any, name: str, where: str) -> None:
    """Here, because set into a chat, a blank or a number would look like a prompt."""
    if not isinstance(value, str) or not value.strip():
        _refuse(where, f"{name} must be a text, not {value!r}")


def _constants(source: Source) -> dict[str, Any]:
    """Return the fields that are the same for all rows of a source."""
    fields = ("form", "category", "source")
    given = {field: getattr(source, field, None) for field in fields}
    if isinstance(source, HubSource):
        given["source"] = f"{source.repository}@{source.revision}"
    return {field: value for field, value in given.items() if value is not None}


def _picked(row: dict[str, Any], columns: Columns, where: str) -> dict[str, Any]:
    """Return the named columns. A whole number as id becomes text; nothing else is converted."""
    named = columns.model_dump(exclude_none=True)
    picked = {field: reach(row, column, where) for field, column in named.items()}
    if type(picked.get("id")) is int:
        picked["id"] = str(picked["id"])
    return picked


def _joined(plain: dict[str, Any], constants: dict[str, Any], where: str) -> dict[str, Any]:
    for field in sorted(constants.keys() & plain.keys()):
        _refuse(
            where, f"has a {field} of its own; drop `{field}` from its entry in prompts.sources"
        )
    return plain | constants


def reach(row: dict[str, Any], column: str, where: str) -> Any:
    """Return a column's value; a name that holds a dot is tried whole before it is taken apart.

    Raises:
        RecordError: the row has no such column.
    """
    if column in row:
        return row[column]
    found: Any = row
    for part in column.split("."):
        if not isinstance(found, dict) or part not in found:
            _refuse(where, f"has no column '{column}'; it has {', '.join(map(str, row))}")
        found = found[part]
    return found


def _refuse(where: str, what: str) -> NoReturn:
    raise RecordError(f"{where}: {what}") from None


def local_rows(source: Local | Provoked, folder: Path) -> Iterator[Row]:
    """Return the rows of a file, read by its ending.

    Raises:
        RecordError: no such file, an ending that is not known, or content that does not fit it.
    """
    return file_rows(folder / source.path, named_by="prompts.sources")


def file_rows(path: Path, *, named_by: str) -> Iterator[Row]:
    """Return the rows of a file, read by its ending.

    Args:
        path: .jsonl, .json (a list), .csv, each also .gz, or .parquet.
        named_by: who names the file, for the message where it is absent.

    Raises:
        RecordError: no such file, an ending that is not known, or content that does not fit it.
    """
    if not path.is_file():
        _refuse(str(path), f"no such file, though {named_by} names it")
    ending = path.name.removeprefix(without_ending(path.name))
    if ending not in READERS:
        _refuse(str(path), f"must end in {', '.join(READERS)}")
    return READERS[ending](path)


def without_ending(name: str) -> str:
    """Return a file's name without its ending, `.csv.gz` and the like as one."""
    ending = next((ending for ending in READERS if name.endswith(ending)), "")
    return name.removesuffix(ending)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, (where, row) in enumerate(raw_lines(path), start=1):
        yield where, number, row


def _json_lines_gz(path: Path) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(_unpacked(path).split(b"\n"), start=1):
        if line.strip():
            number += 1
            where = f"{path}:{line_number}"
            yield where, number, plain(line, where, RecordError)


def _json_list(path: Path) -> Iterator[Row]:
    rows = plain(_unpacked(path), str(path), RecordError)
    if not isinstance(rows, list):
        _refuse(str(path), "must be a list of rows; one object a line is .jsonl")
    for number, row in enumerate(rows, start=1):
        yield f"{path}: row {number}", number, row


def _csv(path: Path) -> Iterator[Row]:
    """Rows below the header, from 1. All values are text, `NA` and the empty one too."""
    number = 0
    try:
        lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        header = next(lines, [])
        if len(set(header)) != len(header):
            _refuse(str(path), f"names a column twice: {', '.join(header)}")
        for cells in lines:
            if not cells:  # a blank line
                continue
            number += 1
            if len(cells) != len(header):
                _refuse(
                    f"{path}: row {number}", f"has {len(cells)} cells, the header {len(header)}"
                )
            yield f"{path}: row {number}", number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        _refuse(f"{path}: row {number + 1}", f"not CSV: {error}")


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet  # here: other sources go without

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        _refuse(str(path), f"not Parquet: {' '.join(str(error).split())}")
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", number, row


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as content:
            return content.read()
    except (OSError, EOFError, zlib.error) as error:
        _refuse(str(path), f"cannot be read: {error}")


def _text(path: Path) -> str:
    try:
        return _unpacked(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(str(path), f"not UTF-8: {error}")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines_gz,
    ".json": _json_list,
    ".json.gz": _json_list,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
}


def hub_rows(source: HubSource, folder: Path) -> Iterator[Row]:
    """Yield the rows of one split of a hub dataset.

    The files of the very commit are brought first, and then loaded from where they lie: asked for
    a repository without a network, `load_dataset` takes whatever revision it has cached.

    Raises:
        RecordError: the hub is out of reach and no copy is here, or the repository lacks what is
            asked for.
    """
    import datasets  # here: it takes two seconds, which other sources go without

    copy = folder / source.repository
    where = f"{source.repository}@{source.revision[:8]}"
    files = copy if copy.is_dir() else _snapshot(source, where, copy)
    try:
        rows = datasets.load_dataset(str(files), source.subset, split=source.split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        _refuse(where, " ".join(str(error.__cause__ or error).split()))
    for number, row in enumerate(rows, start=1):
        yield f"{where}: row {number}", number, row


def _snapshot(source: HubSource, where: str, copy: Path) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(
            source.repository, repo_type="dataset", revision=source.revision
        )
    except LocalEntryNotFoundError:
        _refuse(
            where,
            "the hub cannot be reached and this revision is not in the cache; run once with a "
            f"network, or put the repository's files under {copy}",
        )
    except (HfHubHTTPError, OSError) as error:
        _refuse(where, " ".join(str(error).split()))
