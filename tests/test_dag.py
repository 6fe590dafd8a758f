"""dvc.yaml says what the code does: DVC trusts it, so these tests make it true."""

import ast
import importlib
import inspect

import pytest
from graph import (
    ALGORITHMS,
    DECLARED,
    ROOT,
    STAGES,
    argument_paths,
    code_deps,
    code_run_by,
    edges,
    entry_call,
    relative,
)

from stages.lib.algorithms import registry
from stages.lib.runtime import code


def test_every_stage_file_is_a_stage_and_every_stage_a_file():
    files = {file.stem for file in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert files == STAGES.keys()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_runs(name):
    # DVC does not follow imports (github.com/treeverse/dvc/issues/9195): a helper left out of
    # deps changes results without a re-run; one left in re-runs training for nothing.
    # `python tests/graph.py` prints the lists.
    assert code_deps(name) == relative(code_run_by(ROOT / "stages" / f"{name}.py"))


@pytest.mark.parametrize("name", registry.NAMES)
def test_an_algorithm_runs_no_other_ones_code(name):
    own = ALGORITHMS / name
    others = {f for f in code.run_by(*own.glob("*.py")) if f.parent.parent == ALGORITHMS} - set(
        own.iterdir()
    )
    assert not others


@pytest.mark.parametrize("name", STAGES)
def test_every_path_on_the_command_line_is_an_edge_of_the_graph_and_every_edge_is_there(name):
    declared = {e for e in edges(name) if not e.startswith(("stages/", "reports/runs"))}
    assert expand(name, argument_paths(name)) == declared


def expand(name, words):
    """`report` is given the folder that it fills; every other stage names its files one by one."""
    if name == "report":
        outputs = {e for e in edges(name) if e.startswith("reports/") and "runs" not in e}
        given = {"reports/labels.json", "reports/reward.json"}
        inputs = {e for e in outputs if e in given or e.startswith("reports/align")}
        return (words - {"reports"}) | (outputs - inputs)
    return words


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_writes_its_identity_for_mlflow(name):
    key = "@${key}" if "foreach" in DECLARED[name] else ""
    # `report` reads the folder of the others, so that its own lies beside it.
    folder = "reports" if name == "report" else "reports/runs"
    assert f"{folder}/{name}{key}.json" in STAGES[name]["outs"]


def test_the_report_depends_on_the_runs_of_every_other_stage():
    # Where a stage runs again and gives the same bytes, DVC skips all that follows: without this
    # edge nothing would complete the new configuration's pipeline run in MLflow.
    assert "reports/runs" in STAGES["report"]["deps"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_tracks_exactly_the_sections_it_loads(name):
    loaded = {section.replace("{name}", "${key}") for section in entry_call(name)}
    assert set(STAGES[name]["params"]) == loaded


@pytest.mark.parametrize("name", STAGES)
def test_run_takes_one_argument_for_each_section_and_each_word_of_the_command_line(name):
    run = importlib.import_module(f"stages.{name}").run
    kinds = [p.kind for p in inspect.signature(run).parameters.values()]
    words = STAGES[name]["cmd"].split(f"python -m stages.{name} ")[1].split()
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == len(entry_call(name))
    assert kinds.count(inspect.Parameter.KEYWORD_ONLY) == len(words)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_a_description_an_outsider_understands(name):
    assert len(STAGES[name]["desc"].split()) >= 8


def test_stages_do_not_import_each_other_and_lib_imports_no_stage():
    for file in (ROOT / "stages").rglob("*.py"):
        assert not {
            i
            for i in code.imports(file) - {file}
            if i.parent == ROOT / "stages" and i.stem != "__init__"
        }, file


OWNERS = {
    "mlflow": {"runtime/tracking/run", "runtime/tracking/store", "runtime/tracking/lineage"},
    "accelerate": {"runtime/processes"},
    "dvc": {
        "runtime/declared",
        "commands/export",
        "commands/plan",
        "commands/refusal",
        "commands/revisions",
        "commands/verify",
    },
    "peft": {"models"},
    "bitsandbytes": {"models"},
    "trl": {f"algorithms/{name}/trainer" for name in ("dpo", "kto", "rloo")},
    "datasets": {"importers", *(f"algorithms/{name}/trainer" for name in ("dpo", "kto", "rloo"))},
    "plotly": {"reporting/figures", "reporting/page"},
    "evalica": {"labels/agreement"},
    "lm_eval": {"standard_tasks"},
}


@pytest.mark.parametrize("package", OWNERS)
def test_each_heavy_package_has_one_owner(package):
    users = set()
    for file in (ROOT / "stages").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            named = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = [node.module]
            if any(name.split(".")[0] == package for name in named):
                users.add(
                    str(file.relative_to(ROOT / "stages").with_suffix("")).removeprefix("lib/")
                )
    assert users == OWNERS[package]


def test_functions_named_run_stay_readable():
    for name in STAGES:
        source = inspect.getsource(importlib.import_module(f"stages.{name}").run)
        assert len(source.splitlines()) <= 60, f"{name}.run is {len(source.splitlines())} lines"
