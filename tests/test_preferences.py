"""Public preference sets: every format in its documented form, every refusal, and the real sets."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages.lib.labels import agreement, consensus
from stages.lib.preferences import sets, stack_exchange
from stages.lib.preferences.form import Names, competition
from stages.lib.records import Message, SourcePrompt
from stages.lib.runtime.files import RecordError
from stages.lib.runtime.schema import Refusal, check

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTRY = {"kind": "local", "category": "c", "criterion": "helpful", "name": "set"}
HH = ENTRY | {"path": "a.jsonl", "adapter": "hh_rlhf", "skip": []}


def source(entry):
    return check(entry, sets.Source, "params.yaml: pairs.sources")


def gathered(folder, entry, *rows):
    if rows:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "a.jsonl").write_text(text, encoding="utf-8")
    return sets.read(source(entry), folder)


def refusal(folder, entry, *rows):
    with pytest.raises(RecordError) as refused:
        gathered(folder, entry, *rows)
    assert "\n" not in str(refused.value)
    return str(refused.value).replace(f"{folder}/", "")


def texts(item):
    return {completion.id: completion.text for completion in item.completions}


def ranked(item, label=0):
    """A label's texts in groups, best first; equal ranks are one group."""
    said = item.labels[label]
    by_rank = {}
    for cid, rank in said.ranks.items():
        by_rank.setdefault(rank, set()).add(texts(item)[cid])
    return [by_rank[rank] for rank in sorted(by_rank)]


def turns(*said):
    roles = ["user", "assistant"] * len(said)
    return [Message(role=role, content=text) for role, text in zip(roles, said, strict=False)]


# ------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": "hh"}, "adapter must be one of 'hh_rlhf', 'ultrafeedback', "),
        ({"path": None}, "kind local needs 'path'"),
        ({"split": "train"}, "kind local has no 'split'; drop it"),
        ({"kind": "hub"}, "kind hub needs 'repository'"),
        ({"path": "../x.jsonl"}, "'../x.jsonl' leaves the sources folder"),
        ({"name": "a/b"}, "name"),
        ({"skip": ["all"]}, "skip"),
        ({"colour": "red"}, "colour is not a parameter of HhRlhf"),
    ],
)  # fmt: skip
def test_an_entry_that_is_none_is_refused(change, message):
    with pytest.raises(Refusal) as refused:
        source(HH | change)
    assert str(refused.value).startswith("params.yaml: pairs.sources")
    assert message in str(refused.value)


def test_a_hub_entry_reads_the_folder_that_is_called_like_the_repository(tmp_path):
    folder = tmp_path / "owner/hh"
    folder.mkdir(parents=True)
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Yes",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
    }
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    hub = {"kind": "hub", "repository": "owner/hh", "revision": COMMIT, "split": "train"}
    (item,) = gathered(tmp_path, {k: v for k, v in HH.items() if k != "path"} | hub).items
    assert item.prompt.source == f"owner/hh@{COMMIT}"
    assert ranked(item) == [{"Yes"}, {"No"}]


def test_only_the_first_rows_are_read(tmp_path):
    rows = [
        {"chosen": f"\n\nHuman: {n}\n\nAssistant: a", "rejected": f"\n\nHuman: {n}\n\nAssistant: b"}
        for n in range(5)
    ]
    found = gathered(tmp_path, HH | {"rows": 2}, *rows).items
    assert [item.prompt.id for item in found] == ["set:1", "set:2"]


# ---------------------------------------------------------------------- what all have in common


@given(st.lists(st.text(min_size=1), unique=True, max_size=8))
def test_a_name_is_a_name_and_no_two_are_one(originals):
    names = Names()
    found = [names.of(original) for original in originals]
    assert len(set(found)) == len(originals)
    assert found == [names.of(original) for original in originals]
    for name in found:
        SourcePrompt(id=name, form="continuation", category="c", source="s", text="x")


def test_names_that_would_be_one_are_told_apart():
    # sha256("a b")[:6] is c8687a
    names = Names()
    assert [names.of(x) for x in ("a-b", "a b", "GPT 4 (0613)")] == [
        "a-b",
        "a-b-c8687a",
        "GPT-4-0613",
    ]


def test_competition_ranks_skip_what_ties_take():
    assert competition({"a": 0, "b": 1, "c": 1, "d": 7}) == {"a": 1, "b": 2, "c": 2, "d": 4}


def test_neither_id_nor_order_nor_place_gives_the_verdict_away(tmp_path):
    rows = [
        {"chosen": f"\n\nHuman: q{n}\n\nAssistant: good {n}",
         "rejected": f"\n\nHuman: q{n}\n\nAssistant: bad {n}"}
        for n in range(400)
    ]  # fmt: skip
    items = gathered(tmp_path, HH, *rows).items
    best = [min(item.labels[0].ranks, key=item.labels[0].ranks.get) for item in items]
    # fair coins: 200 with a standard deviation of 10
    assert 160 < sum(cid.endswith("-0") for cid in best) < 240
    assert (
        160 < sum(item.labels[0].shown[0] == b for item, b in zip(items, best, strict=True)) < 240
    )
    assert 160 < sum(item.completions[0].id == b for item, b in zip(items, best, strict=True)) < 240
    assert not any(word in cid for cid in best for word in ("chosen", "rejected"))


