"""Where models come from: a wheel of the Python index, a Hugging Face repository, a local folder.

Each source is a class of parameters and a function that fills an empty folder with weights in
safetensors, configuration and tokenizer. No code that comes with a model is ever run.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, StringConstraints
from tqdm import tqdm

from stages.lib import model_folder
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, Strict

PATTERN_SUFFIXES = (".safetensors", *model_folder.TEXT_SUFFIXES)


class FetchError(Refusal):
    """A model cannot be brought."""


def _licence(text: str) -> str:
    try:
        known = canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        raise ValueError(
            f"'{text}' is no SPDX licence (https://spdx.org/licenses); "
            "one that is not listed is written LicenseRef-name"
        ) from None
    if known != text:
        raise ValueError(f"'{text}' is written {known} in SPDX")
    return text


def _requirement(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", text, re.ASCII):
        raise ValueError(
            f"'{text}' is not name==version; without an exact version, two runs may differ"
        )
    return text


def _commit(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", text):
        raise ValueError(
            f"'{text}' is not a commit (40 hexadecimal digits); a branch or tag can move, "
            "and two runs would differ"
        )
    return text


def _pattern(text: str) -> str:
    if "/" in text or not text.endswith(PATTERN_SUFFIXES):
        raise ValueError(
            f"'{text}' may not be fetched; a pattern names files of the repository's top folder "
            f"and ends in {', '.join(PATTERN_SUFFIXES)}: nothing that can hold code"
        )
    return text


Licence = Annotated[str, AfterValidator(_licence)]


class Package(Strict):
    """A wheel of the Python index that carries a model."""

    source: Literal["package"]
    package: Annotated[str, AfterValidator(_requirement)]
    """name==version"""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the wheel, in hexadecimal."""
    licence: Licence
    """SPDX expression, copied to the identity card."""

    @property
    def version(self) -> str:
        """The version after ==."""
        return self.package.partition("==")[2]


class Hub(Strict):
    """A repository of the Hugging Face hub at one commit."""

    source: Literal["hub"]
    repository: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
    ]
    """owner/name"""
    revision: Annotated[str, AfterValidator(_commit)]
    """Commit, 40 hexadecimal digits."""
    licence: Licence
    """SPDX expression, copied to the identity card."""
    files: list[Annotated[str, AfterValidator(_pattern)]]
    """Patterns of the files to bring; [] brings all weights, configuration and tokenizer files."""

    @property
    def version(self) -> str:
        """The commit."""
        return self.revision


class Local(Strict):
    """A folder of this machine."""

    source: Literal["local"]
    path: Annotated[str, StringConstraints(min_length=1)]
    """Of a folder with config.json, a tokenizer and *.safetensors."""
    licence: Licence
    """SPDX expression, copied to the identity card."""

    @property
    def version(self) -> None:
        """A folder has none: the hashes of its files say what it was."""
        return None


def bring(model: Package | Hub | Local, out: Path, *, where: str) -> list[str]:
    """Fill the empty folder `out` with a model.

    Args:
        model: one entry of `models` in params.yaml.
        out: an empty folder.
        where: names the entry in error messages: `models.base`.

    Returns:
        What was changed or left out on the way, a sentence each.

    Raises:
        Refusal: the model cannot be reached, is not what the entry says, or cannot be used.
    """
    if isinstance(model, Package):
        return _bring_package(model, out, where)
    if isinstance(model, Hub):
        return _bring_hub(model, out, where)
    left_out = model_folder.copy(Path(model.path), out, where=f"{where}.path")
    return [f"{name} was left out: no weights, configuration or tokenizer" for name in left_out]


# --- a wheel of the Python index


def _bring_package(package: Package, out: Path, where: str) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = _unpack(_wheel(package, where), Path(scratch), where)
        ggufs = sorted(folder.glob("*.gguf"))
        if not ggufs:
            model_folder.copy(folder, out, where=where)
            return []
        from stages.lib import gguf_weights

        return gguf_weights.convert(ggufs[0], out, where=where)


def _wheel(package: Package, where: str) -> Path:
    """Return the verified wheel in the download cache; ask the index only where it is absent."""
    cached = files.cache("downloads") / package.sha256
    if cached.is_file():
        found = files.sha256(cached)
        if found != package.sha256:
            raise FetchError(
                f"{cached}: is damaged, its SHA-256 is {found}; delete it and run again"
            )
        return cached
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(package.package, Path(scratch), cached, where)
        found = files.sha256(wheel)
        if found != package.sha256:
            raise FetchError(
                f"{where}.sha256: {wheel.name} has SHA-256 {found}, not {package.sha256}; "
                "nothing of it is kept"
            )
        with files.whole_file(cached) as partial:
            shutil.copyfile(wheel, partial)
    return cached


