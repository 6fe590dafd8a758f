"""Read all that DVC keeps, and say what is not what its name says.

    python -m stages.lib.commands.verify [--remove]

Objects of the cache are named by their content. With --remove those that are damaged go, and so
does what was restored from them, so that `dvc repro` makes it again. So do dvc.lock and DVC's note
of what it reads and writes, .dvc/tmp/rwlock, where a kill cut them short, and DVC would refuse for
ever: `dvc repro` brings dvc.lock back from DVC's cache of runs, without running what had run. An
output that differs though its objects are whole was changed by hand, and stays. The status is 1
where something is wrong and stays.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from tqdm import tqdm

from stages.lib.commands.refusal import in_one_line
from stages.lib.runtime import files, hashes
from stages.lib.runtime.schema import Refusal


class DamageError(Refusal):
    """What is kept is not what it was."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output of the graph, as dvc.lock has it."""

    path: Path
    md5: str


def objects(cache: Path) -> list[Path]:
    """Return the objects of a cache, as files/md5/ab/cdef… or files/md5/ab/cdef….dir."""
    return sorted(path for path in cache.glob("[0-9a-f][0-9a-f]/*") if path.is_file())


def damaged(found: Sequence[Path]) -> list[Path]:
    """Return the objects whose content is not what their names say."""
    size = sum(path.stat().st_size for path in found)
    bad = []
    with tqdm(total=size, desc="verify", unit="B", unit_scale=True) as bar:
        for path in found:
            if hashes.of(path) != (path.parent.name + path.name).removesuffix(".dir"):
                bad.append(path)
            bar.update(path.stat().st_size)
    return bad


def outputs(repo: Repo) -> Iterator[Output]:
    """Yield the outputs that dvc.lock names and that are here."""
    for out in repo.index.outs:
        path = Path(out.fs_path)
        if out.hash_info and path.exists():
            yield Output(path.relative_to(repo.root_dir), out.hash_info.value)


def verify(*, remove: bool) -> str:
    """Read everything; return what there is to say.

    Raises:
        DamageError: something is damaged and `remove` is not asked for, or was changed by hand.
    """
    with Repo() as repo:
        cut = list(_cut_short(repo))
        if cut and not remove:
            raise DamageError(
                f"cut short: {_some(cut)}; --remove deletes that, and `dvc repro` goes on"
            )
        for path in cut:
            path.unlink()
        cache = Path(repo.cache.local.path)
        found = objects(cache)
        bad = damaged(found)
        made = list(outputs(repo))
        changed = [out for out in made if hashes.of(out.path) != out.md5]
    names = {path.parent.name + path.name for path in bad}
    restored = [out.path for out in changed if names & made_of(out, cache)]
    edited = [out.path for out in changed if out.path not in restored]
    told = [f"cut short: {_some(cut)}; deleted"] if cut else []
    if not names and not changed:
        whole = (
            f"{len(found):,} objects of DVC's cache are what their names say, and {len(made):,} "
            "outputs what dvc.lock says"
        )
        return "; ".join([*told, whole])
    gone = [*map(str, restored), *(f"{name} in DVC's cache" for name in sorted(names))]
    if gone:
        done = "deleted" if remove else "--remove deletes them"
        told.append(f"damaged: {_some(gone)}; {done}, and `dvc repro` makes them again")
    if edited:
        advice = "delete them, and `dvc checkout` brings back what was there"
        told.append(f"not what dvc.lock says, and left alone: {_some(edited)}; {advice}")
    if remove:
        for path in [*bad, *restored]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if edited or not remove:
        raise DamageError("; ".join(told))
    return "; ".join(told)


def _cut_short(repo: Repo) -> Iterator[Path]:
    """Yield what DVC cannot read of its own files; it does not write them whole or not at all."""
    note, lock = Path(repo.tmp_dir) / "rwlock", Path("dvc.lock")
    if note.is_file() and note.stat().st_size:
        try:
            files.read_json(note)
        except files.RecordError:
            yield note.relative_to(repo.root_dir)
    if lock.is_file():
        try:
            Lockfile(repo, lock.name).load()
        except DvcException:
            yield lock


def made_of(out: Output, cache: Path) -> set[str]:
    """Return the names of an output's objects: its own, and of a folder those of its files."""
    own = cache / out.md5[:2] / out.md5[2:]
    if not (out.md5.endswith(".dir") and own.is_file()):
        return {out.md5}
    try:
        return {out.md5, *(row["md5"] for row in files.read_json(own))}
    except (files.RecordError, TypeError, KeyError):  # the list itself is damaged
        return {out.md5}


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:6])) + (" …" if len(names) > 6 else "")


@in_one_line
def main() -> None:
    """Read the command line, verify, print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--remove", action="store_true", help="delete what is damaged")
    print(verify(remove=parser.parse_args().remove))


if __name__ == "__main__":
    sys.exit(main())
