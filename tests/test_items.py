"""What a model made is kept: N new items cost N, a kill costs a batch, and nothing stale is found."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import astuple, replace

import pytest
from tiny_model import moved_adapter

from stages.lib import answering, models, sampling
from stages.lib.commands import gc
from stages.lib.records import Prompt
from stages.lib.runtime import code, files, items
from stages.lib.runtime.items import Items
from stages.lib.sampling import Decoding, Request

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)
LONG, SEED = 6, 1


def requests(count, samples=2):
    return [Request(f"p{n}", tuple(range(5, 7 + n % 4)), samples) for n in range(count)]


@pytest.fixture
def drawn(monkeypatch):
    """Every (prompt, index) that the model really drew, in order."""
    seen, decode = [], sampling.decode

    def counting(lm, some, *rest, **named):
        made = decode(lm, some, *rest, **named)
        seen.extend((r.prompt_id, i) for r in some for i in r.indices)
        return made

    monkeypatch.setattr(sampling, "decode", counting)
    return seen


def kept(lm, seed=SEED, decoding=ALL, adapter=None):
    own = sampling.settings(lm, decoding, max_tokens=LONG, seed=seed)
    return sampling.kept(lm.folder, adapter, "base", own)


def draw(lm, some, place, *, batch_tokens=100):
    return sampling.sample(
        lm, some, ALL, max_tokens=LONG, seed=SEED, batch_tokens=batch_tokens, label=None, kept=place
    )  # fmt: skip


def same(some, others):
    """The same words; their probabilities up to what the shape of a batch rounds."""
    assert [(d.prompt_id, d.index, d.ids) for d in some] == [
        (d.prompt_id, d.index, d.ids) for d in others
    ]
    assert [d.logp for d in some] == pytest.approx([d.logp for d in others], abs=1e-4)


def test_new_prompts_cost_what_they_are_and_the_rest_is_found_as_it_was(tiny, drawn):
    draw(tiny, requests(10), kept(tiny))
    assert len(drawn) == 20
    drawn.clear()
    both = draw(tiny, requests(11), kept(tiny))
    assert drawn == [("p10", 0), ("p10", 1)]
    same(both, draw(tiny, requests(11), None))


def test_more_samples_of_the_same_prompts_cost_only_the_new_ones(tiny, drawn):
    draw(tiny, requests(3, samples=2), kept(tiny))
    drawn.clear()
    four = draw(tiny, requests(3, samples=4), kept(tiny))
    assert sorted(drawn) == [(f"p{n}", i) for n in range(3) for i in (2, 3)]
    same(four, draw(tiny, requests(3, samples=4), None))


def test_what_was_killed_repeats_at_most_a_batch(tiny, drawn, monkeypatch):
    some = requests(12)
    size = (len(some[0].ids) + 3 + LONG) * 2 * 3  # three prompts a batch, at least
    batches = sampling.plan(some, max_tokens=LONG, batch_tokens=size)
    assert len(batches) >= 4
    counting = sampling.decode

    def killed(lm, batch, *rest, **named):
        made = counting(lm, batch, *rest, **named)
        if len(drawn) > 12:
            raise KeyboardInterrupt  # the batch is drawn and not yet kept
        return made

    monkeypatch.setattr(sampling, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(tiny, some, kept(tiny), batch_tokens=size)
    monkeypatch.setattr(sampling, "decode", counting)
    draw(tiny, some, kept(tiny), batch_tokens=size)
    widest = max(sum(len(r.indices) for r in batch) for batch in batches)
    assert set(drawn) == {(r.prompt_id, i) for r in some for i in r.indices}
    assert 0 < len(drawn) - len(set(drawn)) <= widest


def test_a_line_that_was_cut_off_or_damaged_is_made_again(tiny, drawn):
    place = kept(tiny)
    whole = draw(tiny, requests(4), place)
    (file,) = place.folder.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"logp": -', b'"logp": -9')  # still JSON, and wrong
    file.write_bytes(b"".join(lines)[:-9])
    drawn.clear()
    same(draw(tiny, requests(4), kept(tiny)), whole)
    hurt = {json.loads(line[9:])[0].split("/")[0] for line in (lines[2], lines[-1])}
    assert {prompt for prompt, _ in drawn} == hurt


def test_two_processes_at_once_lose_nothing_and_mix_nothing(tiny_folder, tmp_path):
    program = f"""
import sys
sys.path[:0] = ["tests", "."]
from pathlib import Path
import test_items as t
from stages.lib import models
from stages.lib.base import Base
lm = models.load(Path({str(tiny_folder)!r}), Base(quantisation="none", weights="rounded", dtype="float32"))
some = t.requests(40)[int(sys.argv[1]):int(sys.argv[2])]
for draw in t.draw(lm, some, t.kept(lm), batch_tokens=60):
    print(draw.prompt_id, draw.index, *draw.ids)
