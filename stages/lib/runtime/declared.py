"""What dvc.yaml declares for one stage and around it, resolved and hashed by DVC itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Declared:
    """The inputs of one stage and of its whole graph; paths are relative to the root."""

    name: str
    deps: tuple[Path, ...]
    params: tuple[str, ...]
    """Dotted keys of params.yaml."""
    data: Mapping[str, str]
    """The stage's inputs that are no code, by path, with the hash that dvc.lock gives them."""
    sources: Mapping[str, str]
    """Inputs of the graph that no stage makes (code, prompts, word lists), likewise."""
    stages: tuple[str, ...]
    """Every stage of the graph, `foreach` entries as `<stage>@<entry>`."""


def stage(name: str) -> Declared:
    """Return what a stage of the graph declares, and what the graph around it does."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    with Repo() as repo:
        index = repo.index
        (found,) = [one for one in index.stages if one.addressing == name]
        keys = [k for dep in found.deps if isinstance(dep, ParamsDependency) for k in dep.params]
        own = {d.def_path: d for d in found.deps if not isinstance(d, ParamsDependency)}
        read = {d.def_path: d for d in index.deps if not isinstance(d, ParamsDependency)}
        made = [out.def_path for out in index.outs]
        sources = [path for path in sorted(read) if not any(_overlap(path, out) for out in made)]
        return Declared(
            name=name,
            deps=tuple(Path(path) for path in own),
            params=tuple(keys),
            data={p: own[p].get_hash().value for p in own if Path(p).parts[0] != "stages"},
            sources={path: read[path].get_hash().value for path in sources},
            stages=tuple(one.addressing for one in index.stages),
        )


def _overlap(a: str, b: str) -> bool:
    return Path(a).is_relative_to(b) or Path(b).is_relative_to(a)
