"""Whatever stands in a file that people write, it is read or refused in one line; nothing crashes."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_world import ROLES, World, ranking
from test_malformed import LINES, OF_LINE, RECORDS, TEXTS, WHOLE
from test_params import sections

from stages.lib import importers
from stages.lib.preferences import sets, stack_exchange
from stages.lib.runtime import files, params
from stages.lib.runtime.schema import Refusal, check

ROOT = Path(__file__).parent.parent
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
SHIPPED = {
    "constitution": "constitution.yaml", "identities": "identities.yaml",
    "provocations": "provocations.yaml", "words": "words.txt", "neutral": "neutral_text/test.jsonl",
}  # fmt: skip

nasty = st.sampled_from([
    b"\xff\xfe", b"\x00", b"\r", b"\x1b[2J", b"{", b"[" * 3000, b'"', b"'", b"\\ud800", b": ", b"- ",
    b"&a [*a]", b"!!binary ", b"!!bool x", b"2001-99-99", b"NaN", b"1" * 5000, b"-0", b"1e999",
    "\u2028".encode(), "\ufeff".encode(), b"~", b"\t", b"null", b"true", b"#", b"|", b"<<: 1\n",
])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["", " ", "\ud800", "a\nb", "\x1b[31m", 2**70, -1, 0, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def edits(draw):
    """What to put where: a place as a share of the content, how much goes, and what comes."""
    place = draw(st.floats(0, 1, exclude_max=True))
    gone = draw(st.sampled_from([0, 0, 1, 7, 200]))
    return place, gone, draw(nasty | st.binary(max_size=6))


def edited(content, several):
    for place, gone, new in several:
        at = int(place * len(content))
        content = content[:at] + new + content[at + gone :]
    return content


def read_or_refused(read, *given):
    """Only a `Refusal` may come out, and it is a line that can be printed."""
    line = "read"
    try:
        read(*given)
    except Refusal as refusal:
        line = str(refusal)
    assert line
    assert line.isprintable()


def paths(value, path=()):
    """Every place in plain data."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, one in inner:
        yield from paths(one, (*path, key))


def put(value, path, new):
    if not path:
        return new
    first, *rest = path
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[first] = put(copied[first], rest, new)
    return copied


@pytest.mark.parametrize("name", SHIPPED)
@QUICK
@given(several=st.lists(edits(), min_size=1, max_size=4))
def test_a_shipped_text_with_anything_in_it(name, several, tmp_path):
    path = tmp_path / "mine"
    path.write_bytes(edited((ROOT / "data/sources" / SHIPPED[name]).read_bytes(), several))
    read_or_refused(TEXTS[name], path)


@QUICK
@given(several=st.lists(edits(), min_size=1, max_size=3))
def test_params_with_anything_in_them(several, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(edited((ROOT / "params.yaml").read_bytes(), several))
    read_or_refused(params.load, "policies", dict, path)


SECTIONS = list(sections(WHOLE))


@settings(QUICK, max_examples=300)
@given(data=st.data())
def test_a_section_with_any_value_anywhere(data):
    name, kind = data.draw(st.sampled_from(SECTIONS))
    plain = params.at(WHOLE, name)
    where = data.draw(st.sampled_from(list(paths(plain))))
    read_or_refused(check, put(plain, where, data.draw(values)), kind, f"params.yaml: {name}")


@pytest.mark.parametrize("name", LINES)
@QUICK
@given(data=st.data())
def test_a_record_with_any_value_anywhere(name, data, tmp_path):
    where = data.draw(st.sampled_from(list(paths(LINES[name]))))
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(put(LINES[name], where, data.draw(values))) + "\n")
    read_or_refused(files.read_lines, path, RECORDS[OF_LINE.get(name, name)])


