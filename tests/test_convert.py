"""Labels to other tools and back are the same labels; what a tool cannot hold is refused or told."""

import csv
import io
import itertools
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.lib import order
from stages.lib.commands import convert
from stages.lib.labelers import people
from stages.lib.preferences import argilla, csv_labels, csv_pairs, label_studio, tools, trl
from stages.lib.preferences.form import competition
from stages.lib.preferences.tools import Known, ToolError
from stages.lib.records import (
    Completion,
    Message,
    Pair,
    Preference,
    Prompt,
    Ranking,
    Signal,
    Skip,
    Thumbs,
    Written,
)
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal

ANN, BEN = "0b7bd7bf-6e1c-4a58-8e3b-000000000001", "0b7bd7bf-6e1c-4a58-8e3b-000000000002"
UUIDS, NUMBERS = {"ann": ANN, "ben": BEN}, {"ann": 3, "ben": 4}
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def prompt(name, *, chat=False, role="align"):
    body = (
        {"form": "chat", "messages": [Message(role="user", content=f"Why {name}?")]}
        if chat
        else {"form": "continuation", "text": f"{name} said"}
    )
    return Prompt(id=name, category="insult", source="test", role=role, cluster=name, **body)


def completion(prompt_id, index, text=None, sampler="base"):
    return Completion(
        id=f"{prompt_id}/{sampler}-{index}", prompt_id=prompt_id, sampler=sampler, index=index,
        text=f'{index} of "{prompt_id}",\r\n<b>' if text is None else text, finish="stop", tokens=3, logp=-1.0,
    )  # fmt: skip


PROMPTS = [prompt("q1"), prompt("q2", chat=True), prompt("q3", role="test")]
ANSWERS = [completion(p.id, n) for p in PROMPTS for n in range(4)]
KNOWN = Known({p.id: p for p in PROMPTS}, {c.id: c for c in ANSWERS})


def ranking(ranks, labeler="ann", prompt_id="q1", junk=(), **change):
    ids = [f"{prompt_id}/base-{n}" for n in range(len(ranks) + len(junk))]
    return Ranking(
        schema_version=1, kind="ranking", criterion="harmless", prompt_id=prompt_id, labeler=labeler,
        shown=ids, ranks=dict(zip(ids, ranks, strict=False)), junk=dict(zip(ids[len(ranks):], junk, strict=True)),
        **({"revision": 1} | change),
    )  # fmt: skip


# -------------------------------------------------------------------------- labels at random

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SAID = TEXTS.filter(bool)


@st.composite
def said(draw, texts=TEXTS):
    """What every label has."""
    return {
        "schema_version": 1,
        "criterion": draw(st.sampled_from(["harmless", "helpful"])),
        "prompt_id": draw(st.sampled_from([p.id for p in PROMPTS])),
        "labeler": draw(st.sampled_from(["ann", "ben"])),
        "confidence": draw(st.none() | st.floats(0, 1)),
        "note": draw(st.none() | texts),
        "ms_active": draw(st.none() | st.integers(0, 10**9)),
        "submitted": draw(st.none() | texts),
        "instructions_sha": draw(st.none() | texts),
        "task_sha": draw(st.none() | texts),
        "revision": draw(st.integers(1, 4)),
    }


@st.composite
def rankings(draw, texts=TEXTS, *, sizes=(1, 4), junk=True):
    plain = draw(said(texts))
    size = draw(st.integers(*sizes))
    numbers = draw(st.permutations(range(4)))[:size]
    ids = [f"{plain['prompt_id']}/base-{n}" for n in numbers]
    bad = draw(st.lists(st.sampled_from(ids), unique=True, max_size=len(ids))) if junk else []
    good = [cid for cid in ids if cid not in bad]
    places = {cid: draw(st.integers(0, 3)) for cid in good}
    scores = draw(st.none() | st.fixed_dictionaries(dict.fromkeys(ids, st.floats(-9, 9))))
    return Ranking(
        kind="ranking", shown=ids, ranks=competition(places), junk={cid: draw(texts) for cid in bad},
        scores=scores, repeat=draw(st.booleans()), preferences=draw(preferences(ids)), **plain,
    )  # fmt: skip


def preferences(ids):
    two = [{"first": a, "second": b} for a, b in itertools.combinations(ids, 2)]
    some = st.lists(st.sampled_from(two), unique_by=str) if two else st.just([])
    sure = some.flatmap(lambda chosen: st.tuples(*[st.floats(0, 1).map(lambda p, c=c: Preference(**c, p_first=p)) for c in chosen]))  # fmt: skip
    return st.none() | sure.map(list)


@st.composite
def skips(draw, texts=TEXTS, tasks=("ranking",)):
    plain = draw(said(texts))
    task = draw(st.sampled_from(tasks))
    count = {"ranking": 3, "thumbs": 1, "demonstration": 0}[task]
    shown = [f"{plain['prompt_id']}/base-{n}" for n in draw(st.permutations(range(4)))[:count]]
    return Skip(
        kind="skip", task=task, shown=shown, reason=draw(SAID), repeat=draw(st.booleans()), **plain
    )


