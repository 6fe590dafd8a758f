"""A corpus of what people get wrong, each with the one line that they are told.

tests/malformed/*.yaml hold the cases. What stands there as `says` is the whole message, without the
folder; `begins` is its beginning, where the rest is a library's. To see what cases say now:

    PYTHONPATH=.:tests python tests/test_malformed.py models
"""

import copy
import json
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_params import sections

from stages.lib import constitution, identities, importers, neutral_text, provocations, scorers
from stages.lib.labelling import page
from stages.lib.preferences import sets, stack_exchange
from stages.lib.records import AnyLabel, Completion, Demonstration, Pair, Prompt
from stages.lib.runtime import files, params
from stages.lib.runtime.schema import Refusal, check

ROOT = Path(__file__).parent.parent
CORPUS = {
    file.stem: YAML(typ="safe").load(file)
    for file in sorted((ROOT / "tests/malformed").glob("*.yaml"))
}


def changed(value, case):
    """A copy of plain data with dotted keys set (`with`) and removed (`without`)."""
    value = copy.deepcopy(value)
    for key, new in case.get("with", {}).items():
        *path, last = key.split(".")
        inner = value
        for part in path:
            inner = inner[int(part) if isinstance(inner, list) else part]
        inner[int(last) if isinstance(inner, list) else last] = new
    for key in case.get("without", []):
        *path, last = key.split(".")
        inner = value
        for part in path:
            inner = inner[int(part) if isinstance(inner, list) else part]
        del inner[last]
    return value


# ---------------------------------------------------------------------- one reader a file of cases


def whole_params():
    """params.yaml with an entry of every section."""
    load = YAML(typ="safe").load
    given, tiny = load(ROOT / "profiles/all-methods.yaml"), load(ROOT / "profiles/tiny.yaml")
    for section in ("provokers", "pretrain", "scorers"):
        given[section] |= tiny[section]
    return given


WHOLE = whole_params()


def read_params(case, folder):
    path = folder / "params.yaml"
    if "text" in case:
        path.write_text(case["text"])
        params.load("policies", dict, path)
        return
    given = changed(WHOLE, case)
    with path.open("w") as out:
        YAML(typ="safe").dump(given, out)
    for section, kind in sections(given):
        if repr(params.at(given, section)) != repr(params.at(WHOLE, section)):  # 1 is not 1.0
            params.load(section, kind, path)


RECORDS = {
    "prompt": Prompt, "completion": Completion, "label": AnyLabel, "demonstration": Demonstration,
    "pair": Pair,
}  # fmt: skip
LABEL = {
    "schema_version": 1, "criterion": "harmless", "prompt_id": "p1", "labeler": "ann", "revision": 1,
}  # fmt: skip
LINES = {
    "prompt": {
        "id": "p1", "form": "continuation", "category": "insult", "source": "me", "text": "You are",
        "role": "align", "cluster": "p1",
    },
    "chat": {
        "id": "c1", "form": "chat", "category": "benign", "source": "me", "role": "align",
        "cluster": "c1", "messages": [{"role": "user", "content": "Hello"}],
    },
    "completion": {
        "id": "p1/base-0", "prompt_id": "p1", "sampler": "base", "index": 0, "text": " kind.",
        "finish": "stop", "tokens": 3, "logp": -4.0,
    },
    "label": LABEL | {
        "kind": "ranking", "shown": ["a", "b", "c"], "ranks": {"a": 1, "b": 2}, "junk": {"c": "cut"},
    },
    "thumbs": LABEL | {"kind": "thumbs", "completion_id": "a", "up": True},
    "written": LABEL | {"kind": "demonstration", "answer": "Of course."},
    "skip": LABEL | {"kind": "skip", "task": "ranking", "shown": ["a"], "reason": "unclear"},
    "demonstration": {
        "id": "d1", "form": "continuation", "category": "insult", "source": "me", "text": "You are",
        "answer": " kind.",
    },
    "pair": {
        "id": "a:b", "prompt_id": "p1", "cluster": "p1", "role": "align", "category": "insult",
        "criterion": "harmless", "prompt": "You are", "chosen_id": "a", "rejected_id": "b",
        "chosen": " kind.", "rejected": " a fool.", "chosen_finish": "stop",
        "rejected_finish": "stop", "p_chosen": 0.9, "weight": 0.5, "margin": 1.0, "votes": 1,
        "labelers": ["ann"], "junk": False,
    },
}  # fmt: skip
OF_LINE = {"chat": "prompt", "thumbs": "label", "written": "label", "skip": "label"}


def content(case, line):
    """The bytes of a file of one record, or what the case gives in its place."""
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    if "deep" in case:
        return b"[" * case["deep"]
    return (case["text"] if "text" in case else json.dumps(changed(line, case)) + "\n").encode()


def read_records(case, folder):
    name = case["record"]
    (folder / "mine.jsonl").write_bytes(content(case, LINES[name]))
    files.read_lines(folder / "mine.jsonl", RECORDS[OF_LINE.get(name, name)])


