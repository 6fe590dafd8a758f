"""Outputs are whole or absent, and a bad line is named."""

import os
import socket
import subprocess
import sys

import pytest

from stages.lib.records import Completion, SourcePrompt
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError

ROW = {
    "id": "a/base-0",
    "prompt_id": "a",
    "sampler": "base",
    "index": 0,
    "text": "x",
    "finish": "stop",
    "tokens": 2,
    "logp": -1.5,
}


def test_what_is_written_is_read_back(tmp_path):
    rows = [
        Completion(**ROW),
        Completion(**ROW | {"id": "a/base-1", "index": 1, "text": "é\n\u2028"}),
    ]
    assert files.write_lines(tmp_path / "deep/c.jsonl", rows) == 2
    assert files.read_lines(tmp_path / "deep/c.jsonl", Completion) == rows


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "c.jsonl"
    files.write_lines(path, [{"n": 1}])

    def breaks():
        yield {"n": 2}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_lines(path, breaks())
    assert path.read_text() == '{"n": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_folder_that_fails_is_not_there(tmp_path):
    def half():
        with files.whole_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link", "folder"):
        with pytest.raises(RecordError, match=r"is there and no ordinary file; name another$"):
            files.write_text(tmp_path / name, "text")
    (tmp_path / "file").write_text("kept")
    for name in ("pipe", "link", "file"):
        with (
            pytest.raises(RecordError, match=r"is there and no folder; name another$"),
            files.whole_folder(tmp_path / name),
        ):
            pass
    assert (tmp_path / "file").read_text() == "kept"


def test_equal_values_are_equal_bytes(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": [1.5]})
    files.write_json(tmp_path / "b", {"a": [1.5], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": ', r"c.jsonl:2: not JSON"),
        ("[1]", r"c.jsonl:2 must be a mapping of names to values"),
        ('{"id": "a"}', r"c.jsonl:2: prompt_id is missing"),
        (b"\xff\xfe", r"c.jsonl:2: not JSON"),
    ],
)
def test_a_corrupt_line_is_refused_by_file_and_number(tmp_path, line, message):
    files.write_lines(tmp_path / "c.jsonl", [Completion(**ROW)])
    with (tmp_path / "c.jsonl").open("ab") as out:
        out.write(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(RecordError, match=message):
        files.read_lines(tmp_path / "c.jsonl", Completion)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"nothing.jsonl: no such file"):
        files.read_lines(tmp_path / "nothing.jsonl", Completion)
    with pytest.raises(RecordError, match=r"nothing.json: no such file"):
        files.read_json(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "p1 is a continuation and needs 'text' alone"),
        (
            {"messages": [{"role": "user", "content": "x"}]},
            "is a continuation and needs 'text' alone",
        ),
        ({"text": "  "}, "is blank"),
        ({"form": "chat"}, "is a chat and needs 'messages' alone"),
        (
            {
                "form": "chat",
                "text": None,
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y"},
                ],
            },
            r"turns must go user, assistant",
        ),
        (
            {"form": "chat", "text": None, "messages": [{"role": "user", "content": " "}]},
            "is blank, or a turn of it is",
        ),
        ({"form": "song"}, "form must be 'continuation' or 'chat', not 'song'"),
        (
            {"id": "a b"},
            r"id must be a name of letters, digits",
        ),
    ],
)
def test_a_prompt_that_is_none_is_refused(change, message):
    from stages.lib.runtime.schema import Refusal, check

    row = {"id": "p1", "form": "continuation", "category": "c", "source": "me", "text": "He said"}
    check(row, SourcePrompt, "f:1")
    with pytest.raises(Refusal, match=message):
        check(row | change, SourcePrompt, "f:1")


@pytest.mark.parametrize("whole", [files.whole_file, files.whole_folder])
def test_what_a_killed_process_left_is_cleared_away_and_what_a_living_one_writes_is_not(
    tmp_path, whole
):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    left, living, elsewhere = (
        tmp_path / f".out.{host}.{pid}.partial"
        for host, pid in ((here, gone.pid), (here, os.getppid()), ("elsewhere", gone.pid))
    )
    for one in (left, living, elsewhere):
        (one.mkdir if whole is files.whole_folder else one.touch)()
    with whole(tmp_path / "out") as partial:
        assert files.is_partial(partial / "inner")
        (partial.touch if whole is files.whole_file else (partial / "a").touch)()
    assert not left.exists()
    assert living.exists()
    assert elsewhere.exists()
    assert not files.is_partial(tmp_path / "out")
