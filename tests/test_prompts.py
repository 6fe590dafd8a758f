import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages import prompts
from stages.lib.neighbours import clusters, normalise, similarity
from stages.lib.records import Prompt, SourcePrompt
from stages.lib.runtime import files, params
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, check
from stages.lib.split import position, role_at
from stages.prompts import Prompts

DATA = Path(os.environ.get("PLUMBLINE_DATA", "../shared/data"))
SHARES = {
    "sft": 0.1, "reward": 0.2, "monitor": 0.1, "align": 0.3, "validation": 0.1, "test": 0.2,
}  # fmt: skip
QUOTE = '"'
OUTPUTS = ("train.jsonl", "validation.jsonl", "test.jsonl")


def section(paths, **over):
    own = {"near_duplicate": 0.6, "salt": "1", "shares": SHARES}
    split = own | {key: over.pop(key) for key in (*own, "slat") if key in over}
    plain = {"sources": [{"kind": "local", "path": path} for path in paths], "split": split}
    return check(plain | over, Prompts, "params.yaml: prompts")


def rows(texts, *, prefix="p", **over):
    own = {"form": "continuation", "category": "c", "source": "me"}
    return [{"id": f"{prefix}-{at:04}", "text": text} | own | over for at, text in enumerate(texts)]


def write(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.write_lines(folder / f"{name}.jsonl", content)


def stage(folder, names, **over):
    """Run the stage on files of folder/in; return its prompts by file, and the metrics."""
    found = prompts.run(
        section([f"{name}.jsonl" for name in names], **over), {},
        sources=folder / "in", provocations=folder / "provoked", out=folder / "out",
        metrics=folder / "prompts.json",
    )  # fmt: skip
    by_file = {name: files.read_lines(folder / "out" / name, Prompt) for name in OUTPUTS}
    return by_file, json.loads((folder / "prompts.json").read_text()), found


def kept(folder, names, **over):
    by_file, _, _ = stage(folder, names, **over)
    return {prompt.id: prompt for some in by_file.values() for prompt in some}


def sentences(how_many, seed=0):
    """Beginnings that share few letters with each other, so that none is a near-duplicate."""
    words = ["lamp", "river", "stone", "green", "quickly", "walked"]
    words += ["seven", "orchard", "violin", "thunder", "paper", "whale"]
    return [
        " ".join(words[(at * step + step + seed) % 12] + str(at * step) for step in (1, 5, 7, 11))
        for at in range(how_many)
    ]


def test_each_file_holds_its_roles_and_nothing_else(tmp_path):
    write(tmp_path / "in", a=rows(sentences(200)))
    by_file, _, _ = stage(tmp_path, ["a"])
    assert {prompt.role for prompt in by_file["test.jsonl"]} == {"test"}
    assert {prompt.role for prompt in by_file["validation.jsonl"]} == {"validation"}
    assert {prompt.role for prompt in by_file["train.jsonl"]} == {
        "sft", "reward", "monitor", "align",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)


def test_no_prompt_has_two_roles_and_none_is_lost(tmp_path):
    write(tmp_path / "in", a=rows(sentences(200)))
    by_file, _, _ = stage(tmp_path, ["a"])
    ids = [prompt.id for some in by_file.values() for prompt in some]
    assert sorted(ids) == [f"p-{at:04}" for at in range(200)]


def test_a_role_depends_on_text_and_salt_alone(tmp_path):
    write(tmp_path / "in", a=rows(sentences(100)))
    shares = section(["a"]).split.shares
    for prompt in kept(tmp_path, ["a"]).values():
        assert prompt.role == role_at(position(normalise(prompt.text), "1"), shares)


def test_another_salt_gives_another_split(tmp_path):
    write(tmp_path / "in", a=rows(sentences(100)))
    one, other = kept(tmp_path, ["a"]), kept(tmp_path, ["a"], salt="2")
    assert sum(one[name].role != other[name].role for name in one) > 50


# ------------------------------------------------------------------------------- equal prompts


def test_of_equal_prompts_the_first_source_keeps_its_own(tmp_path):
    write(
        tmp_path / "in",
        a=rows(["Who is John?", "Another thing altogether"]),
        b=rows(["  who IS\njohn", "A third thing, unlike them"], prefix="q"),
    )
    by_file, report, found = stage(tmp_path, ["b", "a"])
    ids = {prompt.id for some in by_file.values() for prompt in some}
    assert ids == {"q-0000", "q-0001", "p-0001"}
    assert report["left_out"]["duplicate"] == {
        "count": 1, "examples": ["p-0000: the same text as q-0000"],
    }  # fmt: skip
    assert (found["kept"], found["left_out"]) == (3.0, 1.0)


def test_a_chat_and_a_text_of_the_same_words_are_two_prompts(tmp_path):
    chat = {"id": "c", "form": "chat", "category": "c", "source": "me"}
    chat["messages"] = [{"role": "user", "content": "Who is John, and where are all of his shoes?"}]
    write(tmp_path / "in", a=[*rows(["Who is John, and where are all of his shoes?"]), chat])
    _, report, _ = stage(tmp_path, ["a"])
    assert report["left_out"]["duplicate"]["count"] == 0


def test_at_most_twenty_examples_are_named_and_all_are_counted(tmp_path):
    write(tmp_path / "in", a=rows(["The same thing"] * 26))
    _, report, _ = stage(tmp_path, ["a"])
    assert report["left_out"]["duplicate"]["count"] == 25
    assert len(report["left_out"]["duplicate"]["examples"]) == 20
    assert report["left_out"]["all"] == 25


# ------------------------------------------------------------------------------ near-duplicates


def near(text, count):
    """Near-duplicates of a text, told apart by their last characters."""
    return [f"{text} {at:03}" for at in range(count)]


LONG = "The old man at the harbour leaned over the rail and shouted at the boys that they were"


def test_near_duplicates_in_another_role_than_the_most_protected_are_left_out(tmp_path):
    texts = near(LONG, 30)
    shares = section(["a"]).split.shares
    expected = {
        f"p-{at:04}": role_at(position(normalise(text), "1"), shares)
        for at, text in enumerate(texts)
    }
    assert len(set(expected.values())) > 3  # else it proves little
    write(tmp_path / "in", a=rows(texts))
    by_file, report, _ = stage(tmp_path, ["a"])
    stay = {name for name, role in expected.items() if role == "test"}
    assert {prompt.id for prompt in by_file["test.jsonl"]} == stay
    assert not by_file["train.jsonl"]
    assert not by_file["validation.jsonl"]
    assert report["left_out"]["near_duplicate"]["count"] == 30 - len(stay)
    first = next(name for name in sorted(expected) if name not in stay)
    assert report["left_out"]["near_duplicate"]["examples"][0] == (
        f"{first}: {expected[first]}, but cluster p-0000 has a prompt in test"
    )


def test_a_cluster_is_named_by_its_smallest_id_even_where_that_is_left_out(tmp_path):
    write(tmp_path / "in", a=rows(near(LONG, 30)[::-1]))
    assert {prompt.cluster for prompt in kept(tmp_path, ["a"]).values()} == {"p-0000"}


def test_near_duplicates_of_one_role_stay_together(tmp_path):
    write(tmp_path / "in", a=rows(near(LONG, 10)))
    everything = SHARES | dict.fromkeys(SHARES, 0.0) | {"align": 1.0}
    by_file, report, _ = stage(tmp_path, ["a"], shares=everything)
    assert len(by_file["train.jsonl"]) == 10
    assert report["clusters"] == {"all": 1, "of_several": 1, "largest": 10}


def no_leak(found, threshold):
    some = list(found.values())
    return not any(
        one.role != other.role
        and similarity(normalise(one.plain()), normalise(other.plain())) >= threshold
        for at, one in enumerate(some)
        for other in some[:at]
    )


def test_no_near_duplicate_pair_has_two_roles(tmp_path):
    texts = [text for start in sentences(12) for text in near(f"{start} {start[::-1]}", 6)]
    write(tmp_path / "in", a=rows(texts))
    found = kept(tmp_path, ["a"])
    assert 12 <= len(found) < 72
    assert no_leak(found, 0.6)


def test_no_near_duplicate_pair_of_real_prompts_has_two_roles(tmp_path):
    folder = DATA / "rtp-prompts"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set PLUMBLINE_DATA")
    lines = [
        line.rstrip("\n")
        for file in sorted(folder.glob("*.txt"))
        for line in file.open(encoding="utf-8")
    ]
    write(tmp_path / "in", a=rows(lines))
    by_file, report, _ = stage(tmp_path, ["a"], near_duplicate=0.4)
    found = {prompt.id: prompt for some in by_file.values() for prompt in some}
    assert no_leak(found, 0.4)
    assert len(found) + report["left_out"]["all"] == len(lines)
    assert report["left_out"]["duplicate"]["count"] > 0


# ------------------------------------------------------------------------------ adding prompts

BEGINNINGS = st.lists(
    st.builds(
        lambda start, end: f"{start} {end}",
        st.sampled_from([LONG, *sentences(8)]),
        st.text("abc ?", max_size=4),
    ),
    min_size=1,
    max_size=20,
)


@given(BEGINNINGS, BEGINNINGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_adding_prompts_moves_no_prompt_to_another_role(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("adding")
    write(folder / "in", old=rows(old), new=rows(new, prefix="a"))
    before, after = kept(folder, ["old"]), kept(folder, ["old", "new"])
    for name in before.keys() & after.keys():
        assert before[name].role == after[name].role
    # What has gone was left out for a near-duplicate in a more protected role, and a test prompt
    # never goes.
    assert {name for name in before if before[name].role == "test"} <= after.keys()


@given(BEGINNINGS, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_order_of_prompts_moves_none(tmp_path_factory, texts, rng):
    folder = tmp_path_factory.mktemp("order")
    unique = list({normalise(text): text for text in texts}.values())
    mixed = rows(unique)
    rng.shuffle(mixed)
    write(folder / "in", a=rows(unique), b=mixed)
    assert kept(folder, ["a"]) == kept(folder, ["b"])


# ---------------------------------------------------------------------------------- the whole


def test_the_same_bytes_come_out_in_another_process_with_other_hashes(tmp_path):
    texts = [*sentences(60), *near(LONG, 10), *sentences(5)]
    write(tmp_path / "in", a=rows(texts))
    code = (
        "import sys; from pathlib import Path; from stages import prompts\n"
        "from stages.lib.runtime.schema import check; import json\n"
        "p = check(json.loads(sys.argv[1]), prompts.Prompts, 'p'); f = Path(sys.argv[2])\n"
        "out = f / sys.argv[3]\n"
        "prompts.run(p, {}, sources=f / 'in', provocations=f, out=out, metrics=out / 'm.json')"
    )
    given_params = section(["a.jsonl"]).model_dump_json()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, given_params, str(tmp_path), f"out{seed}"]
        subprocess.run(command, env=environment, check=True)
    for name in (*OUTPUTS, "m.json"):
        first = (tmp_path / "out1" / name).read_bytes()
        assert first == (tmp_path / "out2" / name).read_bytes()
        assert first


def test_the_metrics_count_by_file_role_category_and_form(tmp_path):
    chat = {"id": "c", "form": "chat", "category": "d", "source": "me"}
    chat["messages"] = [{"role": "user", "content": "How are you today?"}]
    write(tmp_path / "in", a=rows(sentences(20)), b=[chat], c=rows(["never read"]))
    by_file, report, found = stage(tmp_path, ["a", "b"])
    roles = Counter(prompt.role for some in by_file.values() for prompt in some)
    assert report["read"] == {"all": 21, "file": {"a.jsonl": 20, "b.jsonl": 1}}
    assert report["kept"] == {
        "all": 21,
        "file": {"a.jsonl": 20, "b.jsonl": 1},
        "category": {"c": 20, "d": 1},
        "form": {"continuation": 20, "chat": 1},
        "role": {role: roles[role] for role in SHARES},
    }
    of_role = report["categories_of_role"]
    assert sum(of_role[role].get("c", 0) for role in SHARES) == 20
    assert report["unread"] == ["c.jsonl"]
    assert found["kept/test"] == roles["test"]


def test_rows_filtered_by_a_source_are_counted_by_their_reason(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    entry = {
        "kind": "hub", "adapter": "realtoxicityprompts", "repository": "o/toxic", "split": "train",
        "revision": "0" * 40, "category": "insult", "min_toxicity": 0.5,
    }  # fmt: skip
    made = [{"prompt": {"text": t, "toxicity": x}} for t, x in [("You", 0.9), ("He", 0.1)]]
    write(tmp_path / "in" / "o" / "toxic", train=made)
    _, report, _ = stage(tmp_path, [], sources=[entry])
    assert report["read"]["all"] == 2
    assert report["left_out"]["toxicity"] == {
        "count": 1, "examples": ["o/toxic:train:2: prompt.toxicity is 0.1"],
    }  # fmt: skip


def test_a_duplicate_id_is_refused_with_both_places(tmp_path):
    write(tmp_path / "in", a=rows(["One"]), b=rows(["Two"]))
    with pytest.raises(RecordError) as refused:
        stage(tmp_path, ["a", "b"])
    assert str(refused.value) == (
        f"{tmp_path}/in/b.jsonl:1: id p-0000 stands at {tmp_path}/in/a.jsonl:1 already; "
        "an id names one prompt throughout the graph, so change one of them"
    )


def test_a_refused_run_leaves_the_earlier_output_as_it_was(tmp_path):
    write(tmp_path / "in", a=rows(sentences(20)))
    stage(tmp_path, ["a"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with (tmp_path / "in" / "a.jsonl").open("a") as out:
        out.write("{}\n")
    with pytest.raises(RecordError, match=r"a\.jsonl:21: id is missing"):
        stage(tmp_path, ["a"])
    del before[tmp_path / "in" / "a.jsonl"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_that_dies_between_two_files_leaves_the_earlier_output_as_it_was(
    tmp_path, monkeypatch
):
    write(tmp_path / "in", a=rows(sentences(20)), b=rows(sentences(40), prefix="q"))
    stage(tmp_path, ["a"])
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_lines = files.write_lines

    def dies_at_the_last(path, lines):
        if path.name == "test.jsonl":
            raise OSError("no space left on device")
        return write_lines(path, lines)

    monkeypatch.setattr(files, "write_lines", dies_at_the_last)
    with pytest.raises(OSError, match="no space"):
        stage(tmp_path, ["b"])
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    "over, message",
    [
        ({"near_duplicate": 0.0}, "split.near_duplicate must be greater than 0, not 0.0"),
        ({"near_duplicate": 1.1}, "split.near_duplicate must be less than or equal to 1, not 1.1"),
        ({"salt": 1}, "split.salt must be a valid string, not 1"),
        ({"shares": SHARES | {"sft": 0.2}}, "split.shares: the shares must sum to 1, not 1.1"),
        ({"slat": "1"}, "split.slat is not a parameter of Split; did you mean 'salt'?"),
    ],
)
def test_params_out_of_range_are_refused(over, message):
    with pytest.raises(Refusal) as refused:
        section(["a.jsonl"], **over)
    assert str(refused.value) == f"params.yaml: prompts.{message}"


def test_no_source_at_all_is_refused():
    with pytest.raises(Refusal, match=r"^params\.yaml: prompts\.sources must"):
        section([])


# --------------------------------------------------------------------------- relation of files


def test_params_name_every_file_of_the_projects_own_prompts_and_each_fits():
    p = params.load("prompts", Prompts)
    folder = Path("data/sources/prompts")
    named = {source.path for source in p.sources}
    assert named == {path.name for path in folder.glob("*.jsonl")}


def test_the_projects_own_prompts_pass_with_nothing_left_out(tmp_path):
    p = params.load("prompts", Prompts)
    found = prompts.run(
        p,
        {},
        sources=Path("data/sources/prompts"),
        provocations=tmp_path,
        out=tmp_path / "out",
        metrics=tmp_path / "m.json",
    )
    assert found["left_out"] == 0


def test_the_datasheet_says_what_the_files_hold():
    every = [
        row
        for path in sorted(Path("data/sources/prompts").glob("*.jsonl"))
        for row in files.read_lines(path, SourcePrompt)
    ]
    sheet = Path("data/sources/README.md").read_text(encoding="utf-8")
    cells = [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in sheet.splitlines()]
    table = {(row[0], row[1]): int(row[2]) for row in cells if len(row) == 3 and row[2].isdigit()}
    assert table == Counter((row.category, row.form) for row in every)
    words = [len(row.text.split()) for row in every if row.text]
    turns = Counter(
        sum(turn.role == "user" for turn in row.messages) for row in every if row.messages
    )
    flat = " ".join(sheet.split())
    for said in (
        f"{len(every):,} prompts in English",
        f"{min(words)} to {max(words)} words long",
        f"{sum(row.plain().endswith(QUOTE) for row in every if row.text)} stop right after",
        f"{turns[1]} have one user turn, {turns[2]} have two and {turns[3]} have three",
        f"{sum(row.messages[0].role == 'system' for row in every if row.messages)} open with a sys",
    ):
        assert said in flat


def test_the_nearest_of_the_projects_own_prompts_are_as_far_as_the_datasheet_says():
    every = [
        row
        for path in sorted(Path("data/sources/prompts").glob("*.jsonl"))
        for row in files.read_lines(path, SourcePrompt)
    ]
    ids, texts = [row.id for row in every], [normalise(row.plain()) for row in every]
    # 0.34 rounded: none at 0.345, some at 0.335
    assert len(set(clusters(ids, texts, threshold=0.345))) == len(ids)
    assert len(set(clusters(ids, texts, threshold=0.335))) < len(ids)