def test_swapping_the_texts_of_a_row_swaps_the_ranks_and_nothing_else(tmp_path):
    one, other = ("\n\nHuman: q\n\nAssistant: x", "\n\nHuman: q\n\nAssistant: y")
    (first,) = gathered(tmp_path, HH, {"chosen": one, "rejected": other}).items
    (second,) = gathered(tmp_path, HH, {"chosen": other, "rejected": one}).items
    assert first.completions == second.completions
    a, b = first.labels[0], second.labels[0]
    assert a.shown == b.shown
    assert a.ranks == {cid: 3 - rank for cid, rank in b.ranks.items()}


# ------------------------------------------------------------------------------------- hh-rlhf


def test_a_transcript_becomes_a_chat_and_two_completions(tmp_path):
    before = "\n\nHuman: Hi\nthere\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    (item,) = gathered(tmp_path, HH, {"chosen": before + " So.", "rejected": before + "  No"}).items
    assert item.prompt.messages == turns("Hi\nthere", "Hello", "Why?")
    assert ranked(item) == [{"So."}, {" No"}]  # one space is the form's
    assert (item.prompt.id, item.prompt.category, item.prompt.source) == ("set:1", "c", "a.jsonl")
    one = item.completions[0]
    assert (one.sampler, one.finish, one.tokens, one.logp) == ("set", "stop", None, None)
    label = item.labels[0]
    assert (label.labeler, label.criterion, label.revision) == ("set", "helpful", 1)


def test_rows_of_one_prompt_are_one_item(tmp_path):
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    other = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: c"}
    (item,) = gathered(tmp_path, HH, row, other).items
    # nobody says that both answers "a" are by one model: they are four completions
    assert len(item.completions) == 4
    assert [ranked(item, 0), ranked(item, 1)] == [[{"a"}, {"b"}], [{"a"}, {"c"}]]


FAULTS = {
    "turns": {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nAssistant: b", "rejected": "\n\nHuman: q\n\nAssistant: c"},
    "diverging": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: c"},
    "blank": {"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: c"},
    "identical": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: a"},
}  # fmt: skip
GOOD = {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_left_out_and_counted_where_params_name_it(tmp_path, fault):
    found = gathered(tmp_path, HH | {"skip": [fault]}, GOOD, FAULTS[fault])
    assert (len(found.items), found.left_out) == (1, {fault: 1})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("turns", "a.jsonl:2: its turns go user, assistant, assistant, and not by turns to an "
         "assistant's; `skip: [turns]` leaves such rows out and counts them"),
        ("diverging", "a.jsonl:2: chosen and rejected differ before their last turn; "
         "`skip: [diverging]` leaves such rows out and counts them"),
    ],
)  # fmt: skip
def test_a_fault_that_params_do_not_name_is_refused(tmp_path, fault, message):
    assert refusal(tmp_path, HH, GOOD, FAULTS[fault]) == message


@pytest.mark.parametrize("fault", ["blank", "identical"])
def test_empty_and_equal_answers_are_judgements_too(tmp_path, fault):
    found = gathered(tmp_path, HH, GOOD, FAULTS[fault])
    assert [len(item.completions) for item in found.items] == [2, 2]
    assert not found.left_out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "Hi"}, "a.jsonl:1: chosen must begin with '\\n\\nHuman:'"),
        ({"chosen": 3}, "a.jsonl:1: chosen must be a text, not 3"),
        ({"rejected": "\n\nHuman: x"}, "a.jsonl:1: has no column 'chosen'; it has rejected"),
        (["x"], "a.jsonl:1: must be an object with named fields, not list"),
    ],
)
def test_a_row_that_is_no_transcript_is_refused(tmp_path, row, message):
    assert refusal(tmp_path, HH, row) == message


def test_a_set_of_which_nothing_is_left_is_refused(tmp_path):
    assert refusal(tmp_path, HH | {"skip": ["turns"]}, FAULTS["turns"]) == (
        "a.jsonl: gives no preference; left out: {'turns': 1}"
    )


# -------------------------------------------------------------------------------- UltraFeedback

UF = ENTRY | {"path": "a.jsonl", "adapter": "ultrafeedback", "aspect": "overall", "skip": []}


def answer(model, overall, honesty="3", **change):
    ratings = {name: {"Rating": honesty, "Rationale": "…"} for name in (
        "instruction_following", "honesty", "truthfulness", "helpfulness")}  # fmt: skip
    return {
        "model": model, "principle": "helpfulness", "custom_system_prompt": "Be good.",
        "response": f"by {model}", "critique": "…", "overall_score": overall,
        "fine-grained_score": 3.25, "annotations": ratings,
    } | change  # fmt: skip


def rated(*completions):
    return {
        "source": "sharegpt", "instruction": "What to do in Cairo?", "models": [],
        "correct_answers": ["None"], "incorrect_answers": ["None"], "completions": list(completions),
    }  # fmt: skip


