"""params.yaml and the profiles are read strictly: what the code cannot use, it refuses by name."""

import importlib
import inspect
import re
import typing
from typing import Annotated, Literal

import pytest
from graph import ROOT, STAGES, entry_call
from pydantic import Field
from ruamel.yaml import YAML

from stages.lib.runtime import params
from stages.lib.runtime.schema import Refusal, Strict, check

FILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]


class Toy(Strict):
    beta: Annotated[float, Field(gt=0)]
    """1/nats."""
    loss: Literal["dpo", "ipo"]
    seed: int | None


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return _write


def test_a_fitting_section_is_read(write):
    path = write("toy: {beta: 5e-7, loss: dpo, seed: null}")
    assert params.load("toy", Toy, path) == Toy(beta=5e-7, loss="dpo", seed=None)
    assert (
        params.load("deep.toy", Toy, write("deep: {toy: {beta: 1, loss: ipo, seed: 3}}")).seed == 3
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "toy: {bta: 0.1, loss: dpo, seed: 1}",
            r"params.yaml: toy\.bta is not a parameter of Toy; did you mean 'beta'\?$",
        ),
        (
            "toy: {zzz: 1, beta: 0.1, loss: dpo, seed: 1}",
            r"toy\.zzz is not a parameter of Toy; it takes beta, loss, seed$",
        ),
        ("toy: {loss: dpo, seed: 1}", r"toy\.beta is missing \(1/nats\)$"),
        ("toy: {beta: high, loss: dpo, seed: 1}", r"toy\.beta must be a valid number, not 'high'$"),
        ("toy: {beta: 0, loss: dpo, seed: 1}", r"toy\.beta must be greater than 0, not 0$"),
        ("toy: {beta: .nan, loss: dpo, seed: 1}", r"toy\.beta must be a finite number, not nan$"),
        ("toy: {beta: 0.1, loss: kto, seed: 1}", r"toy\.loss must be 'dpo' or 'ipo', not 'kto'$"),
        (
            "toy: {beta: 0.1, loss: dpo, seed: true}",
            r"toy\.seed must be a valid integer, not True$",
        ),
        ("tow: {beta: 0.1}", r"params.yaml has no 'toy'; it has tow$"),
        ("toy: [1", r"params.yaml: not YAML: "),
        ("- a", r"params.yaml: must be a mapping of sections, not list$"),
    ],
)
def test_a_misfit_is_refused_and_named(write, text, message):
    with pytest.raises(params.ParamError, match=message) as refusal:
        params.load("toy", Toy, write(text))
    assert "\n" not in str(refusal.value)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(params.ParamError, match="no such file; run from the repository root"):
        params.load("toy", Toy, tmp_path / "params.yaml")


def sections(text):
    """(section, type) of every stage, `{name}` expanded by the file's own entries."""
    for stage in STAGES:
        run = importlib.import_module(f"stages.{stage}").run
        types = typing.get_type_hints(run, include_extras=True)
        names = [
            p.name
            for p in inspect.signature(run).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        for section, name in zip(entry_call(stage), names, strict=True):
            keys = text[section.split(".")[0]] if "{name}" in section else [None]
            for key in keys:
                yield section.format(name=key), types[name]


def first_part(section):
    return section.split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_profile_is_a_complete_and_valid_params_file(file):
    text = YAML(typ="safe").load(file)
    read = {
        name for stage in STAGES for name in map(first_part, entry_call(stage)) if not text[name]
    }
    for section, kind in sections(text):
        params.load(section, kind, file)
        read.add(first_part(section))
    assert read == set(text), "a section that no stage reads, or the other way round"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_the_shares_of_the_roles_sum_to_one(file):
    assert sum(YAML(typ="safe").load(file)["prompts"]["split"]["shares"].values()) == pytest.approx(
        1
    )


def test_every_parameter_says_what_it_is():
    """Each key of params.yaml that has a value has a comment where it first stands."""
    explained, bare = set(), set()
    for line in (ROOT / "params.yaml").read_text().splitlines():
        body, _, comment = line.partition("#")
        key, _, value = body.strip().partition(":")
        if value.strip() and not key.startswith("-"):
            (explained if comment else bare).add(key)
    assert bare <= explained, f"no comment says what these are: {sorted(bare - explained)}"


def test_yaml_is_read_as_dvc_reads_it(write):
    """YAML 1.2: `no` is text and 5e-7 a number; PyYAML would give False and text."""
    found = params.read(write("a: no\nb: 5e-7\n"))
    assert found == {"a": "no", "b": 5e-7}


def test_a_refusal_names_the_place_inside_nested_records():
    class Inner(Strict):
        n: int

    class Outer(Strict):
        inner: dict[str, Inner]

    with pytest.raises(Refusal, match=r"^f.json:3: inner\.a\.n must be a valid integer, not 'x'$"):
        check({"inner": {"a": {"n": "x"}}}, Outer, "f.json:3")


def test_the_entries_that_are_off_by_default_are_valid_when_they_are_taken_in():
    from stages.lib.algorithms.registry import NAMES, Policy
    from stages.lib.pretraining import Pretrain
    from stages.provoke import Provoker
    from stages.revise import Reviser

    text = (ROOT / "params.yaml").read_text()
    shown = re.sub(r"^  # (?=(  )*\w+:)", "  ", text, flags=re.M)
    shown = re.sub(r"^(\w+): \{\}", r"\1:", shown, flags=re.M)
    before, after = (YAML(typ="safe").load(one) for one in (text, shown))
    for section, kind in (("pretrain", Pretrain), ("provokers", Provoker), ("revisers", Reviser)):
        assert not before[section]
        assert after[section]
        for name, entry in after[section].items():
            check(entry, kind, f"{section}.{name}")
    there, more = before["policies"], after["policies"]
    assert {"sft", "rloo"} <= more.keys() - there.keys()
    for name, entry in more.items():
        check(entry, Policy, f"policies.{name}")
    assert {entry["algorithm"] for entry in more.values()} == set(NAMES)