@st.composite
def thumbs(draw, texts=TEXTS):
    plain = draw(said(texts))
    cid = f"{plain['prompt_id']}/base-{draw(st.integers(0, 3))}"
    return Thumbs(kind="thumbs", completion_id=cid, up=draw(st.booleans()), **plain)


@st.composite
def written(draw, texts=TEXTS):
    return Written(kind="demonstration", answer=draw(SAID), **draw(said(texts)))


def distinct(labels):
    """One line for each labeler, subject and revision, as a label file has them."""
    return list({(x.labeler, x.subject, x.revision): x for x in labels}.values())


def last(labels):
    """Of each labeler and subject the highest revision."""
    by = {}
    for label in sorted(labels, key=lambda x: x.revision):
        by[label.labeler, label.subject] = label
    return list(by.values())


def sort(labels):
    return sorted(labels, key=lambda x: (x.labeler, str(x.subject), x.revision))


def as_rows(found):
    """Through JSON, as a file would give it back."""
    return [
        (f"f: item {n}", n, one) for n, one in enumerate(json.loads(json.dumps(found)), start=1)
    ]


def placed(labels):
    return [(f"l:{n}", label) for n, label in enumerate(labels, start=1)]


LABELS = st.lists(rankings() | skips(), min_size=1, max_size=6).map(distinct)


# ------------------------------------------------------------------------------------- Argilla


@QUICK
@given(st.lists(rankings(sizes=(3, 3)) | skips(), min_size=1, max_size=6).map(distinct))
def test_labels_come_back_from_argilla_as_they_went(labels):
    tasks, left_out = tools.labeled_tasks(KNOWN, placed(labels))
    body, superseded = argilla.write(tasks, UUIDS)
    users = {user: labeler for labeler, user in UUIDS.items()}
    read = argilla.read(as_rows(body["items"]), KNOWN, users, strict_order=False)
    assert sort(label for _, label in read.labels) == sort(last(labels))
    assert superseded == len(labels) - len(last(labels))
    assert not left_out
    assert not read.left_out


def test_a_record_has_the_form_that_argillas_server_takes():
    tasks, _ = tools.labeled_tasks(
        KNOWN, placed([ranking([2, 1], junk=["off topic"], note="hm"), ranking([1, 1, 1], "ben")])
    )
    (record,) = argilla.write(tasks, UUIDS)[0]["items"]
    slots = {record["metadata"][f"completion_{n}"]: f"completion_{n}" for n in (1, 2, 3)}
    assert set(slots) == {"q1/base-0", "q1/base-1", "q1/base-2"}
    assert record["fields"]["prompt"] == "q1 said"
    assert record["fields"][slots["q1/base-1"]] == KNOWN.completions["q1/base-1"].text
    first, second = record["responses"]
    assert (first["user_id"], first["status"]) == (ANN, "submitted")
    # every option has a rank from 1 to 3, junk the last, or the server refuses the response
    assert {one["value"]: one["rank"] for one in first["values"]["ranking"]["value"]} == {
        slots["q1/base-0"]: 2, slots["q1/base-1"]: 1, slots["q1/base-2"]: 3,
    }  # fmt: skip
    assert first["values"]["junk"] == {"value": [slots["q1/base-2"]]}
    assert first["values"]["note"] == {"value": "hm"}
    assert {one["rank"] for one in second["values"]["ranking"]["value"]} == {1}
    assert set(second["values"]) == {"ranking", "record"}


def answered(status="submitted", **values):
    (task,) = tools.open_tasks(
        Known({"q1": PROMPTS[0]}, {c.id: c for c in ANSWERS[:3]}), "harmless"
    )
    (record,) = argilla.write([task], {})[0]["items"]
    order = [record["metadata"][f"completion_{n}"] for n in (1, 2, 3)]
    said_ = {name: {"value": value} for name, value in values.items()}
    record["responses"] = [
        {"id": "x", "user_id": ANN, "status": status, "values": said_ or None,
         "inserted_at": "2026-01-01T00:00:00", "updated_at": "2026-01-02T00:00:00"}
    ]  # fmt: skip
    return record, order


def of_argilla(*records, **options):
    options = {"strict_order": False} | options
    return argilla.read(as_rows(list(records)), KNOWN, {ANN: "ann"}, **options)


def slot_ranks(*ranks):
    return [{"value": f"completion_{n}", "rank": r} for n, r in enumerate(ranks, start=1)]


def test_what_was_ranked_in_argilla_is_a_label_with_ties_and_junk():
    record, order = answered(ranking=slot_ranks(3, 1, 1), junk=["completion_3"], note="n")
    ((where, label),) = of_argilla(record).labels
    assert where == "f: item 1"
    # completion 3 is junk whatever its rank; the other two are then first and second
    assert label.ranks == {order[0]: 2, order[1]: 1}
    assert label.junk == {order[2]: "junk"}
    assert (label.shown, label.note, label.labeler) == (order, "n", "ann")
    assert (label.submitted, label.revision) == ("2026-01-02T00:00:00", 1)