def test_ultrafeedback_ratings_become_ranks_and_scores(tmp_path):
    row = rated(answer("gpt-4", 8.5), answer("alpaca-7b", 4.0), answer("bard", 8.5))
    (item,) = gathered(tmp_path, UF, row).items
    assert item.prompt.messages == turns("What to do in Cairo?")
    assert ranked(item) == [{"by gpt-4", "by bard"}, {"by alpaca-7b"}]
    label = item.labels[0]
    assert label.labeler == "set-gpt-4"
    assert label.scores == {
        "set:1/gpt-4-0": 8.5, "set:1/alpaca-7b-0": 4.0, "set:1/bard-0": 8.5,
    }  # fmt: skip
    assert {c.sampler for c in item.completions} == {"gpt-4", "alpaca-7b", "bard"}


def test_an_aspect_has_a_rating_of_its_own(tmp_path):
    row = rated(answer("a", 9, honesty="1"), answer("b", 1, honesty="5"))
    (item,) = gathered(tmp_path, UF | {"aspect": "honesty"}, row).items
    assert ranked(item) == [{"by b"}, {"by a"}]
    (item,) = gathered(tmp_path, UF | {"aspect": "fine_grained"}, row).items
    assert ranked(item) == [{"by a", "by b"}]


def test_a_completion_without_a_rating_leaves_the_others(tmp_path):
    row = rated(answer("a", 1), answer("b", 2), answer("c", 9, honesty="N/A"))
    entry = UF | {"aspect": "honesty"}
    assert refusal(tmp_path, entry, row) == (
        "a.jsonl:1: completion 3 has no rating for honesty; `skip: [unrated]` leaves such rows out "
        "and counts them"
    )
    found = gathered(tmp_path, entry | {"skip": ["unrated"]}, row)
    assert (len(found.items[0].completions), found.left_out) == (2, {"unrated": 1})
    few = rated(answer("a", 1), answer("c", 9, honesty="N/A"))
    found = gathered(tmp_path, entry | {"skip": ["unrated", "few"]}, row, few)
    assert found.left_out == {"unrated": 2, "few": 1}


BINARIZED = ENTRY | {"path": "a.jsonl", "adapter": "ultrafeedback_binarized", "skip": []}


def binarized(chosen, rejected, scores, prompt="Why?"):
    def talk(text, before=prompt):
        return [{"content": before, "role": "user"}, {"content": text, "role": "assistant"}]

    return {
        "prompt": prompt, "prompt_id": "f0e37e9f7800261167ce91143f98f511f768847236f133f2d0aed60b444ebe57",
        "chosen": talk(chosen), "rejected": talk(rejected), "messages": talk(chosen),
        "score_chosen": scores[0], "score_rejected": scores[1],
    }  # fmt: skip


def test_binarized_ultrafeedback_keeps_its_ids_and_ties(tmp_path):
    row = binarized("a", "b", (8.0, 5.0))
    (item,) = gathered(tmp_path, BINARIZED, row).items
    assert item.prompt.id == f"set:{row['prompt_id']}"
    assert item.prompt.messages == turns("Why?")
    assert ranked(item) == [{"a"}, {"b"}]
    (item,) = gathered(tmp_path, BINARIZED, binarized("a", "b", (6.0, 6.0))).items
    assert ranked(item) == [{"a", "b"}]


def test_binarized_rows_that_contradict_themselves_are_refused(tmp_path):
    assert refusal(tmp_path, BINARIZED, binarized("a", "b", (5.0, 8.0))) == (
        "a.jsonl:1: scores of chosen and rejected are 5.0 and 8.0; `skip: [scores]` leaves such "
        "rows out and counts them"
    )
    row = binarized("a", "b", (8.0, 5.0))
    row["rejected"] = [{"role": "user", "content": "What?"}, *row["rejected"][1:]]
    assert "chosen and rejected differ before their last turn" in refusal(tmp_path, BINARIZED, row)
    two = binarized("a", "b", (8.0, 5.0), prompt="Another?")
    assert refusal(tmp_path, BINARIZED, binarized("a", "b", (8.0, 5.0)), two) == (
        f"a.jsonl:2: calls its prompt set:{two['prompt_id']}, as the other prompt of "
        f"{tmp_path}/a.jsonl:1".replace(f"{tmp_path}/", "")
    )


# ---------------------------------------------------------------------- Summarize from Feedback

TLDR = ENTRY | {"path": "a.jsonl", "adapter": "summarize_from_feedback", "skip": []}


def comparison(**change):
    return {
        "info": {"id": "t3_2vwp1w", "post": "I had a car accident.", "title": "Dutch law?", "subreddit": "legaladvice"},
        "summaries": [
            {"text": " car accident", "policy": "sup4_ppo_rm3_kl10", "note": "Was it fast."},
            {"text": " we suspect", "policy": "ref", "note": None},
        ],
        "choice": 1, "worker": "ikNm ucw", "batch": "batch9", "split": "train", "extra": {"confidence": 8},
    } | change  # fmt: skip


