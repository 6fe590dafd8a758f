"""The workspace and the experiments of `dvc exp`, each as files that can be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.repo import Repo

from stages.lib.runtime.schema import Refusal


@dataclass(frozen=True, slots=True)
class Revision:
    """One state of the project: its params, results and numbers, without checking it out."""

    name: str
    """`workspace`, `HEAD`, or an experiment's name."""
    rev: str | None
    """Git commit; None for the workspace."""
    _files: Any
    """Where it is read from; None for the workspace."""

    def has(self, path: str) -> bool:
        """Whether it has this file, in git or in DVC's cache."""
        return bool(self._files.isfile(path) if self._files else Path(path).is_file())

    def read(self, path: str) -> str:
        """Return a file's text.

        Raises:
            AbsentError: it is in neither the cache nor a remote.
        """
        try:
            return str(
                self._files.read_text(path) if self._files else Path(path).read_text("utf-8")
            )
        except FileNotFoundError:
            raise AbsentError(
                f"{self.name}: {path} is not in DVC's cache; `dvc pull` or `dvc repro` brings it"
            ) from None
        except UnicodeDecodeError as error:
            raise Refusal(f"{self.name}: {path}: not UTF-8: {error}") from None


class AbsentError(Refusal):
    """DVC knows a file whose content is not at hand."""


def record(stage: str) -> str:
    """Return where a stage writes what it logged; `report` reads the folder of the others'."""
    return "reports/report.json" if stage == "report" else f"reports/runs/{stage}.json"


def workspace() -> Revision:
    """Return the files as they stand."""
    return Revision("workspace", None, None)


def head() -> Revision:
    """Return the last commit."""
    return Revision("HEAD", "HEAD", DVCFileSystem(rev="HEAD"))


def experiments(*, every_commit: bool = False) -> list[Revision]:
    """Return the experiments of the present commit, or of every commit, by name."""
    with Repo() as repo:
        listed = repo.experiments.ls(all_commits=every_commit)
    named = {name: rev for found in listed.values() for name, rev in found if rev}
    return [Revision(name, rev, DVCFileSystem(rev=rev)) for name, rev in sorted(named.items())]