def test_a_discarded_record_is_a_skip_and_a_draft_is_counted():
    record, order = answered("discarded", note="cannot say")
    ((_, label),) = of_argilla(record).labels
    assert (label.kind, label.reason, label.note, label.shown) == (
        "skip",
        "cannot say",
        None,
        order,
    )
    record, _ = answered("discarded")
    assert of_argilla(record).labels[0][1].reason == "discarded in Argilla"
    record, _ = answered("draft", ranking=slot_ranks(1))
    record["suggestions"] = [{"question_name": "ranking", "value": [], "agent": "judge"}]
    found = of_argilla(record)
    assert (found.labels, found.left_out) == ([], {"draft": 1, "suggestions": 1})


def test_the_sdks_export_without_ranks_is_refused_unless_nobody_tied():
    record, order = answered()
    record["responses"] = {
        "ranking": [{"value": ["completion_2", "completion_3", "completion_1"], "user_id": ANN}],
        "note": [{"value": "n", "user_id": ANN}],
    }
    with pytest.raises(
        RecordError, match=r"^f: item 1: its ranking has no ranks: the SDK's export"
    ):
        of_argilla(record)
    ((_, label),) = of_argilla(record, strict_order=True).labels
    assert label.ranks == {order[0]: 3, order[1]: 1, order[2]: 2}
    assert label.note == "n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranking": slot_ranks(1, 2)}, "f: item 1: ranks 2 of 3 completions"),
        ({"ranking": slot_ranks(1, 2, None)}, "f: item 1: ranks completion_3 as None, which is no rank"),
        ({"ranking": [{"value": "completion_9", "rank": 1}]},
         "f: item 1: names completion_9, which its metadata does not have (completion_1, completion_2, completion_3)"),
        ({"ranking": slot_ranks(1, 2, 3), "record": "hello"},
         "f: item 1: its field `record` is no JSON that was written here: 'hello'"),
        ({}, "f: item 1: ranking must be a list, not NoneType"),
    ],
)  # fmt: skip
def test_a_response_that_is_no_ranking_is_refused_by_item(values, message):
    with pytest.raises(RecordError) as refused:
        of_argilla(answered(**values)[0])
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_id": "q9"}, "f: item 1: is about prompt q9, which the prompts folder does not have"),
        ({"completion_1": "q2/base-0"}, "f: item 1: has completion q2/base-0, which prompt q1 does not have"),
        ({"completion_1": "q1/base-3"}, "f: item 1: has another text of completion q1/base-3 than the completions folder"),
    ],
)  # fmt: skip
def test_a_record_about_something_else_is_refused(change, message):
    record, _ = answered(ranking=slot_ranks(1, 2, 3))
    record["metadata"] |= change
    with pytest.raises(RecordError) as refused:
        of_argilla(record)
    assert str(refused.value) == message


def test_argilla_takes_one_number_of_completions_and_users_it_knows():
    tasks, _ = tools.labeled_tasks(KNOWN, placed([ranking([1, 2]), ranking([1, 2, 3])]))
    with pytest.raises(ToolError, match=r"q1 has . completions and q1 has .; a dataset of Argilla"):
        argilla.write(tasks, UUIDS)
    with pytest.raises(ToolError, match=r"^ann has no user id; name it in the file of --users$"):
        argilla.write(tasks[:1], {"ben": BEN})


def test_the_settings_are_python_that_names_every_slot():
    code = argilla.settings(3)
    compile(code, "settings", "exec")
    assert "['completion_1', 'completion_2', 'completion_3']" in code


# -------------------------------------------------------------------------------- Label Studio


@QUICK
@given(LABELS)
def test_labels_come_back_from_label_studio_as_they_went(labels):
    tasks, left_out = tools.labeled_tasks(KNOWN, placed(labels))
    found = label_studio.write(tasks, NUMBERS, pairwise=False)
    users = {str(user): labeler for labeler, user in NUMBERS.items()}
    read = label_studio.read(as_rows(found), KNOWN, users, strict_order=False)
    assert sort(label for _, label in read.labels) == sort(labels)
    assert not left_out
    assert not read.left_out


@QUICK
@given(st.lists(rankings(sizes=(2, 2), junk=False).filter(lambda x: len(set(x.ranks.values())) == 2), min_size=1, max_size=5).map(distinct))  # fmt: skip
def test_verdicts_on_two_come_back_from_pairwise_tasks(labels):
    tasks, _ = tools.labeled_tasks(KNOWN, placed(labels))
    found = label_studio.write(label_studio.pairs_of(tasks), NUMBERS, pairwise=True)
    users = {str(user): labeler for labeler, user in NUMBERS.items()}
    read = label_studio.read(as_rows(found), KNOWN, users, strict_order=False)
    assert sort(label for _, label in read.labels) == sort(labels)