def test_a_comparison_of_summaries_is_a_workers_ranking_of_two(tmp_path):
    (item,) = gathered(tmp_path, TLDR, comparison(), comparison(worker="B", choice=0)).items
    assert item.prompt.text == (
        "SUBREDDIT: r/legaladvice\n\nTITLE: Dutch law?\n\nPOST: I had a car accident.\n\nTL;DR:"
    )
    assert item.prompt.id == "set:t3_2vwp1w"
    # named policies: the second row is about the very same completions
    assert set(texts(item)) == {"set:t3_2vwp1w/sup4_ppo_rm3_kl10-0", "set:t3_2vwp1w/ref-0"}
    assert [ranked(item, n)[0] for n in (0, 1)] == [{" we suspect"}, {" car accident"}]
    assert [label.labeler for label in item.labels] == ["set-ikNm-ucw", "set-B"]
    assert item.labels[0].note == "extra.confidence 8"


def test_a_worker_who_is_asked_again_makes_no_second_vote(tmp_path):
    (item,) = gathered(tmp_path, TLDR, comparison(), comparison(choice=0), comparison()).items
    assert [(label.repeat, label.revision) for label in item.labels] == [
        (False, 1), (True, 1), (True, 2),
    ]  # fmt: skip
    assert consensus.current(item.labels) == item.labels[:1]


def test_news_articles_are_prompts_too(tmp_path):
    info = {"id": "167f", "site": "dailymail", "title": "x", "article": "Sissoko faces action"}
    (item,) = gathered(tmp_path, TLDR, comparison(info=info)).items
    assert item.prompt.text == "Article:\nSissoko faces action\n\nTL;DR:\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": 2}, "a.jsonl:1: choice must be 0 or 1, not 2"),
        ({"summaries": [{"text": "x", "policy": "ref"}] * 2},
         "a.jsonl:1: compares a summary with itself; `skip: [identical]` leaves such rows out and counts them"),
        ({"summaries": []}, "a.jsonl:1: summaries must be a list of two"),
        ({"worker": None}, "a.jsonl:1: worker must be a text, not None"),
    ],
)  # fmt: skip
def test_a_row_that_compares_no_two_summaries_is_refused(tmp_path, change, message):
    assert refusal(tmp_path, TLDR, comparison(**change)) == message


def test_axis_evaluations_are_no_comparisons(tmp_path):
    row = {"info": {}, "split": "test", "summary": {"text": "x"}, "worker": "w", "batch": "cnndm1"}
    assert refusal(tmp_path, TLDR, row).startswith("a.jsonl:1: has no column 'summaries'")


# -------------------------------------------------------------------------------- OpenAssistant

OASST = ENTRY | {"path": "a.jsonl", "adapter": "open_assistant", "languages": [], "keep": []}


def message(name, text, replies=(), **change):
    role = "assistant" if name.count("-") % 2 else "prompter"
    parent = name.rpartition("-")[0] or None
    return {
        "message_id": name, "parent_id": parent, "user_id": None, "text": text, "role": role, "lang": "en",
        "review_count": 3, "review_result": True, "deleted": False, "rank": None, "synthetic": False,
        "model_name": None, "emojis": None, "replies": list(replies), "labels": None,
    } | change  # fmt: skip


def tree(**first):
    deep = message("m-0-0", "and then?", [
        message("m-0-0-0", "bad", rank=1), message("m-0-0-1", "good", rank=0),
    ])  # fmt: skip
    root = message("m", "how?", [
        message("m-0", "so", [deep], rank=0, **first), message("m-1", "thus", rank=2),
        message("m-2", "or so", rank=1, synthetic=True, model_name="chip 20b"),
    ])  # fmt: skip
    return {"message_tree_id": "m", "tree_state": "ready_for_export", "prompt": root}


def flat(node):
    own = {key: value for key, value in node.items() if key != "replies"}
    return [own, *(row for reply in node["replies"] for row in flat(reply))]


@pytest.mark.parametrize("form", ["tree", "nested", "flat"])
def test_replies_are_ranked_whatever_the_form_of_the_rows(tmp_path, form):
    rows = {"tree": [tree()], "nested": [tree()["prompt"]], "flat": flat(tree()["prompt"])}[form]
    found = gathered(tmp_path, OASST | {"keep": ["synthetic"]}, *rows)
    first, second = found.items
    assert first.prompt.messages == turns("how?")
    assert ranked(first) == [{"so"}, {"or so"}, {"thus"}]
    assert second.prompt.messages == turns("how?", "so", "and then?")
    assert ranked(second) == [{"good"}, {"bad"}]
    assert {c.sampler for c in first.completions} == {"person", "chip-20b"}
    assert first.prompt.id == "set:m"
    assert not found.left_out


def test_marked_messages_go_with_all_that_follows_and_ranks_close_up(tmp_path):
    found = gathered(tmp_path, OASST, tree())
    assert ranked(found.items[0]) == [{"so"}, {"thus"}]  # ranks 0 and 2
    assert found.left_out == {"synthetic": 1}
    found = gathered(tmp_path, OASST | {"keep": ["synthetic"]}, tree(deleted=True))
    assert len(found.items) == 1
    assert found.left_out == {"deleted": 1, "follows": 3}
    found = gathered(tmp_path, OASST | {"keep": ["synthetic"]}, tree(review_result=False))
    assert found.left_out == {"rejected": 1, "follows": 3}
    found = gathered(
        tmp_path, OASST | {"languages": ["en"], "keep": ["synthetic"]}, tree(lang="de")
    )
    assert found.left_out == {"language": 1, "follows": 3}


