"""Preferences from elsewhere: roles by text, nothing near the graph's own prompts, nothing lost."""

import pytest

from stages.lib.labels import joining, reading
from stages.lib.preferences import sets
from stages.lib.records import Completion, Prompt, Ranking
from stages.lib.runtime import files
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, check
from stages.lib.split import Shares, Split

HOW = Split(
    near_duplicate=0.6,
    salt="1",
    shares=Shares(sft=0.0, reward=0.2, monitor=0.2, align=0.2, validation=0.2, test=0.2),
)
OWN = Prompt(
    id="insult-1", form="chat", category="insult", source="me", role="test", cluster="insult-1",
    messages=[{"role": "user", "content": "Tell me what the harbour master said to the pilot yesterday"}],
)  # fmt: skip
WORDS = ["lamp", "river", "stone", "violet", "quickly", "walked", "seven", "orchard"]


def entry(**change):
    plain = {
        "kind": "local", "adapter": "hh_rlhf", "path": "hh.jsonl", "name": "hh", "category": "red_team",
        "criterion": "harmless", "rows": None, "skip": [],
    }  # fmt: skip
    return check(plain | change, sets.Source, "pairs.sources")


def row(question, good="That is private.", bad="You idiot."):
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + good, "rejected": start + bad}


def questions(count):
    return [
        " ".join(WORDS[(n * k + k) % 8] + str(n * k) for k in (1, 3, 5, 7)) for n in range(count)
    ]


def joined(tmp_path, rows, *, own=(OWN,), entries=None):
    files.write_lines(tmp_path / "hh.jsonl", rows)
    return joining.published(entries or [entry()], tmp_path, own, HOW)


def test_a_set_becomes_prompts_completions_and_verdicts_of_known_labelers(tmp_path):
    source, counts = joined(tmp_path, [row(q) for q in questions(30)])
    (given,) = everything = reading.Everything([source])
    assert counts["hh"] == {"prompts": 30, "completions": 60, "labels": 30, "left_out": {}}
    assert set(everything.kinds.values()) == {"published"}
    for label in given.labels:
        best = min(label.ranks, key=label.ranks.get)
        assert given.completions[best].text == "That is private."


def test_a_sets_roles_depend_on_the_text_alone(tmp_path):
    few, _ = joined(tmp_path, [row(q) for q in questions(20)])
    many, _ = joined(tmp_path, [row(q) for q in reversed(questions(40))], own=())
    role = {p.plain(): p.role for _, p in many.prompts}
    assert {p.plain(): p.role for _, p in few.prompts}.items() <= role.items()
    assert len(set(role.values())) == 5


def test_a_prompt_near_one_of_the_graphs_is_left_out_and_counted(tmp_path):
    near = "Tell me what the harbour master said to the pilots yesterday"
    source, counts = joined(tmp_path, [row(near), row(questions(1)[0])])
    assert counts["hh"]["left_out"] == {"near_own_prompt": 1}
    assert [p.messages[0].content for _, p in source.prompts] == [questions(1)[0]]
    assert len(source.completions) == 2


def test_no_near_duplicates_have_two_roles(tmp_path):
    base = "Where would a careful person leave a key for the neighbour number"
    source, counts = joined(tmp_path, [row(f"{base} {n}") for n in range(30)])
    assert len({p.role for _, p in source.prompts}) == 1
    assert len({p.cluster for _, p in source.prompts}) == 1
    assert counts["hh"]["left_out"] == {"near_duplicate": 30 - len(source.prompts)}


def test_two_sets_of_one_name_are_refused(tmp_path):
    with pytest.raises(Refusal, match=r"pairs.sources: two entries are named hh; rename one"):
        joined(tmp_path, [row("a?")], entries=[entry(), entry()])


def test_revisions_are_of_the_graphs_own_prompts(tmp_path):
    said = [
        Completion(
            id=f"insult-1/{sampler}-0", prompt_id="insult-1", sampler=sampler, index=0, text=sampler,
            finish="stop", tokens=3, logp=-1.0,
        )
        for sampler in ("own", "own-original")
    ]  # fmt: skip
    better = Ranking(
        schema_version=1, kind="ranking", criterion="harmless", prompt_id="insult-1", labeler="own",
        shown=[c.id for c in said], ranks={said[0].id: 1, said[1].id: 2}, junk={}, revision=1,
    )  # fmt: skip
    files.write_lines(tmp_path / "own/completions.jsonl", said)
    files.write_lines(tmp_path / "own/rankings.jsonl", [better])
    graph = reading.Source([("prompts", OWN)], [], [], {}, {})
    (given,) = everything = reading.Everything([graph, joining.revised(["own"], tmp_path)])
    assert given.labels == [better]
    assert everything.kinds == {"own": "reviser"}


def test_revisions_of_an_entry_that_has_not_run_are_refused(tmp_path):
    with pytest.raises(
        RecordError, match=r"own: no such folder, .* `dvc repro revise@own` makes it"
    ):
        joining.revised(["own"], tmp_path)