TEXTS = {
    "constitution": constitution.read,
    "identities": identities.read,
    "provocations": lambda path: provocations.read(path, ["insult"], turns=2),
    "words": scorers.read_words,
    "instructions": page.instructions,
    "neutral": neutral_text.read,
    "card": files.read_json,
}


def read_texts(case, folder):
    path = folder / "mine"
    if "hex" in case or "text" in case:
        path.write_bytes(content(case, None))
    elif "folder" in case:
        path.mkdir()
    TEXTS[case["reader"]](path)


def read_sources(case, folder):
    path = folder / case.get("path", "mine.jsonl")
    if "hex" in case or "text" in case:
        path.write_bytes(content(case, None))
    entry = {"kind": "local", "path": path.name} | case.get("entry", {})
    importers.read(check(entry, importers.Source, "params.yaml: prompts.sources"), folder)


ENTRY = {
    "kind": "local", "path": "mine.jsonl", "category": "c", "criterion": "helpful", "name": "set",
}  # fmt: skip


def read_sets(case, folder):
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in case["rows"]))
    if case["entry"] == "votes":
        stack_exchange.gather(importers.file_rows(folder / "mine.jsonl", named_by="pretrain"))
    else:
        sets.read(check(ENTRY | case["entry"], sets.Source, "params.yaml: pairs.sources.0"), folder)


def read_models(case, folder):
    """Bring a model as `fetch` does, then load it; some cases are spoilt in between."""
    from tiny_model import build

    from stages.lib import model_folder, models
    from stages.lib.base import Base

    build(folder / "mine")
    spoil(folder / "mine", case)
    out = folder / "models"
    out.mkdir()
    model_folder.copy(folder / "mine", out, where="models.base")
    model_folder.give_pad(out, where="models.base")
    model_folder.parameters(out, where="models.base")
    spoil(out, case.get("later", {}))
    if case.get("as") == "classifier":
        from stages.lib.classifier import Classifier

        Classifier(out, "toxic", max_tokens=16)
    models.load(out, Base(quantisation="none", weights="rounded", dtype="float32"))


def read_adapters(case, folder):
    from tiny_model import build

    from stages.lib import models, reward_model
    from stages.lib.base import Base

    base = Base(quantisation="none", weights="rounded", dtype="float32")
    lm = models.load(build(folder / "base"), base)
    (folder / "mine").mkdir()
    models.save_adapter(models.add_lora(lm, rank=2, alpha=4, seed=1), folder / "mine")
    if "head" in case:
        reward_model.Head(64, seed=1)
        (folder / "mine" / reward_model.HEAD).write_bytes(case["head"].encode())
        reward_model.read_head(folder / "mine")
    spoil(folder / "mine", case)
    models.load_adapter(models.load(folder / "base", base), folder / "mine", name="policy")


def spoil(folder, how):
    """Change files of a folder as a case says."""
    import torch
    from safetensors.torch import load_file, save_file

    for name in how.get("remove", []):
        (folder / name).unlink()
    for name, text in how.get("write", {}).items():
        (folder / name).write_text(text)
    for name, left in how.get("cut", {}).items():
        (folder / name).write_bytes((folder / name).read_bytes()[:left])
    for name, keys in how.get("set", {}).items():
        plain = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(plain | keys))
    for name, tensor in how.get("drop", {}).items():
        weights = {k: v for k, v in load_file(folder / name).items() if tensor not in k}
        save_file(weights, folder / name, {"format": "pt"})
    for name, tensor in how.get("widen", {}).items():
        weights = load_file(folder / name)
        weights[tensor] = torch.cat([weights[tensor], weights[tensor]])
        save_file(weights, folder / name, {"format": "pt"})


READERS = {
    "params": read_params, "records": read_records, "texts": read_texts, "sources": read_sources,
    "sets": read_sets, "models": read_models, "adapters": read_adapters,
}  # fmt: skip
CASES = [(name, case) for name, cases in CORPUS.items() for case in cases]


def said(name, case, folder):
    """The line that a case is refused with; None where it is not."""
    try:
        READERS[name](case, folder)
    except Refusal as refusal:
        return str(refusal).replace(f"{folder}/", "")
    return None


@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(CASES)]
)
def test_what_is_malformed_is_refused_in_the_line_that_stands_beside_it(name, case, tmp_path):
    line = said(name, case, tmp_path)
    if "says" in case:
        assert line == case["says"]
    else:
        assert line is not None
        assert line.startswith(case["begins"])
    assert line.isprintable()


def test_what_the_cases_of_params_change_is_fine_before():
    for section, kind in sections(WHOLE):
        check(params.at(WHOLE, section), kind, section)


def test_the_corpus_is_as_large_as_it_is_said_to_be():
    assert len(CASES) >= 150
    assert set(CORPUS) == set(READERS)


if __name__ == "__main__":
    import tempfile

    for name in sys.argv[1:]:
        for case in CORPUS[name]:
            with tempfile.TemporaryDirectory() as place:
                try:
                    print(json.dumps(said(name, case, Path(place)), ensure_ascii=False))
                except Exception as error:
                    print("TRACEBACK", type(error).__name__, error, "|", case)