def test_replies_without_a_rank_are_counted(tmp_path):
    row = tree()
    row["prompt"]["replies"][1]["rank"] = None
    found = gathered(tmp_path, OASST, row)
    assert found.left_out == {"synthetic": 1, "unranked": 1, "alone": 1}
    assert [ranked(item) for item in found.items] == [[{"good"}, {"bad"}]]


def test_two_people_may_reply_the_same(tmp_path):
    row = message("m", "how?", [message("m-0", "so", rank=0), message("m-1", "so", rank=1)])
    (item,) = gathered(tmp_path, OASST, row).items
    assert [c.index for c in item.completions] == [0, 1]


@pytest.mark.parametrize(
    ("rows", "message_"),
    [
        (flat(tree()["prompt"])[1:], "a.jsonl:1: message m-0 answers m, which no row has"),
        ([tree(), tree()], "a.jsonl:2: message m stands at a.jsonl:1 too"),
        ([message("m", "x", role="system")], "a.jsonl:1: role must be 'prompter' or 'assistant', not 'system'"),
        ([{"text": "x"}], "a.jsonl:1: message_id is missing"),
        ([message("m", "x", [message("n-0", "y")])],
         "a.jsonl:1: message n-0 is a reply to m but says otherwise"),
    ],
)  # fmt: skip
def test_messages_that_hang_on_nothing_are_refused(tmp_path, rows, message_):
    assert refusal(tmp_path, OASST, *rows) == message_


# --------------------------------------------------------------------------------- comparisons

TABLE = ENTRY | {
    "path": "a.jsonl", "adapter": "comparisons", "form": "chat", "prompt": ["question"],
    "first": "left", "second": "right", "verdicts": ["winner"], "in_order": True, "skip": [],
    "values": {"left": "first", "right": "second", "tie": "tie"},
}  # fmt: skip
VOTE = {"question": "Why?", "left": "a", "right": "b", "winner": "right"}


def test_a_verdict_is_translated_and_the_order_shown_is_kept(tmp_path):
    (item,) = gathered(tmp_path, TABLE, VOTE, VOTE | {"winner": "tie"}).items
    assert [ranked(item, 0), ranked(item, 1)] == [[{"b"}, {"a"}], [{"a", "b"}]]
    assert [texts(item)[cid] for cid in item.labels[0].shown] == ["a", "b"]


def test_one_row_a_vote_with_models_and_a_column_for_the_labeler(tmp_path):
    more = {"labeler": "who", "first_model": "m1", "second_model": "m2"}
    rows = [
        VOTE | {"who": 7, "m1": "GPT-4", "m2": "PaLM 2"},
        VOTE | {"who": 8, "m1": "GPT-4", "m2": "PaLM 2", "winner": "left"},
    ]
    (item,) = gathered(tmp_path, TABLE | more, *rows).items
    assert {c.id for c in item.completions} == {"set:1/GPT-4-0", "set:1/PaLM-2-0"}
    assert [label.labeler for label in item.labels] == ["set-7", "set-8"]


def test_rows_of_one_pair_share_their_completions_where_a_column_says_so(tmp_path):
    rows = [VOTE | {"id": 1}, VOTE | {"id": 1, "winner": "left"}, VOTE | {"id": 2}]
    (item,) = gathered(tmp_path, TABLE | {"pair": "id"}, *rows).items
    assert len(item.completions) == 4
    assert set(item.labels[0].shown) == set(item.labels[1].shown) != set(item.labels[2].shown)


def test_several_columns_are_several_labelers_and_an_empty_one_is_counted(tmp_path):
    entry = TABLE | {
        "verdicts": ["ann", "ben"],
        "values": {"0": "tie", "1": "first", "2": "second"},
    }
    row = VOTE | {"ann": 1, "ben": None}
    assert refusal(tmp_path, entry, row) == (
        "a.jsonl:1: ben is empty; `skip: [unjudged]` leaves such rows out and counts them"
    )
    nobody = row | {"question": "How?", "ann": ""}
    found = gathered(tmp_path, entry | {"skip": ["unjudged"]}, row, nobody)
    assert [[label.labeler for label in item.labels] for item in found.items] == [["set-ann"]]
    assert found.left_out == {"unjudged": 3}


def test_a_prompt_may_have_several_columns_lists_or_turns(tmp_path):
    row = VOTE | {"context": "  ", "lines": [["Title", "One."], ["Two."]]}
    entry = TABLE | {"prompt": ["question", "context", "lines"], "form": "continuation"}
    (item,) = gathered(tmp_path, entry, row).items
    assert item.prompt.text == "Why?\n\nTitle\nOne.\nTwo."
    talk = [{"role": "user", "content": "Hi", "id": 3}]
    (item,) = gathered(tmp_path, TABLE, VOTE | {"question": talk}).items
    assert item.prompt.messages == turns("Hi")


