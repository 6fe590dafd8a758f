"""What dvc.yaml declares for one stage, its templates resolved by DVC itself."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Declared:
    """The inputs of one stage, relative to the repository's root."""

    name: str
    deps: tuple[Path, ...]
    params: tuple[str, ...]
    """Dotted keys of params.yaml."""

    @property
    def data(self) -> tuple[Path, ...]:
        """Inputs that are no code."""
        return tuple(path for path in self.deps if path.suffix != ".py")


def stage(name: str) -> Declared:
    """Return what a stage of the graph declares, `foreach` entries by `<stage>@<entry>`."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    with Repo() as repo:
        found = repo.stage.load_one(name=name)
        keys = [k for dep in found.deps if isinstance(dep, ParamsDependency) for k in dep.params]
        deps = [Path(d.def_path) for d in found.deps if not isinstance(d, ParamsDependency)]
    return Declared(name, tuple(deps), tuple(keys))
