"""A small workspace to label in: prompts, completions, params, instructions."""

import json
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from stages.lib.commands import label
from stages.lib.labelling import server
from stages.lib.records import Completion, Message, Prompt
from stages.lib.runtime import files

ROOT = Path(__file__).parent.parent
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
TEXTS = [" you fool.", " please mind the path.", " whatever that is", " the the of road"]


def prompt(number, role="align", **change):
    """One beginning of a text."""
    name = f"insult-{number:03}"
    text = f"Story {number}: the driver leaned out of the window and shouted: Get off the road,"
    given = {"form": "continuation", "category": "insult", "source": "test", "text": text}
    return Prompt(id=name, role=role, cluster=name, **{**given, **change})


def chat(number):
    """A conversation of two turns, and a third to answer."""
    turns = [
        ("user", "My shell script leaves zombies behind."),
        ("assistant", "Which shell?"),
        ("user", "Bash. How do I reap them?"),
    ]
    messages = [Message(role=role, content=content) for role, content in turns]
    return prompt(number, form="chat", category="borderline", text=None, messages=messages)


def completion(of, index, text, finish="stop", sampler="base"):
    """One answer to a prompt."""
    return Completion(
        id=f"{of.id}/{sampler}-{index}",
        prompt_id=of.id,
        sampler=sampler,
        index=index,
        text=text,
        finish=finish,
        tokens=3,
        logp=-1.0,
    )


def answers(of, texts=TEXTS, **change):
    """Several answers to a prompt."""
    return [completion(of, i, text, **change) for i, text in enumerate(texts)]


def write(folder, prompts, completions, **people):
    """Write a workspace in which `make label` works; `people` changes labelers.people."""
    settings = YAML(typ="safe").load(ROOT / "params.yaml")
    settings["labelers"]["people"].update({"repeats": 0.0, **people})
    settings["samplers"] = {"base": settings["samplers"]["base"]}
    folder.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe").dump(settings, folder / "params.yaml")
    for split in ("train", "validation", "test"):
        rows = prompts if split == "train" else []
        files.write_lines(folder / f"data/prompts/{split}.jsonl", rows)
    files.write_lines(folder / "data/completions/base.jsonl", completions)
    (folder / "data/labels").mkdir()
    shutil.copy(ROOT / "data/labels/instructions.md", folder / "data/labels")
    return folder


def plain(folder, count=3, **people):
    """A workspace of `count` prompts with four answers each."""
    some = [prompt(n) for n in range(1, count + 1)]
    return write(folder, some, [row for one in some for row in answers(one)], **people)


@contextmanager
def inside(folder):
    """Work in a folder, as `make label` does."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


@contextmanager
def served(labeler="ann", **asked):
    """Serve the page of the present folder, on a free port."""
    sheet, kept = label.open_session(labeler, **asked)
    serving = server.Server(0, sheet, kept)
    thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        serving.shutdown()
        serving.server_close()
        thread.join()


def rows(labeler="ann"):
    """The lines of a labeler's file in the present folder."""
    path = Path(f"data/labels/{labeler}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
