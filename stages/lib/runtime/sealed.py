"""Says of a folder that survives kills whether it is what was written.

A full disk cuts files short, a power cut loses what was not yet on the disk, and a bit that flips
in a tensor loads like any other. The seal is written last and has the hash of every file.
"""

from pathlib import Path

from stages.lib.runtime import files

SEAL = "sealed.json"


def seal(folder: Path) -> None:
    """Write down what a folder holds; nothing may be added to it afterwards."""
    files.write_json(folder / SEAL, _hashes(folder))


def is_whole(folder: Path) -> bool:
    """Say whether a folder was sealed and has held the same since."""
    try:
        return bool(files.read_json(folder / SEAL) == _hashes(folder))
    except files.RecordError:  # there is no seal, or a half of one
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """Hash of each file, by its place in the folder, which may itself not be in place yet."""
    names = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    return {
        str(name): files.sha256(folder / name)
        for name in names
        if name.name != SEAL and not files.is_partial(name)
    }
