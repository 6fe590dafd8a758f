"""Checkpoints: a training goes on from the last one that is what was written, and from no other."""

import pytest

from stages.lib import training
from stages.lib.runtime import files, guard, items, locks, sealed
from stages.lib.runtime.declared import Declared
from stages.lib.runtime.guard import EditedError
from stages.lib.runtime.items import Items


def checkpoint(place, step):
    folder = place / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(100)))
    (folder / "trainer_state.json").write_text("{}")
    sealed.seal(folder)
    return folder


def flip(folder):
    content = bytearray((folder / "weights").read_bytes())
    content[50] ^= 1
    (folder / "weights").write_bytes(content)


def cut(folder):
    (folder / "trainer_state.json").write_text("")


def lose(folder):
    (folder / "weights").unlink()


def break_the_seal(folder):
    (folder / sealed.SEAL).write_text('{"weights": ')


def do_without_a_seal(folder):
    (folder / sealed.SEAL).unlink()


@pytest.mark.parametrize("spoil", [flip, cut, lose, break_the_seal, do_without_a_seal])
def test_a_checkpoint_that_is_spoilt_is_passed_over(tmp_path, spoil):
    before, last = checkpoint(tmp_path, 8), checkpoint(tmp_path, 12)
    assert training.last_whole(tmp_path) == last
    spoil(last)
    assert training.last_whole(tmp_path) == before
    assert not last.exists()
    spoil(before)
    assert training.last_whole(tmp_path) is None


def test_what_is_sealed_before_it_is_in_place_is_whole_there(tmp_path):
    """PPO writes its states so."""
    with files.whole_folder(tmp_path / "checkpoint-4") as folder:
        (folder / "weights").write_bytes(bytes(range(100)))
        sealed.seal(folder)
    assert training.last_whole(tmp_path) == tmp_path / "checkpoint-4"
    flip(tmp_path / "checkpoint-4")
    assert training.last_whole(tmp_path) is None


def test_no_checkpoints_are_none(tmp_path):
    assert training.last_whole(tmp_path / "nowhere") is None


def test_success_removes_checkpoints_at_once(tmp_path, monkeypatch):
    """A kill within the removal leaves nothing that the next training would go on from."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(training.shutil, "rmtree", lambda *_, **__: None)  # killed at its start
    with training.checkpoints("toy", 1) as folder:
        checkpoint(folder, 3)
    assert training._checkpoint_folder("toy", 1) == folder
    assert training.last_whole(folder) is None


def test_other_libraries_are_other_checkpoints(monkeypatch):
    before = training._checkpoint_folder("toy", 1)
    monkeypatch.setattr(training.code, "beneath", lambda: ["torch 99"])
    assert training._checkpoint_folder("toy", 1) != before


def test_what_edited_inputs_make_is_not_kept_under_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_text("a: 1\n")
    own = tmp_path / "own.py"
    own.write_text("old = 1")
    inputs = Declared("toy", (own,), ("a",), {}, {}, ())
    with guard.watching(inputs):
        Items("texts", 1, by=own)
        with training.checkpoints("toy", 1):
            pass
        own.write_text("new = 1")
        with pytest.raises(EditedError, match=r"own\.py changed while stage toy ran"):
            Items("texts", 1, by=own)
        with pytest.raises(EditedError), training.checkpoints("toy", 1):
            pass
    Items("texts", 1, by=own)  # nothing is watched any more


def test_old_checkpoints_of_a_training_under_way_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(items, "folder", lambda: files.cache("items"))
    with training.checkpoints("toy", 1) as folder:
        checkpoint(folder, 3)
        other = checkpoint(folder.with_name("align-0123"), 3)
        assert not locks.is_free(folder.name)
        assert items.prune(0).folders == 1
        assert folder.exists()
        assert not other.exists()