def _download(requirement: str, folder: Path, cached: Path, where: str) -> Path:
    """Let pip, with its own configuration of indexes, mirrors and proxies, download one wheel."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(folder),
        requirement,
    ]
    on_terminal = sys.stdout.isatty()  # pip draws its progress bar there, and nowhere else
    if not on_terminal:
        tqdm.write(f"{where}: downloading {requirement}", file=sys.stderr)
    done = subprocess.run(
        command,
        stdout=None if on_terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise FetchError(
            f"{where}: {_why(done.stderr, requirement)}, or put the wheel there as {cached}"
        )
    return wheels[0]


def _why(stderr: str, requirement: str) -> str:
    if "No module named pip" in stderr:
        return (
            f"{sys.executable} has no pip to download {requirement} with; run `python -m ensurepip`"
        )
    if re.search(
        r"connection broken|Retrying \(|NewConnectionError|ConnectTimeout|Failed to establish",
        stderr,
    ):
        return (
            f"{requirement} is not in the download cache and the Python index cannot be reached; "
            "go online, set PIP_INDEX_URL to a mirror"
        )
    if "(from versions: none)" in stderr:
        return (
            f"pip finds no version of {requirement.partition('==')[0]}: the index is out of reach "
            "or does not have it; correct the name, set PIP_INDEX_URL to an index that has it"
        )
    errors = [
        line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")
    ]
    reason = " ".join((errors[0] if errors else stderr[-200:] or "no wheel came").split())
    return f"pip cannot download {requirement}: {reason}; correct name and version"


def _unpack(wheel: Path, scratch: Path, where: str) -> Path:
    """Extract the one model of a wheel, a .gguf file or a folder with safetensors; return where."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            for name in _members_of_model([info.filename for info in members], where):
                # Only the last part of the name is used, so nothing can land outside.
                with (
                    archive.open(name) as content,
                    (scratch / PurePosixPath(name).name).open("wb") as out,
                ):
                    shutil.copyfileobj(content, out)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{where}: the wheel cannot be opened: {error}") from None
    return scratch


def _members_of_model(names: list[str], where: str) -> list[str]:
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise FetchError(
                f"{where}: the wheel names {name!r}, a path outside itself; it is not opened"
            )
    ggufs = [name for name in names if name.endswith(".gguf")]
    folders = sorted(_folders(names))
    if len(ggufs) == 1 and not folders:
        return ggufs
    if len(folders) == 1 and not ggufs:
        return [name for name in names if str(PurePosixPath(name).parent) == folders[0]]
    models = ", ".join([*ggufs, *folders]) or "none"
    raise FetchError(
        f"{where}: the wheel must hold one model, a .gguf file or a folder with config.json and "
        f"safetensors; it holds {models} among {len(names)} files "
        f"({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"
    )


def _folders(names: list[str]) -> set[str]:
    """Folders of the archive that hold both a config.json and safetensors."""
    paths = [PurePosixPath(name) for name in names]
    configured = {str(path.parent) for path in paths if path.name == "config.json"}
    return configured & {str(path.parent) for path in paths if path.suffix == ".safetensors"}


# --- a repository of the hub


def _bring_hub(hub: Hub, out: Path, where: str) -> list[str]:
    from huggingface_hub import snapshot_download

    patterns = hub.files or [f"*{suffix}" for suffix in PATTERN_SUFFIXES]
    try:
        snapshot = Path(
            snapshot_download(
                hub.repository,
                revision=hub.revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:  # of several HTTP libraries; each becomes the same line
        raise FetchError(f"{where}: {_why_not_hub(error, hub)}") from None
    # The cache may hold files that another program asked for, so the patterns choose again.
    model_folder.copy(snapshot, out, where=f"{where}: {hub.repository}", patterns=patterns)
    return []


def _why_not_hub(error: Exception, hub: Hub) -> str:
    from huggingface_hub import errors

    name = f"{hub.repository} at {hub.revision[:12]}"
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{hub.repository}"
        return f"{name} is gated; accept its licence at {page} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub.repository} has no commit {hub.revision}; its commits are listed on the hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no repository {hub.repository}, or hides it; correct it, set HF_TOKEN"
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"{name} is in the hub cache only in part, and the hub cannot be reached; go online"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{name} is not in the hub cache and the hub cannot be reached; go online, set "
            "HF_ENDPOINT to a mirror, or name a folder with 'source: local'"
        )
    reason = " ".join(str(error).split())[:200]
    return f"{name} cannot be downloaded: {type(error).__name__}: {reason}"