def test_a_task_has_the_form_that_label_studio_documents():
    label = ranking([1, 1], junk=["off topic"], note="hm")
    tasks, _ = tools.labeled_tasks(KNOWN, placed([label]))
    (task,) = label_studio.write(tasks, NUMBERS, pairwise=False)
    assert {item["id"] for item in task["data"]["items"]} == set(label.shown)
    assert all(set(item) == {"id", "title", "body"} for item in task["data"]["items"])
    (annotation,) = task["annotations"]
    assert (annotation["completed_by"], annotation["was_cancelled"]) == (3, False)
    rank, note, _ = annotation["result"]
    assert rank == {
        "from_name": "rank", "to_name": "items", "type": "ranker",
        "value": {"ranker": {"rank_1": ["q1/base-0", "q1/base-1"], "junk": ["q1/base-2"]}},
    }  # fmt: skip
    assert note == {
        "from_name": "note", "to_name": "prompt", "type": "textarea", "value": {"text": ["hm"]},
    }  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [label_studio.ranker_config(3, 'Which is "better"?'), label_studio.pairwise_config("Better?")],
)
def test_the_configuration_is_xml_whose_names_the_results_use(config):
    root = ET.fromstring(config)
    names = {element.get("name") for element in root.iter()} - {None}
    controls = {"note", "record"}
    if root.find(".//Ranker") is not None:
        buckets = [bucket.get("name") for bucket in root.iter("Bucket")]
        assert buckets == ["rank_1", "rank_2", "rank_3", "junk"]
        # with a default bucket everything would be ranked before anybody looked
        assert not any(bucket.get("default") for bucket in root.iter("Bucket"))
        controls |= {"rank", "items"}
    else:
        controls |= {"choice", "left", "right"}
    assert controls <= names
    assert {e.get("value") for e in root if e.tag == "Text"} <= {"$prompt", "$left", "$right"}


def exported(ranker=None, *, results=(), **change):
    (task,) = tools.open_tasks(
        Known({"q1": PROMPTS[0]}, {c.id: c for c in ANSWERS[:3]}), "harmless"
    )
    (plain,) = label_studio.write([task], {}, pairwise=False)
    value = {
        "from_name": "rank",
        "to_name": "items",
        "type": "ranker",
        "id": "Dx_aB91ISN",
        "value": {"ranker": ranker},
    }
    plain["annotations"] = [
        {"id": 1001, "result": [value, *results] if ranker is not None else list(results), "was_cancelled": False,
         "ground_truth": False, "created_at": "2026-03-09T22:16:08Z", "updated_at": "2026-03-09T22:16:09Z",
         "lead_time": 4.288, "task": 1, "completed_by": 10} | change
    ]  # fmt: skip
    return plain | {"id": 1, "project": 83, "predictions": [], "meta": {}}


def of_label_studio(*rows, users=None, strict_order=False):
    return label_studio.read(as_rows(list(rows)), KNOWN, users or {}, strict_order=strict_order)


A, B, C = (f"q1/base-{n}" for n in range(3))


def test_what_was_ranked_in_label_studio_is_a_label_with_ties_and_junk():
    buckets = {"_": [], "rank_1": [], "rank_2": [A, B], "rank_3": [], "junk": [C]}
    ((_, label),) = of_label_studio(exported(buckets)).labels
    assert label.ranks == {A: 1, B: 1}  # nothing in the first bucket: both are best
    assert label.junk == {C: "junk"}
    assert (label.labeler, label.ms_active) == ("user-10", 4288)
    assert label.submitted == "2026-03-09T22:16:09Z"
    row = exported(buckets, completed_by={"id": 10, "email": "a@b.c"})
    assert of_label_studio(row, users={"10": "ann"}).labels[0][1].labeler == "ann"


def test_the_order_shown_is_what_the_task_lists():
    row = exported({"rank_1": [C], "rank_2": [A], "rank_3": [B]})
    ((_, label),) = of_label_studio(row).labels
    assert label.shown == [item["id"] for item in row["data"]["items"]]
    assert label.ranks == {C: 1, A: 2, B: 3}


def test_a_cancelled_annotation_is_a_skip():
    note = {
        "from_name": "note",
        "to_name": "prompt",
        "type": "textarea",
        "value": {"text": ["cannot", "say"]},
    }
    ((_, label),) = of_label_studio(exported(was_cancelled=True, results=[note])).labels
    assert (label.kind, label.reason, label.note) == ("skip", "cannot\nsay", None)
    ((_, label),) = of_label_studio(exported(was_cancelled=True)).labels
    assert label.reason == "cancelled in Label Studio"


@pytest.mark.parametrize("ranker", [[C, A, B], {"rank": [C, A, B]}])
def test_a_list_that_may_never_have_been_touched_is_refused_unless_it_was_meant(ranker):
    with pytest.raises(
        RecordError, match="its Ranker has no buckets, and then saves the order shown"
    ):
        of_label_studio(exported(ranker))
    ((_, label),) = of_label_studio(exported(ranker), strict_order=True).labels
    assert label.ranks == {C: 1, A: 2, B: 3}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (exported({"_": [A], "rank_1": [B, C]}), "f: item 1: leaves q1/base-0 in _, which is no rank"),
        (exported({"rank_1": [A, B]}), "f: item 1: ranks 2 of 3 completions"),
        (exported({"rank_1": [A, B, C, A]}), "f: item 1: has q1/base-0 in rank_1, which is not its own or is twice there"),
        (exported(), "f: item 1: its ranking must be an object, not NoneType"),
        (exported({"rank_1": [A, B, C]}, completed_by=None),
         "f: item 1: an annotation does not say who made it (completed_by)"),
        ({"data": {"text": "x"}}, "f: item 1: its data has neither items nor left_id and right_id; it was not made here"),
        ({"annotations": []}, "f: item 1: data must be an object, not NoneType"),
    ],
)  # fmt: skip
def test_an_annotation_that_is_no_ranking_is_refused_by_item(row, message):
    with pytest.raises(RecordError) as refused:
        of_label_studio(row)
    assert str(refused.value) == message


