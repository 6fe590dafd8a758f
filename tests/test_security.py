"""Nothing that is read runs code, nothing secret is written down, no text moves a terminal."""

import ast
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from stages.lib import scorers
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal

ROOT = Path(__file__).parent.parent
CALLS = {
    (file.relative_to(ROOT).as_posix(), node.lineno, ast.unparse(node.func)): node
    for file in sorted((ROOT / "stages").rglob("*.py"))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call)
}
"""Every call in the project, by file, line and what is called."""
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "joblib.load", "dill.load", "np.load", "numpy.load", "pandas.read_pickle", "pd.read_pickle",
    "yaml.load", "yaml.unsafe_load", "marshal.loads", "shelve.open", "tarfile.open",
}  # fmt: skip


def given(call, name):
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_is_called_that_runs_what_it_reads():
    assert len(CALLS) > 3000, "the project is not being looked at"
    assert [where for where in CALLS if where[2] in FORBIDDEN] == []
    shells = [where for where, call in CALLS.items() if given(call, "shell") not in (None, "False")]
    assert shells == []


def test_torch_loads_weights_and_no_objects():
    loads = {where: call for where, call in CALLS.items() if where[2] == "torch.load"}
    assert loads, "else this test can go"
    assert [w for w, call in loads.items() if given(call, "weights_only") != "True"] == []


def test_yaml_is_read_without_its_tags_for_objects():
    readers = {where: call for where, call in CALLS.items() if where[2] == "YAML"}
    assert readers
    assert [w for w, call in readers.items() if given(call, "typ") != "'safe'"] == []


def test_no_model_is_loaded_that_could_bring_code():
    """All go through stages/lib/pretrained.py, which says so; peft's adapters are safetensors."""
    loads = {
        where: call for where, call in CALLS.items()
        if where[2].endswith(".from_pretrained") and "PeftModel" not in where[2]
    }  # fmt: skip
    for (file, line, _), call in loads.items():
        spread = {ast.unparse(k.value) for k in call.keywords if k.arg is None}
        careful = "pretrained.SAFE" in spread or file == "stages/lib/pretrained.py"
        assert careful, f"{file}:{line}"
    trusting = [w for w, call in CALLS.items() if given(call, "trust_remote_code") == "True"]
    assert trusting == []


@pytest.fixture
def pickles(tmp_path):
    data = Path(find_spec("profanity_check").origin).parent / "data"
    return shutil.copytree(data, tmp_path / "data")


def test_the_pickles_of_the_independent_scorer_are_the_known_ones(pickles):
    scorers._require_known(pickles)
    assert {file.name for file in pickles.glob("*.joblib")} == scorers.PICKLES.keys()


@pytest.mark.parametrize("name", scorers.PICKLES)
def test_a_changed_pickle_is_refused_before_it_is_loaded(pickles, name):
    with (pickles / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        RecordError, match=rf"{name}: is not the file of alt-profanity-check 1\.9\.1"
    ):
        scorers._require_known(pickles)


def test_an_absent_pickle_is_refused_too(pickles):
    (pickles / "model.joblib").unlink()
    with pytest.raises(RecordError, match="install that version again"):
        scorers._require_known(pickles)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"), ("\x1b[2Jgone", r"\x1b[2Jgone"), ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"), ("\ud800", r"\ud800"), ("grüße, 你好 🙂", "grüße, 你好 🙂"),
    ],
)  # fmt: skip
def test_a_refusal_quotes_any_text_as_one_line_that_moves_no_cursor(text, shown):
    assert str(Refusal(f"it says '{text}'")) == f"it says '{shown}'"
