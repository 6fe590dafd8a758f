"""Bits that flip: DVC trusts its cache unread, so the project reads it."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_graph import shell

from stages.lib.runtime import guard, hashes
from stages.lib.runtime.declared import Declared

GRAPH = """
stages:
  make:
    cmd: cat given && mkdir -p out && echo hello > out/a && mkdir out/b && echo you > out/b/c && echo one > file
    deps: [given]  # without, DVC would not look into its cache of runs
    outs: [out, file]
"""


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "stages").symlink_to(Path(__file__).parent.parent / "stages")
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "given").write_text("this")
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        shell(tmp_path, *words)
    return tmp_path


def md5s(repo):
    from ruamel.yaml import YAML

    outs = YAML(typ="safe").load(repo / "dvc.lock")["stages"]["make"]["outs"]
    return {out["path"]: out["md5"] for out in outs}


def verify(repo, *words):
    return shell(repo, "python", "-m", "stages.lib.commands.verify", *words, check=False)


def flip(repo, md5):
    """Flip a bit of an object, and restore what is made of it; DVC says nothing."""
    path = repo / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)
    shutil.rmtree(repo / "out")
    (repo / "file").unlink()
    done = shell(repo, "dvc", "checkout")
    assert "orrupt" not in done.stdout + done.stderr, "DVC notices by itself now; this can go"


def declared(repo, **more):
    given = {
        "name": "next",
        "deps": (),
        "params": (),
        "data": md5s(repo),
        "sources": {},
        "stages": (),
    }
    return Declared(**given | more)


def test_hashes_are_those_of_dvc_for_files_and_folders(repo, monkeypatch):
    monkeypatch.chdir(repo)
    assert {path: hashes.of(Path(path)) for path in ("out", "file")} == md5s(repo)
    assert hashes.of(Path("nothing")) is None


def test_what_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    memory = {}
    first = hashes.of(tmp_path, memory)
    monkeypatch.setattr(hashes.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert hashes.of(tmp_path, memory) == first


def test_a_whole_cache_is_said_to_be_whole(repo):
    done = verify(repo)
    assert done.returncode == 0
    assert "4 objects of DVC's cache are what their names say, and 2 outputs what" in done.stdout


def test_a_flipped_bit_is_found_removed_and_made_again(repo):
    before = md5s(repo)
    flip(repo, before["file"])
    assert (repo / "file").read_text() != "one\n", "and DVC has restored it"
    found = verify(repo)
    assert found.returncode == 1
    assert "DamageError: damaged: file, " in found.stderr
    assert "Traceback" not in found.stderr
    assert verify(repo, "--remove").returncode == 0
    shell(repo, "dvc", "repro")
    assert md5s(repo) == before
    assert (repo / "file").read_text() == "one\n"
    assert verify(repo).returncode == 0


def test_a_damaged_file_takes_its_folder_with_it(repo):
    before = md5s(repo)
    flip(repo, hashes.of(repo / "out/a"))
    assert "damaged: out, " in verify(repo).stderr
    assert verify(repo, "--remove").returncode == 0
    assert not (repo / "out").exists()
    shell(repo, "dvc", "repro")
    assert md5s(repo) == before


def test_what_dvc_writes_itself_and_a_kill_cut_short_is_removed_and_comes_back(repo):
    before = md5s(repo)
    lock = (repo / "dvc.lock").read_text()
    note = repo / ".dvc/tmp/rwlock"
    for path, cut, told in (
        (note, '{"/a/b": {"wri', "Unable to read RWLock-file"),
        (repo / "dvc.lock", lock[: lock.rindex("    - path")] + "    - path: f\n      si", ""),
    ):
        path.write_text(cut)
        stuck = shell(repo, "dvc", "repro", check=False)
        assert stuck.returncode, "DVC mends it by itself now; this can go"
        assert told in stuck.stderr
        assert f"cut short: {path.relative_to(repo)}; --remove" in verify(repo).stderr
        assert path.exists()
        done = verify(repo, "--remove")
        assert done.returncode == 0, done.stderr
        assert f"cut short: {path.relative_to(repo)}; deleted" in done.stdout
        again = shell(repo, "dvc", "repro")
        assert "Running stage" not in again.stdout  # DVC's cache of runs has it
        assert md5s(repo) == before
        assert verify(repo).returncode == 0


def test_what_somebody_changed_by_hand_is_said_and_left_alone(repo):
    (repo / "file").chmod(0o644)
    (repo / "file").write_text("mine\n")
    done = verify(repo, "--remove")
    assert done.returncode == 1
    assert "not what dvc.lock says, and left alone: file; delete them" in done.stderr
    assert (repo / "file").read_text() == "mine\n"


def test_a_stage_refuses_an_input_that_is_not_what_dvc_takes_it_for(repo, monkeypatch):
    monkeypatch.chdir(repo)
    monkeypatch.setenv("DVC_ROOT", str(repo))
    guard.require_whole(declared(repo))
    content = (repo / "out/b/c").read_text()
    (repo / "out/b/c").chmod(0o644)
    (repo / "out/b/c").write_text("yoo\n")
    with pytest.raises(guard.DamagedError, match=r"^out: its content is not what dvc\.lock says"):
        guard.require_whole(declared(repo))
    guard.require_whole(
        declared(repo, sources={"out": "whatever"})
    )  # what no stage makes may change
    (repo / "out/b/c").write_text(content)
    guard.require_whole(declared(repo))
    assert json.loads((repo / ".cache/hashes.json").read_text())
    (repo / ".cache/hashes.json").write_text('{"out')  # a power cut
    guard.require_whole(declared(repo))
    assert json.loads((repo / ".cache/hashes.json").read_text())


def test_what_a_kill_left_half_written_counts_for_nothing(repo, monkeypatch):
    monkeypatch.chdir(repo)
    shutil.copy(Path(__file__).parent.parent / ".dvcignore", repo)
    (repo / "params.yaml").write_text("a: 1")
    before = guard.snapshot(declared(repo, deps=(Path("out"),)))
    (repo / "out/.a.host.77.partial").write_text("hel")
    (repo / "out/b/.d.host.77.partial").mkdir()
    (repo / "out/b/.d.host.77.partial/e").write_text("hel")
    assert hashes.of(Path("out")) == md5s(repo)["out"]
    assert guard.snapshot(declared(repo, deps=(Path("out"),))) == before
    assert "up to date" in shell(repo, "dvc", "status").stdout