def test_a_text_that_is_none_is_spelled_or_refused(tmp_path):
    row = VOTE | {"left": True}
    assert refusal(tmp_path, TABLE, row) == (
        "a.jsonl:1: left must be a text, not true; `spelled` may say what stands for it"
    )
    (item,) = gathered(tmp_path, TABLE | {"spelled": {"true": "True"}}, row).items
    assert set(texts(item).values()) == {"True", "b"}


def test_texts_may_stand_in_a_second_file(tmp_path):
    (tmp_path / "t.csv").write_text("id,question,left,right\n5,Why?,a,b\n")
    entry = TABLE | {
        "prompt": ["t.question"], "first": "t.left", "second": "t.right",
        "join": {"path": "t.csv", "on": "id", "name": "t"},
    }  # fmt: skip
    (item,) = gathered(tmp_path, entry, {"id": 5, "winner": "left"}).items
    assert ranked(item) == [{"a"}, {"b"}]
    assert refusal(tmp_path, entry, {"id": 6, "winner": "left"}) == (
        "a.jsonl:1: t.csv has no row with id 6"
    )
    (tmp_path / "t.csv").write_text("id,question,left,right\n5,Why?,a,b\n5,Why?,a,b\n")
    assert refusal(tmp_path, entry, {"id": 5, "winner": "left"}) == (
        "t.csv: row 2: id 5 stands at t.csv: row 1 too"
    )


@pytest.mark.parametrize(
    ("change", "row", "message"),
    [
        ({}, {"winner": "both"}, "a.jsonl:1: winner is 'both'; values name left, right, tie"),
        ({}, {"winner": 0.5}, "a.jsonl:1: winner must be a word or whole number, not 0.5"),
        ({}, {"question": " "}, "a.jsonl:1: its prompt is blank"),
        ({"labeler": "who"}, {"who": ""}, "a.jsonl:1: who is empty"),
        ({"first_model": "m", "second_model": "m"}, {"m": "x", "right": "a"},
         "a.jsonl:1: compares x's text with itself"),
        ({"prompt": ["q"]}, {}, "a.jsonl:1: has no column 'q'; it has question, left, right, winner"),
    ],
)  # fmt: skip
def test_a_vote_that_says_nothing_known_is_refused(tmp_path, change, row, message):
    assert refusal(tmp_path, TABLE | change, VOTE | row) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labeler": "w", "verdicts": ["a", "b"]}, "with `labeler`, a row has one verdict"),
        ({"first_model": "m"}, "name both first_model and second_model, or neither"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(change, message):
    with pytest.raises(Refusal, match=message):
        source(TABLE | change)


# -------------------------------------------------------------------------------- ranked lists

RANKED = ENTRY | {
    "path": "a.jsonl", "adapter": "ranked", "form": "chat", "prompt": ["q"], "skip": [],
    "texts": ["a", "b", "c"],
}  # fmt: skip
LIST = {"q": "Why?", "a": "A", "b": "B", "c": "C"}
PAIRWISE = RANKED | {
    "verdicts": "p", "values": {"0": "tie", "1": "first", "2": "second"},
}  # fmt: skip


def test_ranks_and_scores_rank(tmp_path):
    columns = RANKED | {"places": ["ra", "rb", "rc"], "best": "low"}
    (item,) = gathered(tmp_path, columns, LIST | {"ra": 2, "rb": 1, "rc": 2}).items
    assert ranked(item) == [{"B"}, {"A", "C"}]
    listed = RANKED | {"texts": ["all"], "places": ["votes"], "best": "high", "models": ["by"]}
    row = {"q": "Why?", "all": ["A", "B"], "votes": ["3", 5.5], "by": ["x", "y"]}
    (item,) = gathered(tmp_path, listed, row).items
    assert ranked(item) == [{"B"}, {"A"}]
    assert {c.sampler for c in item.completions} == {"x", "y"}


def test_verdicts_on_every_two_become_one_ranking_where_one_says_the_same(tmp_path):
    # 1-2: first, 1-3: first, 2-3: neither
    (item,) = gathered(tmp_path, PAIRWISE, LIST | {"p": [1, 1, 0]}).items
    assert len(item.labels) == 1
    assert ranked(item) == [{"A"}, {"B", "C"}]


def test_verdicts_in_a_circle_stay_rankings_of_two(tmp_path):
    # A over B, C over A, B over C
    (item,) = gathered(tmp_path, PAIRWISE, LIST | {"p": [1, 2, 1]}).items
    assert [ranked(item, n) for n in range(3)] == [[{"A"}, {"B"}], [{"C"}, {"A"}], [{"B"}, {"C"}]]
    assert not any(label.repeat for label in item.labels)
    assert len(consensus.current(item.labels)) == 3


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=6, max_size=6))
def test_rankings_say_what_the_verdicts_said(tmp_path_factory, stated):
    folder = tmp_path_factory.mktemp("four")
    entry = PAIRWISE | {"texts": ["a", "b", "c", "d"]}
    (item,) = gathered(folder, entry, LIST | {"d": "D", "p": stated}).items
    number = {"A": 0, "B": 1, "C": 2, "D": 3}
    at = {cid: number[text] for cid, text in texts(item).items()}
    couples = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = {couple: {0: 0, 1: 1, 2: -1}[v] for couple, v in zip(couples, stated, strict=True)}
    found = {}
    for label in item.labels:
        for j in consensus.judgements(label):
            one, two = at[j.first], at[j.second]
            found[min(one, two), max(one, two)] = j.verdict if one < two else -j.verdict
    assert found == expected


