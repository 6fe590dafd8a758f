"""What is not a stage: a command refuses in one line, and is no way into the machine."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_graph import environment, shell

from stages.lib.commands import export, refusal
from stages.lib.runtime import params
from stages.lib.runtime.schema import Refusal

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "words",
    [["compare"], ["readme"], ["plan"], ["export", "dpo", "out"], ["label", "ann"], ["harness", "dpo", "x"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_refuses_a_params_file_that_is_none(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "models/policies/dpo").mkdir(parents=True)
    (tmp_path / "models/policies/dpo/adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(export, "require_whole", str)
    assert importlib.import_module(f"stages.lib.commands.{words[0]}").main() == 1
    assert capsys.readouterr().err == (
        "ParamError: params.yaml:2: 'seed' stands here a second time; rename it\n"
    )


def test_the_params_of_a_revision_are_named_by_it():
    with pytest.raises(params.ParamError, match=r"^HEAD: params.yaml: must be a mapping"):
        params.parse("- 1\n", "HEAD: params.yaml")
    with pytest.raises(params.ParamError, match=r"^params.yaml has no 'report'; it has seed$"):
        params.part({"seed": 1}, "report")


def test_what_dvc_refuses_is_a_line_of_a_command_as_well(tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text("policies: 1\n")
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(words, cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plan"])
    assert importlib.import_module("stages.lib.commands.plan").main() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "dvc.yaml" in said


# ---------------------------------------------------------------------- files of the graph, spoilt


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """A repository with files as the graph writes them, as far as a command reads them."""
    for name in ("params.yaml", "dvc.yaml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    for words in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["git", "add", "params.yaml"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-qm", "a"],
    ):
        shell(tmp_path, *words)
    (tmp_path / "reports").mkdir()
    (tmp_path / "models/policies/dpo").mkdir(parents=True)
    (tmp_path / "models/policies/dpo/adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def told(words, monkeypatch, capsys):
    """The line that a command ends with, and its status."""
    monkeypatch.setattr("sys.argv", words)
    status = importlib.import_module(f"stages.lib.commands.{words[0]}").main()
    said = capsys.readouterr().err.rpartition("revision/s]\n")[2]  # after a progress bar
    assert said.count("\n") <= 1, said
    return status, said


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"policies": 3}', '{"policies": {"dpo": 1}}']
)
def test_a_comparison_that_is_none_is_refused(spoilt, content, monkeypatch, capsys):
    (spoilt / "reports/comparison.json").write_text(content)
    (spoilt / "data/evaluations/dpo").mkdir(parents=True)
    (spoilt / "data/evaluations/dpo/answers.jsonl").write_text("")
    status, said = told(["compare"], monkeypatch, capsys)
    assert status == 1
    assert "reports/comparison.json" in said or "--baseline" in said
    monkeypatch.setattr(export, "require_whole", str)
    status, said = told(["export", "dpo", "out"], monkeypatch, capsys)
    assert status == 1
    assert "reports/comparison.json" in said
    assert not (spoilt / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_other_files_of_the_graph_that_are_none_are_refused(spoilt, content, monkeypatch, capsys):
    (spoilt / "reports/metrics.json").write_text(content)
    status, said = told(["readme"], monkeypatch, capsys)
    assert (status, "reports/metrics.json" in said) == (1, True)
    (spoilt / "reports/pipeline.json").write_text(content)
    status, said = told(["sync"], monkeypatch, capsys)
    assert (status, "reports/pipeline.json" in said) == (1, True)


def test_an_adapter_that_was_cut_short_is_not_exported(spoilt, monkeypatch, capsys):
    status, said = told(["export", "dpo", "out"], monkeypatch, capsys)
    assert status == 1
    assert said.startswith("Refusal: models/policies/dpo: is not what dvc.lock says; `make verify`")


def test_a_plan_of_no_stage_is_refused(spoilt, monkeypatch, capsys):
    (spoilt / "data/sources").mkdir(parents=True)
    status, said = told(["plan", "nonsuch"], monkeypatch, capsys)
    assert status == 1
    assert said.startswith("Refusal: nonsuch: no such stage; there are align@")


# ---------------------------------------------------------------------- terminals, pipes, shells

LOUD = """
from stages.lib.commands.refusal import in_one_line
import time
@in_one_line
def main():
    {do}
if __name__ == "__main__":
    raise SystemExit(main())
"""


def loud(tmp_path, do, **more):
    (tmp_path / "loud.py").write_text(LOUD.format(do=do))
    return subprocess.Popen(
        [sys.executable, tmp_path / "loud.py"], env=environment(tmp_path) | {"PYTHONPATH": str(ROOT)} | more,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # `make test &` ignores it
    )  # fmt: skip


def test_a_terminal_of_ascii_gets_what_it_can_show(tmp_path):
    out, errors = loud(tmp_path, "print('a – b')", PYTHONIOENCODING="ascii").communicate()
    assert (out, errors) == (b"a \\u2013 b\n", b"")


def test_who_has_seen_enough_ends_a_command_quietly(tmp_path):
    running = loud(tmp_path, "time.sleep(1); print('x' * 100_000)")
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait() == 0


def test_ctrl_c_is_no_traceback(tmp_path):
    running = loud(tmp_path, "print('here', flush=True); time.sleep(60)")
    assert running.stdout.readline() == b"here\n"
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=20)[1] == b""
    assert running.returncode == 130


def test_a_value_that_make_is_given_is_no_command(tmp_path):
    """Names go to the shell by way of the environment, where they are text."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/ready").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    os.utime(tmp_path / "requirements.lock", (0, 0))
    fake = tmp_path / ".venv/bin/python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    shutil.copy(fake, tmp_path / ".venv/bin/dvc")
    value = "`touch pwned`$(touch pwned)'\"; touch pwned #"
    asked = {
        "export": "POLICY",
        "freeze": "POLICY",
        "harness": "TASKS",
        "label": "LABELER",
        "gc": "DAYS",
    }
    for target, name in asked.items():
        given = f"{name}={value.replace('$', '$$')}"
        done = subprocess.run(
            ["make", "--no-print-directory", target, given], cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert value in done.stdout, (target, done.stdout, done.stderr)
        assert not (tmp_path / "pwned").exists(), target


def test_a_slip_of_the_code_is_not_called_a_spoilt_file():
    refused = pytest.raises(
        Refusal, match=r"^f.json: is not as the graph writes it \(KeyError: 'a'\)"
    )
    with refused, refusal.of_the_graph("f.json"):
        raise KeyError("a")
    with pytest.raises(ZeroDivisionError), refusal.of_the_graph("f.json"):
        raise ZeroDivisionError


@pytest.mark.parametrize("address", ["http://[::1", "sqlite:///{}/junk.db", "nonsense://x"])
def test_a_store_that_is_none_is_a_line(address, spoilt, monkeypatch, capsys):
    (spoilt / "junk.db").write_bytes(b"junk " * 2000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(spoilt))
    status, said = told(["sync"], monkeypatch, capsys)
    assert status == 1
    assert said.startswith("StoreError: MLflow at ")
