"""README says what is there: every command, every path, the graph, and the numbers it quotes."""

import json
import re

import pytest
from graph import DECLARED, ROOT, STAGES, paths
from ruamel.yaml import YAML

from stages.lib.commands import readme
from stages.lib.runtime.schema import Refusal

README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "data/labels/README.md",
        "data/preferences/README.md",
        "data/provocations/README.md",
        "data/revisions/README.md",
        "data/scores/README.md",
        "data/sources/README.md",
        "docs/cluster.md",
        "docs/evaluation.md",
        "docs/labels.md",
        "docs/preferences.md",
        "docs/team.md",
        "docs/scale-up.md",
    )
]
MADE = [
    f"{path}"
    for stage in STAGES.values()
    for key in ("outs", "metrics", "plots")
    for path in paths(stage.get(key, []))
]
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_make_target_exists(document):
    named = set(
        re.findall(
            r"make (\w+)(?=[`\s])",
            "\n".join(re.findall(r"`[^`]*`|```.*?```", document.read_text(), flags=re.S)),
        )
    )
    assert named <= TARGETS | {"PYTHON"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_path_named_is_in_the_repository_or_made_by_the_graph(document):
    made = [re.sub(r"\$\{[^}]*\}", "[^/]+", path) for path in MADE]
    for path in re.findall(
        r"(?<![\w/.])(?:stages|data|models|reports|tests|profiles)/[\w./@-]*[\w]",
        document.read_text(),
    ):
        if (
            "NAME" in path
            or path == "data/labels/ann.jsonl"
            or path.startswith(("data/rounds", "reports/harness"))
        ):
            continue  # a file of the user's, or of a command
        there = (ROOT / path).exists() or any(re.match(f"{pattern}(/|$)", path) for pattern in made)
        assert there or any(pattern.startswith(path) for pattern in made), path


def test_the_graph_in_the_readme_is_the_graph():
    drawn = set(re.findall(r"^\s+(\w+) --> (\w+)$", README, flags=re.M))
    assert drawn == edges()


def edges():
    """(producer, consumer) of every pair of stages of which one reads what the other writes.

    The run files that `report` completes MLflow from come from every stage, and are not drawn.
    """
    wrote = {
        name: [p for key in ("outs", "metrics", "plots") for p in paths(stage.get(key, []))]
        for name, stage in STAGES.items()
    }
    found = set()
    for consumer, stage in STAGES.items():
        for dep in paths(stage["deps"]) - {"reports/runs"}:
            for producer, outs in wrote.items():
                if producer != consumer and any(touches(d, o) for d in meant(dep) for o in outs):
                    found.add((producer, consumer))
    return found


ENTRIES = {
    "${item.model}": "models/base",
    "${item.reads}": "models/base",
    "${item.adapter}": "models/base",
    "${item.attacker}": "models/base",
    "${item.target}": "models/base",
    "${item.proposal}": "models/base",
    "${item.reward}": "models/reward",
    "${reward.reads}": "models/base",
    "${reward.starts_from}": "models/pretrained/${key}",
}
POLICIES = YAML(typ="safe").load(ROOT / "params.yaml")["policies"].values()


def meant(dep):
    """What a dependency stands for, in any entry of params.yaml."""
    key = re.fullmatch(r"\$\{item\.(starts_from|learns_from|prompts)\}", dep)
    if key:
        off = {"data/graded/${key}"} if key[1] != "starts_from" else set()
        return off | {entry[key[1]] for entry in POLICIES}
    return {ENTRIES.get(dep, dep).replace("${evaluate.split}.jsonl", "test.jsonl")}


def touches(dep, out):
    """Whether a dependency is an output, lies in one, or is the folder that holds one."""
    out = out.replace("models/${key}", "models/base") if out == "models/${key}" else out
    return dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")


def test_every_stage_is_in_the_readmes_table():
    named = re.findall(r"^\| `(\w+)(?:@(\w))?` \|", README, flags=re.M)
    assert [name for name, _ in named] == list(STAGES)
    assert {name for name, key in named if key} == {
        n for n, s in DECLARED.items() if "foreach" in s
    }


def test_every_command_of_dvc_names_parameters_that_exist():
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    for setting in re.findall(r"-S ([\w.]+)=", README):
        place = params
        for key in setting.split("."):
            place = place[key]


def test_the_table_in_the_readme_is_what_make_readme_writes():
    assert readme.renewed(README, readme.current(ROOT)) == README


def test_a_readme_without_a_place_for_the_table_is_refused():
    with pytest.raises(Refusal, match="has no lines <!-- numbers -->"):
        readme.renewed("# Plumbline", "| |")


def test_the_numbers_in_the_readme_are_those_of_the_run_in_git():
    block = re.search(r"<!-- verdict -->\n(.*?)<!-- /verdict -->", README, flags=re.S).group(1)
    found = json.loads((ROOT / "reports/metrics.json").read_text())
    for key in (
        f"{name}/emt_effect{end}" for name in ("dpo", "ppo") for end in ("", "_low", "_high")
    ):
        assert f"{abs(found[key]):.3f}" in block, key