@pytest.mark.parametrize(
    ("entry", "row", "message"),
    [
        (PAIRWISE, {"p": [1, 2]}, "a.jsonl:1: p must be a list of 3 verdicts"),
        (PAIRWISE, {"p": [1, 2, 3]}, "a.jsonl:1: p is '3'; values name 0, 1, 2"),
        (PAIRWISE, {"p": [1, 2, None]}, "a.jsonl:1: a place or verdict is missing; "
         "`skip: [unjudged]` leaves such rows out and counts them"),
        (RANKED | {"places": ["r"], "best": "low"}, {"r": [1, 2]}, "a.jsonl:1: has 3 texts and 2 places"),
        (PAIRWISE | {"texts": ["a"]}, {"p": []}, "a.jsonl:1: has 1 texts; two or more can be ranked"),
    ],
)  # fmt: skip
def test_a_list_that_is_not_ranked_is_refused(tmp_path, entry, row, message):
    assert refusal(tmp_path, entry, LIST | row) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "name either `places` or `verdicts`"),
        ({"places": ["r"]}, "`places` need `best`"),
        ({"verdicts": "p"}, "`verdicts` need `values`"),
    ],
)
def test_an_entry_without_an_order_is_refused(change, message):
    with pytest.raises(Refusal, match=message):
        source(RANKED | change)


# ------------------------------------------------------------------------------------ real data


def labels_of(found):
    return [label for item in found.items for label in item.labels]


def real(folder, **entry):
    return sets.read(source(ENTRY | entry), folder)


def hh_harmless(folder, *skip):
    path = "hh-rlhf-harmless-base/test.jsonl.gz"
    return real(folder, path=path, adapter="hh_rlhf", name="hh", skip=list(skip))


def test_hh_harmless_is_read_but_for_nine_rows(real_data):
    found = hh_harmless(real_data, "turns", "diverging")
    # 2,312 rows; in 9 two assistant turns follow each other (of these 5 differ before the last too)
    assert found.left_out == {"turns": 9}
    assert len(labels_of(found)) == 2303
    assert len(found.items) == 2301  # two prompts have two rows
    assert sum(not c.text.strip() for item in found.items for c in item.completions) == 4
    with pytest.raises(RecordError, match=r"test.jsonl.gz:668: its turns go user, "):
        hh_harmless(real_data)
    assert hh_harmless(real_data, "turns", "blank").left_out == {"turns": 9, "blank": 4}


@pytest.mark.parametrize("file", ["en_100_tree.jsonl.gz", "en_100_message.jsonl.gz"])
def test_open_assistant_has_212_ranked_sets(real_data, file):
    entry = {"path": f"oasst-en100/{file}", "adapter": "open_assistant", "languages": ["en"]}
    found = real(real_data, **entry, name="oasst", keep=["synthetic"])
    sizes = Counter(len(label.ranks) for label in labels_of(found))
    # 211 sets with every reply ranked (test_consensus counts them) and one of four with three
    assert sizes == {2: 57, 3: 117, 4: 27, 5: 3, 6: 6, 8: 1, 9: 1}
    assert sum(sizes.values()) == 212
    # 40 replies alone under their message, and 6 in sets that are not ranked throughout
    assert found.left_out == {"unranked": 46}
    without = real(real_data, **entry, name="oasst", keep=[])
    assert len(without.items) == 207
    assert without.left_out == {"synthetic": 5, "follows": 17, "unranked": 46}


def test_fine_grained_qa_gives_a_ranking_unless_verdicts_go_in_a_circle(real_data):
    found = real(
        real_data, path="finegrained-qa-feedback/dev_feedback.json.gz", adapter="ranked", name="qa", form="chat",
        prompt=["question", "passages"], texts=[f"prediction {n}" for n in (1, 2, 3, 4)], verdicts="preference",
        values={"0": "tie", "1": "first", "2": "second"}, skip=[],
    )  # fmt: skip
    assert (len(found.items), sum(len(item.completions) for item in found.items)) == (500, 2000)
    # 478 rankings of four, and 22 questions with 6 rankings of two each
    assert Counter(len(label.shown) for label in labels_of(found)) == {4: 478, 2: 132}
    verdicts = Counter(j.verdict for label in labels_of(found) for j in consensus.judgements(label))
    assert verdicts[0] == 384  # zeros in the file; 1,577 and 1,039 are strict
    assert verdicts[1] + verdicts[-1] == 1577 + 1039


