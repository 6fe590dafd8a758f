"""The graph as dvc.yaml declares it and as the code lives it, for the tests that hold them together."""

import ast
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # where this file is run as a script

from stages.lib.runtime import code  # noqa: E402

DECLARED = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in DECLARED.items()}


def paths(entries) -> set[str]:
    """Paths of a deps, outs, metrics or plots list, whose entries are text or {path: options}."""
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def edges(name: str) -> set[str]:
    """Every path that a stage declares."""
    stage = STAGES[name]
    return set().union(*(paths(stage.get(key, [])) for key in ("deps", "outs", "metrics", "plots")))


ALGORITHMS = ROOT / "stages/lib/algorithms"
OWN = ALGORITHMS / "${item.algorithm}"
"""A policy depends on the folder of its own algorithm; the registry finds it by name."""


def code_run_by(file: Path) -> set[Path]:
    """Every file of stages/ that running `file` executes, itself included, and the pages it fills."""
    found = code.run_by(file)
    if ALGORITHMS / "registry.py" in found:
        found = code.run_by(file, *ALGORITHMS.glob("*/*.py"))
    found |= {asset for file in found for asset in assets(file)}
    return {package(file) for file in found}


def package(file: Path) -> Path:
    """The outermost package around a file that says what it is for; otherwise the file."""
    if file.parent.parent == ALGORITHMS:
        return OWN
    fronts = [folder / "__init__.py" for folder in reversed(file.relative_to(ROOT).parents)]
    described = [f.parent for f in fronts if (ROOT / f).is_file() and (ROOT / f).stat().st_size]
    return ROOT / described[0] if described else file


def assets(file: Path) -> set[Path]:
    """Files beside a module, neither code nor cache, that it names in its text."""
    beside = [p for p in file.parent.iterdir() if p.is_file() and p.suffix not in {".py", ".pyc"}]
    text = file.read_text()
    return {p for p in beside if p.name in text}


def relative(files) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in files}


def code_deps(name: str) -> set[str]:
    return {dep for dep in paths(STAGES[name]["deps"]) if dep.startswith("stages/")}


def argument_paths(name: str) -> set[str]:
    """Paths on a stage's command line; `${key}` alone is its name and no path."""
    _, arguments = STAGES[name]["cmd"].split(f"python -m stages.{name} ")
    return {word for word in arguments.split() if word != "${key}"}


def entry_call(name: str) -> list[str]:
    """The sections a stage hands to `entry.main`."""
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text())
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "entry.main"
    ]
    return [argument.value for argument in call.args[1:]]


if __name__ == "__main__":  # prints what dvc.yaml should list, for a person to paste
    for stage in STAGES:
        print(stage)
        for path in sorted(relative(code_run_by(ROOT / "stages" / f"{stage}.py"))):
            print(f"        - {path}")
