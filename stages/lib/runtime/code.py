"""Which files of stages/ a file runs, found in their import statements, and what runs beneath."""

import ast
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[3]
LIBRARIES = "torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate"


def run_by(*files: Path) -> set[Path]:
    """Return every Python file of this project that running `files` executes, them included."""
    found: set[Path] = set()
    waiting = set(files)
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= imports(file) - found
    return found


def beneath() -> list[str]:
    """Return what results depend on below this project: versions of libraries, and the machine."""
    return [*(metadata.version(name) for name in LIBRARIES), platform.machine()]


def imports(file: Path) -> set[Path]:
    """Return what one file imports of this project, in functions too, but not for typing."""
    found: set[Path] = set()
    for node in _executed(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            target = ROOT / Path(*name.split("."))
            both = target.with_suffix(".py"), target / "__init__.py"
            found |= {f for f in both if f.is_file() and f.stat().st_size}
    return found


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those under `if TYPE_CHECKING`."""
    yield node
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    for child in ast.iter_child_nodes(node):
        yield from _executed(child)