def pandalm(folder):
    return real(
        folder, path="pandalm-testset/testset-v1.json.gz", adapter="comparisons", name="pandalm", form="chat",
        prompt=["instruction", "input"], first="response1", second="response2", in_order=True, skip=[],
        verdicts=["annotator1", "annotator2", "annotator3"], spelled={"true": "True"},
        values={"0": "tie", "1": "first", "2": "second"},
    )  # fmt: skip


def nominal_alpha(found):
    """Alpha of verdicts as the set states them, on the first text against the second.

    It is not quite that of verdicts in the order of ids: nominal alpha counts how often each value
    occurs, and which of two texts is called first decides between 1 and -1.
    """
    votes, clusters = {}, {}
    for label in labels_of(found):
        first, second = label.shown
        gap = label.ranks[second] - label.ranks[first]
        votes.setdefault((first, second), {})[label.labeler] = (gap > 0) - (gap < 0)
        clusters[first, second] = label.prompt_id
    labelers = sorted({who for said in votes.values() for who in said})
    rows = [[said.get(who, np.nan) for said in votes.values()] for who in labelers]
    return agreement.alpha(
        np.array(rows, dtype=float),
        list(clusters.values()),
        distance="nominal",
        resamples=20,
        seed=1,
    )


def alpha_by_ids(found):
    """The same of verdicts in the order of ids, as stage pairs has them."""
    judged = [j for label in labels_of(found) for j in consensus.judgements(label)]
    table = agreement.table(judged, {item.prompt.id: item.prompt.id for item in found.items})
    ratings, clusters = agreement.verdict_ratings(table)
    return agreement.alpha(ratings, clusters, distance="nominal", resamples=20, seed=1).value


def test_pandalm_reaches_the_alpha_expected(real_data):
    found = pandalm(real_data)
    assert (len(found.items), len(labels_of(found))) == (170, 2997)
    assert {label.labeler for label in labels_of(found)} == {
        f"pandalm-annotator{n}" for n in (1, 2, 3)
    }
    alpha = nominal_alpha(found)
    assert (round(alpha.value, 3), alpha.n) == (0.864, 999)
    assert round(alpha_by_ids(found), 3) == 0.865
    # 6 answers are the JSON value true: without `spelled` the first of them is refused
    entry = source(ENTRY | {
        "path": "pandalm-testset/testset-v1.json.gz", "adapter": "comparisons", "form": "chat", "prompt": ["instruction"],
        "first": "response1", "second": "response2", "verdicts": ["annotator1"], "values": {}, "in_order": True, "skip": [],
    } | {"values": {"0": "tie", "1": "first", "2": "second"}})  # fmt: skip
    with pytest.raises(
        RecordError, match=r"row 158: response1 must be a text, not true; `spelled`"
    ):
        sets.read(entry, real_data)


def test_llmfao_joins_votes_and_texts_and_reaches_the_alpha_expected(real_data):
    found = real(
        real_data, path="llmfao-crowd/crowd-comparisons.csv.gz", adapter="comparisons", name="llmfao", form="chat",
        prompt=["texts.text"], first="texts.result_x", second="texts.result_y", first_model="left",
        second_model="right", labeler="worker", verdicts=["winner"], in_order=True, skip=[],
        values={"left": "first", "right": "second", "tie": "tie"},
        join={"path": "llmfao-crowd/pairs-crowd.jsonl.gz", "on": "id", "name": "texts"},
    )  # fmt: skip
    labels = labels_of(found)
    assert (len(found.items), len(labels), len({label.labeler for label in labels})) == (
        13,
        8931,
        124,
    )
    assert sum(len(item.completions) for item in found.items) == 750  # one a prompt and model
    assert len({frozenset(label.shown) for label in labels}) == 2139
    assert not any(label.repeat for label in labels)
    assert round(nominal_alpha(found).value, 3) == 0.291
    assert round(alpha_by_ids(found), 3) == 0.290


def test_every_reader_of_files_reads_a_set(tmp_path):
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([row]).encode()))
    (item,) = sets.read(source(HH | {"path": "a.json.gz"}), tmp_path).items
    assert ranked(item) == [{"a"}, {"b"}]


# -------------------------------------------------------------------------------------- documents

ROOT = Path(__file__).parents[1]


def test_every_entry_of_the_readme_is_one_and_every_adapter_has_one():
    text = (ROOT / "data/preferences/README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    entries = [entry for block in blocks for entry in YAML(typ="safe").load(block)]
    read = [source(entry) for entry in entries]
    assert {type(one) for one in read} == set(sets.ADAPTERS)


def test_the_page_on_preferences_names_every_verb_of_convert():
    from stages.lib.commands.convert import VERBS

    page = (ROOT / "docs/preferences.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`((?:\w+-)+(?:in|out))[` ]", page)) == set(VERBS)


def test_the_posts_of_the_readme_are_posts():
    text = (ROOT / "data/preferences/README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    posts = YAML(typ="safe").load("[" + block.replace("}\n{", "},\n{") + "]")
    found = stack_exchange.gather((f"r:{n}", n, post) for n, post in enumerate(posts, start=1))
    assert found.left_out == {"question_with_fewer_than_two_answers": 1}