def test_pairwise_tasks_show_every_two_and_hold_no_tie():
    (task,) = tools.open_tasks(
        Known({"q1": PROMPTS[0]}, {c.id: c for c in ANSWERS[:3]}), "harmless"
    )
    assert len(label_studio.pairs_of([task])) == 3
    tasks, _ = tools.labeled_tasks(KNOWN, placed([ranking([1, 2, 3])]))
    with pytest.raises(ToolError, match=r"^ann ranks 3 completions of q1; Pairwise shows two"):
        label_studio.pairs_of(tasks)
    for label in (ranking([1, 1]), ranking([1], junk=["x"])):
        tasks, _ = tools.labeled_tasks(KNOWN, placed([label]))
        with pytest.raises(
            ToolError, match=r"^ann ties or junks completions of q1; Pairwise cannot"
        ):
            label_studio.write(tasks, NUMBERS, pairwise=True)


# ----------------------------------------------------------------------------------- all tasks


def test_what_no_task_holds_is_counted():
    common = {
        "schema_version": 1,
        "criterion": "harmless",
        "prompt_id": "q1",
        "labeler": "ann",
        "revision": 1,
    }
    others = [
        Thumbs(kind="thumbs", completion_id="q1/base-0", up=True, **common),
        Written(kind="demonstration", answer="x", **common),
        Skip(kind="skip", task="thumbs", shown=["q1/base-0"], reason="r", **common),
    ]
    tasks, left_out = tools.labeled_tasks(KNOWN, placed([ranking([1, 2]), *others]))
    assert len(tasks) == 1
    assert left_out == {"thumbs": 1, "demonstration": 1, "skip_of_thumbs": 1}


def test_open_tasks_show_completions_in_an_order_of_no_meaning():
    prompts = {f"p{n}": prompt(f"p{n}") for n in range(400)}
    answers = [completion(p, 0, sampler=s) for p in prompts for s in ("base", "tuned")]
    tasks = tools.open_tasks(Known(prompts, {c.id: c for c in answers}), "harmless")
    first = sum(task.completions[0].sampler == "base" for task in tasks)
    assert len(tasks) == 400
    assert 160 < first < 240  # a fair coin: 200 with a standard deviation of 10
    assert len({task.id for task in tasks}) == 400


def test_a_label_about_an_unknown_completion_does_not_go_out():
    with pytest.raises(
        RecordError, match=r"^l:1: has completion q1/base-4, which prompt q1 does not"
    ):
        tools.labeled_tasks(KNOWN, placed([ranking([1, 2, 3, 4, 5])]))


# ------------------------------------------------------------------------------------- CSV


def table(text):
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    return [(f"t: row {n}", n, row) for n, row in enumerate(rows, start=1)]


ALL = rankings(SAID) | skips(SAID, ("ranking", "thumbs", "demonstration")) | thumbs(SAID) | written(SAID)  # fmt: skip


@QUICK
@given(st.lists(ALL, max_size=6).map(distinct))
def test_labels_of_every_kind_come_back_from_a_table_as_they_went(labels):
    read = csv_labels.read(table(csv_labels.write(labels, KNOWN)), KNOWN, None)
    assert [label for _, label in read.labels] == labels


