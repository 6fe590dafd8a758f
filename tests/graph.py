"""The graph as dvc.yaml declares it and as the code lives it, for the tests that hold them together."""

import ast
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
DECLARED = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in DECLARED.items()}


def paths(entries) -> set[str]:
    """Paths of a deps, outs, metrics or plots list, whose entries are text or {path: options}."""
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def edges(name: str) -> set[str]:
    """Every path that a stage declares."""
    stage = STAGES[name]
    return set().union(*(paths(stage.get(key, [])) for key in ("deps", "outs", "metrics", "plots")))


def imports(file: Path) -> set[Path]:
    """The files of stages/ that one file imports anywhere, in functions too, but not for typing."""
    found: set[Path] = set()
    for node in _executed(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            target = ROOT / Path(*name.split("."))
            both = target.with_suffix(".py"), target / "__init__.py"
            found |= {f for f in both if f.is_file() and f.stat().st_size}
    return found


def _executed(node):
    """Every node but those under `if TYPE_CHECKING`."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from _executed(child)


def code_run_by(file: Path) -> set[Path]:
    """Every file of stages/ that running `file` executes, itself included, and the pages it fills."""
    found, waiting = set(), {file}
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= imports(file) - found
    found |= {asset for file in found for asset in assets(file)}
    return {package(file) for file in found}


def package(file: Path) -> Path:
    """The outermost package around a file that says what it is for; otherwise the file."""
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