@pytest.mark.parametrize("name", ["prompt", "label"])
@QUICK
@given(several=st.lists(edits(), min_size=1, max_size=3))
def test_a_record_with_any_bytes_anywhere(name, several, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(edited(json.dumps(LINES[name]).encode() * 2, several))
    read_or_refused(files.read_lines, path, RECORDS[name])


COLUMNS = {"columns": {"text": "a.b", "id": "id"}, "form": "chat", "category": "c", "source": "me"}


@pytest.mark.parametrize(
    ("ending", "good"),
    [
        (".jsonl", b'{"id": 1, "a": {"b": "Hello"}}\n'),
        (".json", b'[{"id": "x", "a": {"b": "Hello"}}]'),
        (".csv", b'id,a.b\n1,"Hello, you"\n2,Hi\n'),
        (".jsonl.gz", b""), (".csv.gz", b"\x1f\x8b"), (".parquet", b"PAR1"),
    ],
)  # fmt: skip
@QUICK
@given(several=st.lists(edits(), min_size=1, max_size=3))
def test_prompts_of_any_kind_of_file(ending, good, several, tmp_path):
    path = tmp_path / f"mine{ending}"
    path.write_bytes(edited(good, several))
    entry = {"kind": "local", "path": path.name, **COLUMNS}
    source = check(entry, importers.Source, "params.yaml: prompts.sources.0")
    read_or_refused(importers.read, source, tmp_path)


TURNS = "\n\nHuman: Hi\n\nAssistant: "
OWN = {
    "kind": "local",
    "path": "mine.jsonl",
    "category": "c",
    "criterion": "helpful",
    "name": "set",
}
SETS = {
    "hh_rlhf": ({"skip": []}, {"chosen": f"{TURNS}Yes", "rejected": f"{TURNS}No"}),
    "ultrafeedback": (
        {"aspect": "overall", "skip": []},
        {"instruction": "Hi", "completions": [
            {"model": m, "response": m, "overall_score": n, "fine-grained_score": n, "annotations": {}}
            for n, m in enumerate("ab")]},
    ),
    "ultrafeedback_binarized": (
        {"skip": []},
        {side: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": side}]
         for side in ("chosen", "rejected")} | {"score_chosen": 8.0, "score_rejected": 5.0, "prompt": "Hi"},
    ),
    "summarize_from_feedback": (
        {"skip": []},
        {"info": {"post": "long", "title": "t", "subreddit": "s", "id": "i"}, "choice": 1, "worker": "w",
         "summaries": [{"text": "a", "policy": "x"}, {"text": "b", "policy": "y"}]},
    ),
    "open_assistant": (
        {"keep": {}},
        {"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter", "lang": "en", "rank": None,
         "deleted": False, "review_result": True, "synthetic": False, "message_tree_id": "a", "user_id": "u"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("adapter", SETS)
@QUICK
@given(data=st.data())
def test_a_row_of_a_public_set_with_any_value_anywhere(adapter, data, tmp_path):
    more, row = SETS[adapter]
    where = data.draw(st.sampled_from(list(paths(row))))
    (tmp_path / "mine.jsonl").write_text(json.dumps(put(row, where, data.draw(values))) + "\n")

    def read():
        entry = OWN | more | {"adapter": adapter}
        sets.read(check(entry, sets.Source, "params.yaml: pairs.sources.0"), tmp_path)

    read_or_refused(read)


POST = {
    "site": "tea.example.com", "id": 1, "type": "question", "parent_id": None,
    "accepted_answer_id": None, "score": 1, "title": "Tea", "body_html": "<p>Is tea <b>good?</p>",
}  # fmt: skip


@QUICK
@given(data=st.data())
def test_a_post_with_any_value_anywhere(data, tmp_path):
    where = data.draw(st.sampled_from(list(paths(POST))))
    answer = POST | {"id": 2, "type": "answer", "parent_id": 1, "title": None}
    rows = [put(POST, where, data.draw(values)), answer]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read():
        stack_exchange.gather(importers.file_rows(tmp_path / "mine.jsonl", named_by="pretrain"))

    read_or_refused(read)


# ---------------------------------------------------------------------- from rankings to pairs


@st.composite
def rankings(draw):
    """What three labelers say of ten prompts: any competition ranks, any junk, or nothing."""
    said = {}
    for labeler in ("ann", "bob", "eve"):
        lines = []
        for number in range(10):
            if draw(st.booleans()):
                levels = [draw(st.integers(0, 3)) for _ in range(3)]  # 3 is junk
                kept = [level for level in levels if level < 3]
                ranks = {
                    at: 1 + sum(other < level for other in kept)
                    for at, level in enumerate(levels) if level < 3
                }  # fmt: skip
                junk = [at for at, level in enumerate(levels) if level == 3]
                lines.append(ranking(labeler, number, ranks, junk))
        said[labeler] = lines
    return said


@settings(QUICK, max_examples=40)
@given(said=rankings(), consensus=st.sampled_from(["per_labeler", "majority", "weighted", "soft"]),
       ties=st.sampled_from(["drop", "half"]), junk_pairs=st.booleans())  # fmt: skip
def test_of_any_rankings_every_pair_is_of_one_prompt_and_on_the_side_of_the_votes(
    said, consensus, ties, junk_pairs, tmp_path
):
    shutil.rmtree(tmp_path, ignore_errors=True)
    world = World(tmp_path)
    for labeler, lines in said.items():
        world.write(f"rankings/{labeler}", lines)
    try:
        world.run(consensus=consensus, ties=ties, junk_pairs=junk_pairs)
    except Refusal:  # nobody said anything that makes a pair
        return
    seen = set()
    for split in ("train", "validation", "test"):
        for pair in world.pairs(split):
            assert pair.chosen_id != pair.rejected_id
            both = pair.chosen_id, pair.rejected_id
            assert {one.split("#")[0] for one in both} == {pair.prompt_id}
            assert pair.role == ROLES[int(pair.prompt_id[1:]) % 5]
            assert 0.5 <= pair.p_chosen <= 1
            assert set(pair.labelers) <= said.keys()
            assert for_and_against(said, pair, junk_pairs, consensus)
            key = frozenset(both), *(pair.labelers if consensus == "per_labeler" else ())
            assert key not in seen, "one pair twice"
            seen.add(key)


def for_and_against(said, pair, junk_pairs, consensus):
    """At least as many labelers put chosen first as put it last, of those that have a voice in it."""

    def better(line):
        chosen, rejected = (
            line["ranks"].get(one, 99 if junk_pairs else None) for one in (pair.chosen_id, pair.rejected_id)
        )  # fmt: skip
        if chosen is None or rejected is None:
            return 0
        return (rejected > chosen) - (rejected < chosen)

    votes = [
        better(line) for name, lines in said.items() if name in pair.labelers
        for line in lines if line["prompt_id"] == pair.prompt_id
    ]  # fmt: skip
    # by estimated skill one vote may outweigh two, and who is mostly wrong counts the other way round
    return consensus == "weighted" or sum(votes) >= 0