def test_a_table_by_hand_needs_four_columns():
    text = "labeler,prompt_id,completion_id,rank,junk\n" + "".join(
        f"{who},q1,q1/base-{n},{rank},{junk}\n"
        for who in ("ann", "ben")
        for n, rank, junk in ((2, 1, ""), (0, "", "nonsense"), (1, 1, ""))
    )
    read = csv_labels.read(table(text), KNOWN, "harmless")
    (where, first), (_, second) = read.labels
    assert (where, first.labeler, second.labeler) == ("t: row 1", "ann", "ben")
    assert first.shown == ["q1/base-2", "q1/base-0", "q1/base-1"]
    assert first.ranks == {"q1/base-2": 1, "q1/base-1": 1}
    assert first.junk == {"q1/base-0": "nonsense"}
    assert (first.criterion, first.revision) == ("harmless", 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("ann,q1,q1/base-0,one", "t: row 1: rank is 'one', which is none"),
        ("ann,q1,q1/base-0,", "t: row 1: neither ranks nor junks q1/base-0 of prompt q1"),
        ("ann,q1,q1/base-0,2", "t: row 1: ranks [2] are no competition ranks (1 is best, ties share, 1 2 2 4)"),
        ("ann,q9,q1/base-0,1", "t: row 1: is about prompt q9, which the prompts folder does not have"),
        ("ann,q1,q2/base-0,1", "t: row 1: has completion q2/base-0, which prompt q1 does not have"),
        (",q1,q1/base-0,1", "t: row 1: labeler is empty"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_by_its_number(rows, message):
    with pytest.raises(RecordError) as refused:
        csv_labels.read(table(f"labeler,prompt_id,completion_id,rank\n{rows}\n"), KNOWN, "harmless")
    assert str(refused.value) == message


def test_rows_of_one_label_that_disagree_are_refused():
    text = csv_labels.write([ranking([1, 2], note="a")], KNOWN)
    changed = text.replace(',"a",', ',"b",', 1)
    assert changed != text
    with pytest.raises(
        RecordError, match=r"^t: row 2: has another note than t: row 1, of the same"
    ):
        csv_labels.read(table(changed), KNOWN, None)
    with pytest.raises(RecordError, match=r"^t: row 1: has another text of completion q1/base-0"):
        csv_labels.read(table(text.replace("0 of", "zero of")), KNOWN, None)
    with pytest.raises(RecordError, match=r"^t: row 1: has a column colour; a table of labels has"):
        csv_labels.read(table("labeler,colour\nann,red\n"), KNOWN, None)


def test_what_csv_cannot_tell_apart_does_not_go_out():
    with pytest.raises(
        ToolError, match=r"^ann's ranking of q1 has an empty note, which CSV does not"
    ):
        csv_labels.write([ranking([1, 2], note="")], KNOWN)
    with pytest.raises(ToolError, match=r"has an empty junk, which CSV does not tell from none$"):
        csv_labels.write([ranking([1], junk=[""])], KNOWN)
    with pytest.raises(
        ToolError, match=r"^ann scores of q1 none or more than was shown; CSV has a"
    ):
        csv_labels.write([ranking([1, 2], scores={"q1/base-9": 1.0})], KNOWN)


# ----------------------------------------------------------------------------------- for trainers


@st.composite
def pairs(draw):
    chat = draw(st.booleans())
    turns = [
        Message(role=role, content=draw(SAID)) for role in ("system", "user", "assistant", "user")
    ]
    chosen, rejected = draw(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
    return Pair(
        id="a:b", prompt_id="q1", cluster="q1", role=draw(st.sampled_from(["align", "test"])), category="c",
        criterion="harmless", prompt=turns if chat else draw(TEXTS), chosen_id="a", rejected_id="b",
        chosen=chosen, rejected=rejected, chosen_finish="stop", rejected_finish="length",
        p_chosen=draw(st.floats(0.5, 1)), weight=draw(st.floats(0.01, 1)), margin=draw(st.floats(-9, 9)),
        votes=draw(st.integers(1, 9)), labelers=draw(st.lists(st.sampled_from(["ann", "ben"]))), junk=draw(st.booleans()),
    )  # fmt: skip


@QUICK
@given(pairs(), st.booleans())
def test_a_pair_comes_back_from_trls_form_as_it_went(pair, implicit):
    row = json.loads(json.dumps(trl.preference(pair, implicit=implicit)))
    assert ("prompt" in row) is not implicit
    assert trl.pair_of(row, "f:1") == pair


@QUICK
@given(st.lists(pairs(), max_size=4))
def test_pairs_come_back_from_a_table_as_they_went(some):
    assert [csv_pairs.pair_of(row, where) for where, _, row in table(csv_pairs.write(some))] == some


def test_a_text_that_looks_like_a_conversation_stays_a_text():
    pair = SKY.model_copy(update={"prompt": '[{"role": "user", "content": "x"}]'})
    ((where, _, row),) = table(csv_pairs.write([pair]))
    assert csv_pairs.pair_of(row, where) == pair


@QUICK
@given(pairs(), st.booleans())
def test_a_signal_comes_back_from_trls_unpaired_form(pair, up):
    keys = ("prompt_id", "cluster", "role", "category", "criterion", "prompt", "votes", "labelers")
    rest = {key: getattr(pair, key) for key in keys}
    signal = Signal(
        id="s",
        completion_id="a",
        text=pair.chosen,
        finish="stop",
        up=up,
        share=pair.p_chosen,
        **rest,
    )
    row = json.loads(json.dumps(trl.unpaired(signal)))
    assert row["label"] is up
    assert trl.signal_of(row, "f:1") == signal


SKY = Pair(
    id="p", prompt_id="q", cluster="q", role="align", category="c", criterion="helpful", prompt="The sky is",
    chosen_id="a", rejected_id="b", chosen=" blue.", rejected=" green.", chosen_finish="stop", rejected_finish="stop",
    p_chosen=1.0, weight=1.0, margin=1.0, votes=1, labelers=["ann"], junk=False,
)  # fmt: skip


def test_rows_are_those_of_trls_documentation():
    row = trl.preference(SKY, implicit=False)
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("The sky is", " blue.", " green.")
    row = trl.preference(SKY, implicit=True)
    assert (row["chosen"], row["rejected"]) == ("The sky is blue.", "The sky is green.")
    chat = SKY.model_copy(
        update={"prompt": [Message(role="user", content="What color is the sky?")]}
    )
    row = trl.preference(chat, implicit=True)
    assert row["rejected"] == [
        {"role": "user", "content": "What color is the sky?"}, {"role": "assistant", "content": " green."},
    ]  # fmt: skip


@pytest.mark.slow
def test_trl_itself_takes_the_rows():
    from trl import extract_prompt, is_conversational, maybe_extract_prompt

    chat = SKY.model_copy(update={"prompt": [Message(role="user", content="Which color?")]})
    explicit, implicit = (trl.preference(chat, implicit=x) for x in (False, True))
    assert is_conversational(explicit)
    assert not is_conversational(trl.preference(SKY, implicit=False))
    found = maybe_extract_prompt(implicit)
    assert {key: found[key] for key in ("prompt", "chosen", "rejected")} == {
        key: explicit[key] for key in ("prompt", "chosen", "rejected")
    }
    # why `prompt_characters` is there: both answers begin with a space, which it takes along
    plain = trl.preference(SKY, implicit=True)
    assert extract_prompt(plain)["prompt"] in ("The sky is", "The sky is ")


def test_an_implicit_prompt_without_an_end_is_refused():
    row = trl.preference(SKY, implicit=True)
    del row["prompt_characters"]
    with pytest.raises(
        RecordError, match=r"^f:1: has neither prompt nor prompt_characters, so noth"
    ):
        trl.pair_of(row, "f:1")
    with pytest.raises(RecordError, match=r"^f:1: has no column 'completion'; it has prompt"):
        trl.signal_of({"prompt": "x"}, "f:1")


# ----------------------------------------------------------------------------------- the command


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with prompts, completions, and labels of two people."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    by_split = {"train": PROMPTS[:2], "validation": [], "test": PROMPTS[2:]}
    for split, some in by_split.items():
        files.write_lines(tmp_path / f"data/prompts/{split}.jsonl", some)
    files.write_lines(tmp_path / "data/completions/base.jsonl", ANSWERS)
    files.write_lines(tmp_path / "data/labels/ann.jsonl", [ranking([1, 2, 2, 4]), ranking([2, 1], prompt_id="q2")])  # fmt: skip
    files.write_lines(tmp_path / "data/labels/ben.jsonl", [ranking([4, 3, 2, 1], "ben")])
    files.write_json(tmp_path / "uuids.json", UUIDS)
    files.write_json(tmp_path / "numbers.json", NUMBERS)
    return tmp_path


def run(root, *words):
    return convert.run([str(word) for word in words], root)


def forget(root):
    kept = {f.name: f.read_bytes() for f in (root / "data/labels").glob("*.jsonl")}
    for file in (root / "data/labels").glob("*.jsonl"):
        file.unlink()
    return kept


def lines_of(root):
    return {
        f.name: sorted(f.read_bytes().splitlines()) for f in (root / "data/labels").glob("*.jsonl")
    }


@pytest.mark.parametrize("tool", ["argilla", "label-studio", "csv"])
def test_labels_go_to_a_tool_and_back_into_the_same_files(root, tool):
    before = lines_of(root)
    out = root / ("out.csv" if tool == "csv" else "out.json")
    users = {"argilla": ["--users", root / "uuids.json"], "label-studio": ["--users", root / "numbers.json"], "csv": []}[tool]  # fmt: skip
    size = ["--completions", 4] if tool == "argilla" else []
    run(root, f"{tool}-out", out, "--labels", *users, *size)
    forget(root)
    told = run(root, f"{tool}-in", out, *users)
    if tool == "argilla":  # q2's label shows two completions, which is another dataset
        before["ann.jsonl"] = [line for line in before["ann.jsonl"] if b'"q1"' in line]
    assert lines_of(root) == before
    assert f"data/labels/ben.jsonl: {len(before['ben.jsonl'])} new, 0 there already" in told


def test_what_is_there_already_is_passed_over(root):
    run(root, "csv-out", root / "out.csv", "--labels")
    before = {f: f.read_bytes() for f in (root / "data/labels").glob("*.jsonl")}
    told = run(root, "csv-in", root / "out.csv")
    assert told == [
        "data/labels/ann.jsonl: 0 new, 2 there already",
        "data/labels/ben.jsonl: 0 new, 1 there already",
    ]
    assert {f: f.read_bytes() for f in before} == before


def test_a_changed_label_is_refused_whole_or_becomes_the_next_revision(root):
    changed = ranking([1, 1, 1, 1], "ben")
    new = ranking([1, 2, 3], "cleo", "q3")
    text = csv_labels.write([ranking([1, 2, 2, 4]), new, changed], KNOWN)
    (root / "out.csv").write_text(text, newline="")
    before = lines_of(root)
    with pytest.raises(
        RecordError,
        match=r"out.csv: row 8: says otherwise of prompt q1 than revision 1 in .*ben.jsonl; --revise adds it as revision 2$",
    ):
        run(root, "csv-in", root / "out.csv")
    assert lines_of(root) == before  # not even cleo's, which is new
    run(root, "csv-in", root / "out.csv", "--revise")
    found = [label for _, label in people.read(root / "data/labels/ben.jsonl")]
    assert found[1:] == [changed.model_copy(update={"revision": 2})]
    assert len(people.read(root / "data/labels/cleo.jsonl")) == 1
    # once more: the last revision says so already
    assert "data/labels/ben.jsonl: 0 new, 1 there already" in run(root, "csv-in", root / "out.csv", "--revise")  # fmt: skip


def test_an_import_keeps_every_byte_that_was_there(root):
    file = root / "data/labels/ann.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))  # an editor that drops the last line feed
    before = file.read_bytes()
    text = "labeler,prompt_id,completion_id,rank\nann,q3,q3/base-0,1\nann,q3,q3/base-1,1\n"
    (root / "hand.csv").write_text(text)
    run(root, "csv-in", root / "hand.csv", "--criterion", "harmless")
    assert file.read_bytes().startswith(before + b"\n")
    assert len(people.read(file)) == 3


def test_a_labeler_who_cannot_be_a_file_is_refused(root):
    (root / "hand.csv").write_text("labeler,prompt_id,completion_id,rank\na/b,q1,q1/base-0,1\n")
    with pytest.raises(RecordError, match=r"row 1: labeler a/b cannot be the name of a file$"):
        run(root, "csv-in", root / "hand.csv", "--criterion", "harmless")


def test_open_tasks_are_chosen_by_role_sampler_and_number(root):
    out = root / "tasks.json"
    told = run(root, "label-studio-out", out, "--criterion", "helpful", "--role", "test")
    assert told[0].endswith("tasks.json: 1 tasks; the project's labeling configuration is")
    ET.fromstring(told[-1])
    (task,) = json.loads(out.read_text())
    assert (task["data"]["prompt_id"], task["data"]["criterion"], task["annotations"]) == (
        "q3", "helpful", [],
    )  # fmt: skip
    run(root, "label-studio-out", out, "--criterion", "helpful", "--pairwise", "--first", 1)
    assert len(json.loads(out.read_text())) == 6  # four completions of one prompt
    run(root, "label-studio-out", out, "--criterion", "helpful")
    by_hash = sorted(["q1", "q2", "q3"], key=order.by_hash)
    assert by_hash != sorted(by_hash)
    assert [task["data"]["prompt_id"] for task in json.loads(out.read_text())] == by_hash
    told = run(root, "argilla-out", out, "--criterion", "helpful")
    assert len(json.loads(out.read_text())["items"]) == 3
    assert "rg.RankingQuestion" in told[-1]
    run(root, "csv-out", root / "open.csv", "--criterion", "helpful")
    assert len(table((root / "open.csv").read_text())) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["csv-out", "o"], "--criterion says what labelers are asked: harmless, helpful, …"),
        (["csv-out", "o", "--criterion", "x", "--sampler", "no"], "no task is left; see --labels, --role, --sampler and --completions"),
        (["argilla-out", "o", "--labels"], "ann has no user id|one number"),
        (["argilla-in", "uuids.json"], "must be a list of objects, or have one as `items`"),
        (["trl-out", "o"], "data/pairs/train.jsonl: no such file"),
        (["argilla-out", "o", "--criterion", "x", "--users", "numbers.json"], "must be an object of labelers and ids, each a str"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_done_is_one_line(root, monkeypatch, words, message):
    monkeypatch.chdir(root)
    with pytest.raises(Refusal, match=message) as refused:
        run(root, *words)
    assert "\n" not in str(refused.value)
    assert not (root / "o").exists()


def test_what_is_left_out_is_printed(root):
    common = {
        "schema_version": 1,
        "criterion": "harmless",
        "prompt_id": "q1",
        "labeler": "ben",
        "revision": 1,
    }
    up = Thumbs(kind="thumbs", completion_id="q1/base-0", up=True, **common)
    second = ranking([1, 1, 1, 1], "ben", revision=2)
    files.write_lines(root / "data/labels/ben.jsonl", [ranking([4, 3, 2, 1], "ben"), second, up])
    words = (
        "argilla-out",
        root / "o.json",
        "--labels",
        "--completions",
        4,
        "--users",
        root / "uuids.json",
    )
    told = run(root, *words)
    assert "left out: 1 thumbs" in told
    assert "left out: 1 superseded_by_a_later_revision" in told


def test_pairs_and_signals_are_written_for_trainers(root):
    chat = SKY.model_copy(update={"id": "c", "prompt": [Message(role="user", content="Which?")]})
    splits = {"train": [SKY, chat], "validation": [SKY], "test": []}
    for split, some in splits.items():
        files.write_lines(root / f"data/pairs/{split}.jsonl", some)
    told = run(root, "trl-out", root / "trl")
    assert [line.rsplit(": ")[-1] for line in told] == ["1 rows", "1 rows", "1 rows", "no rows"]
    # TRL takes no mixture of texts and conversations
    (row,) = [row for _, row in files.raw_lines(root / "trl/conversational/train.jsonl")]
    assert trl.pair_of(row, "x") == chat
    told = run(root, "pairs-csv-out", root / "csv")
    assert told[0].endswith("train.csv: 2 pairs")
    rows = table((root / "csv/train.csv").read_text())
    assert [csv_pairs.pair_of(row, where) for where, _, row in rows] == [SKY, chat]


def test_the_command_prints_a_refusal_in_one_line(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["convert", "csv-in", "absent.csv"])
    assert convert.main() == 1
    assert capsys.readouterr().err == (
        "RecordError: absent.csv: no such file, though convert names it\n"
    )