"""
    environment = {**os.environ, "DVC_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def start(first, last):
        command = [sys.executable, "-c", program, str(first), str(last)]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)

    def end(process):
        said = process.communicate()[0].splitlines()
        assert process.returncode == 0
        return said

    one, other = start(0, 30), start(10, 40)
    first, second = end(one), end(other)
    assert len(first) == len(second) == 60
    assert first[20:] == second[:40]
    (scope,) = (tmp_path / ".cache/items/draws").iterdir()
    assert len(list(scope.iterdir())) == 2
    assert end(start(0, 40)) == first + second[40:]
    assert len(list(scope.iterdir())) == 2  # the third had nothing to add


def test_other_inputs_are_another_scope(tiny, tmp_path, monkeypatch):
    moved_adapter(tiny, tmp_path / "a", std=0.1)
    other = models.load(tiny.folder, tmp_base())
    own = {
        kept(other).folder,
        kept(other, seed=2).folder,
        kept(other, adapter=tmp_path / "a").folder,
        kept(other, decoding=Decoding(temperature=0.5, top_k=0, top_p=1.0)).folder,
    }
    assert len(own) == 4
    (tmp_path / "a/adapter_config.json").write_text("{}")
    own.add(kept(other, adapter=tmp_path / "a").folder)
    assert len(own) == 5
    monkeypatch.setattr(items.code, "LIBRARIES", ("torch",))
    own.add(kept(other).folder)
    assert len(own) == 6
    (tmp_path / "edited.py").write_text("# an edit\n")
    run_by = code.run_by
    monkeypatch.setattr(code, "run_by", lambda *f: {*run_by(*f), tmp_path / "edited.py"})
    own.add(kept(other).folder)
    assert len(own) == 7


def tmp_base():
    from stages.lib.base import Base

    return Base(quantisation="none", weights="rounded", dtype="float32")


def test_what_makes_draws_counts_with_all_that_it_runs():
    own = {file.name for file in code.run_by(files.Path(sampling.__file__))}
    assert {"sampling.py", "prefix.py", "models.py"} <= own
    assert "evaluate.py" not in own
    assert "dpo_trainer.py" not in own


def prompts(count):
    return [
        Prompt(id=f"q{n}", cluster=f"q{n}", category="insult", role="test", form="continuation", source="t", text="He said " * (n + 1))
        for n in range(count)
    ]  # fmt: skip


def answers(subject, count):
    return answering.answer(
        subject, prompts(count), "toxic", ALL, samples=2, tokens=LONG, seed=SEED, batch_tokens=200
    )


def test_a_policys_answers_and_their_distances_are_found_again(
    tiny_folder, full_precision, tmp_path, tiny, drawn
):
    moved_adapter(tiny, tmp_path / "dpo", std=0.3)
    files.write_json(tmp_path / "dpo/policy.json", {"algorithm": "dpo"})
    subject = answering.open_subject(tiny_folder, tmp_path / "dpo", full_precision)
    fresh = answers(replace(subject, made_from=()), 4)
    answers(subject, 3)
    drawn.clear()
    again = answers(subject, 4)
    assert [(a.prompt.id, a.index, a.text) for a in again] == [
        (a.prompt.id, a.index, a.text) for a in fresh
    ]
    for one, other in zip(again, fresh, strict=True):
        assert astuple(one.drift) == pytest.approx(astuple(other.drift), abs=1e-4)
    assert drawn == [("q3", 0), ("q3", 1)]
    assert all(answer.drift.exact > 0 for answer in fresh)


def test_the_baseline_is_not_asked_what_a_sampler_was(tiny_folder, full_precision, tmp_path, drawn):
    from stages.lib.tokens import encode_prompt

    files.write_json(tmp_path / "baseline/policy.json", {"algorithm": "none", "quantised": True})
    subject = answering.open_subject(tiny_folder, tmp_path / "baseline", full_precision)
    lm = subject.reference
    asked = [Request(p.id, encode_prompt(lm, p.body()), 2) for p in prompts(3)]
    own = sampling.settings(lm, ALL, max_tokens=LONG, seed=SEED)
    place = sampling.kept(tiny_folder, None, full_precision, own)
    draws = draw(lm, asked, place)
    drawn.clear()
    found = answers(subject, 3)
    assert not drawn
    assert [a.drift.nll for a in found] == [-d.logp for d in draws]


def test_gc_takes_what_nothing_used_and_leaves_the_rest(tiny, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    used, unused = kept(tiny), kept(tiny, seed=2)
    unused.add({"a": [1, 2, 3]})
    stopped = tmp_path / ".cache/checkpoints/align-dpo-0"
    stopped.mkdir(parents=True)
    for old in (unused.folder, stopped):
        os.utime(old, (time.time() - 9 * 86_400,) * 2)
    monkeypatch.setattr(sys, "argv", ["gc", "--days", "8"])
    assert gc.main() == 0
    assert used.folder.is_dir()
    assert not unused.folder.exists()
    assert not stopped.exists()
    assert "removed 2 folders, 0.0 MB" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gc", "--days", "-1"])
    assert gc.main() == 1
    assert "0 or more" in capsys.readouterr().err


def test_items_are_there_after_the_process_that_made_them_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "folder", lambda: tmp_path)
    by = files.Path(files.__file__)
    one = Items("kind", "a", by=by)
    one.add({"k": {"x": 0.1, "text": "ü"}})
    again = Items("kind", "a", by=by)
    assert "k" in again
    assert again["k"] == {"x": 0.1, "text": "ü"}
    assert "k" not in Items("kind", "b", by=by)


def test_a_batch_that_cannot_be_written_is_kept_in_no_part(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "folder", lambda: tmp_path)
    place = Items("texts", 1, by=code.ROOT / "stages/lib/runtime/items.py")
    place.add({"a": 1})

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            place.add({"b": 2, "c": 3})
    place.add({"d": 4})
    again = Items("texts", 1, by=code.ROOT / "stages/lib/runtime/items.py")
    assert [key in again for key in "abcd"] == [True, False, False, True]


def test_a_scope_that_is_removed_under_way_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "folder", lambda: tmp_path)
    place = Items("texts", 1, by=code.ROOT / "stages/lib/runtime/items.py")
    place.add({"a": 1})
    assert items.prune(0).folders == 1
    place.add({"b": 2})
    again = Items("texts", 1, by=code.ROOT / "stages/lib/runtime/items.py")
    assert [key in again for key in "ab"] == [False, True]
