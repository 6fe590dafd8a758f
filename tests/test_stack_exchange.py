"""Questions and answers with votes, StackExchange form: read, scored, paired."""

import gzip
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lib.preferences import stack_exchange
from stages.lib.preferences.html_text import text_of
from stages.lib.preferences.stack_exchange import Answered, Question
from stages.lib.runtime.files import RecordError


def question(number, *, accepted=None, title="Why is it?", body="<p>Tell me.</p>", **more):
    return {
        "site": "tea.example.com", "id": number, "type": "question", "parent_id": None,
        "accepted_answer_id": accepted, "score": 1, "title": title, "body_html": body, "tags": "<tea>",
    } | more  # fmt: skip


def answer(number, parent, score, body=None):
    return question(number, title=None, body=body or f"<p>Because {number}.</p>") | {
        "type": "answer", "parent_id": parent, "score": score,
    }  # fmt: skip


def gathered(*rows):
    return stack_exchange.gather(
        (f"posts.jsonl:{number}", number, row) for number, row in enumerate(rows, start=1)
    )


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [
        # log2(1 + v): 0 -> 0, 1 -> 1, 2 -> 1.58, 4 -> 2.32, 5 -> 2.58, 10 -> 3.46, 11 -> 3.58
        (0, False, 0), (1, False, 1), (2, False, 2), (4, False, 2), (5, False, 3), (10, False, 3),
        (11, False, 4), (5, True, 4), (0, True, 1), (-1, False, -1), (-9, False, -1), (-3, True, -1),
    ],
)  # fmt: skip
def test_the_score_is_that_of_the_paper(votes, accepted, score):
    assert stack_exchange.score_of(votes, accepted=accepted) == score


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_more_votes_never_score_less(few, more):
    few, more = sorted((few, more))
    low, high = (stack_exchange.score_of(v, accepted=False) for v in (few, more))
    assert -1 < low <= high
    assert stack_exchange.score_of(few, accepted=True) == low + 1


def test_pairs_are_all_whose_scores_differ_the_higher_first_and_weigh_one_over_k_choose_2():
    # votes 5, 2, -1 and 3, the last accepted: scores 3, 2, -1 and 2 + 1 = 3
    (found,) = gathered(
        question(1, accepted=14), answer(11, 1, 5), answer(12, 1, 2), answer(13, 1, -1), answer(14, 1, 3),
    ).questions  # fmt: skip
    assert found.text == "Why is it?\n\nTell me."
    assert [a.score for a in found.answers] == [3, 2, -1, 3]
    pairs = stack_exchange.pairs(found, "reward", min_difference=1)
    # of C(4, 2) = 6 all but 11 and 14, which tie at 3
    assert [(p.chosen, p.rejected, p.margin) for p in pairs] == [
        ("Because 11.", "Because 12.", 1.0), ("Because 11.", "Because 13.", 4.0), ("Because 12.", "Because 13.", 3.0),
        ("Because 14.", "Because 12.", 1.0), ("Because 14.", "Because 13.", 4.0),
    ]  # fmt: skip
    assert {(p.weight, p.p_chosen, p.criterion, p.role, p.junk) for p in pairs} == {
        (1 / 6, 1.0, "helpful", "reward", False)
    }
    assert {(p.prompt_id, p.category) for p in pairs} == {("tea.example.com:1", "tea.example.com")}
    assert [m.role for m in pairs[0].prompt] == ["user"]
    clear = stack_exchange.pairs(found, "reward", min_difference=3)
    assert [p.margin for p in clear] == [4.0, 3.0, 4.0]
    assert len({p.id for p in pairs}) == 5


def test_posts_may_stand_in_any_order_and_what_cannot_be_used_is_counted():
    rows = [
        answer(11, 1, 5), answer(12, 1, 0), question(1), answer(13, 1, 2, "<p> Because   11. </p>"),
        answer(14, 1, 7, "<p>&nbsp;</p>"), answer(21, 2, 1), question(3), answer(31, 3, 4), question(4),
    ]  # fmt: skip
    found = gathered(*rows)
    (one,) = found.questions
    assert [a.id.split(":")[1] for a in one.answers] == ["11", "12"]
    assert found.left_out == {
        "repeated_answer": 1,  # 13 says what 11 says
        "blank_answer": 1,  # 14
        "answer_without_question": 1,  # 21
        "question_with_fewer_than_two_answers": 2,  # 3 has one, 4 none
    }
    assert gathered(*reversed(rows[:3])).questions[0].answers[::-1] == one.answers


def scored(qid, *answers, site="https://tea.example.com"):
    return {
        "qid": qid, "question": "<p>Why?</p>", "date": "2020/01/01",
        "metadata": [f"{site}/questions/{qid}", site, f"{site}/users/1"],
        "answers": [
            {"answer_id": qid * 10 + n, "author": "a", "author_id": 1, "author_profile": "b", "pm_score": score,
             "selected": False, "text": f"<p>{text}</p>"}
            for n, (score, text) in enumerate(answers)
        ],
    }  # fmt: skip


def test_rows_of_the_hubs_form_keep_their_scores_and_sites_do_not_mix():
    found = gathered(
        scored(7, (4, "Yes."), (-1, "No.")),
        scored(7, (0, "Oui."), (2, "Non."), site="https://cafe.example.com"),
        question(8), answer(81, 8, 1), answer(82, 8, 0),
    ).questions  # fmt: skip
    assert [q.id for q in found] == ["tea.example.com:7", "cafe.example.com:7", "tea.example.com:8"]
    pairs = [p for q in found for p in stack_exchange.pairs(q, "test", min_difference=1)]
    assert [(p.chosen, p.rejected, p.margin) for p in pairs[:2]] == [
        ("Yes.", "No.", 5.0),
        ("Non.", "Oui.", 2.0),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([question(1), answer(1, 1, 2)], r"^posts.jsonl:2: post 1 of tea.example.com is there twice, first at posts.jsonl:1$"),
        ([question(1) | {"score": "high"}], r"^posts.jsonl:1: score must be a valid integer, not 'high'$"),
        ([{k: v for k, v in question(1).items() if k != "site"}], r"^posts.jsonl:1: site is missing$"),
        ([answer(2, None, 2)], r"^posts.jsonl:1: answer 2 has no parent_id$"),
        ([["a"]], r"^posts.jsonl:1: must be an object with named fields, not list$"),
        ([scored(1) | {"answers": [{"answer_id": 3}]}], r"^posts.jsonl:1: pm_score is missing"),
        ([scored(1) | {"metadata": ["a"]}], r"^posts.jsonl:1: metadata must have the site's address in the second place$"),
        ([question(1) | {"type": "wiki"}], r"^posts.jsonl:1: type must be 'question' or 'answer', not 'wiki'$"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_by_its_place(rows, message):
    with pytest.raises(RecordError, match=message):
        gathered(*rows)


def test_a_folder_is_read_file_by_file_with_notes_beside(tmp_path):
    (tmp_path / "SOURCE.md").write_text("where it is from")
    (tmp_path / "b.jsonl").write_text(json.dumps(question(1)) + "\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as out:
        out.write(f"{json.dumps(answer(2, 1, 3))}\n\n{json.dumps(answer(3, 1, 0))}\n")
    assert [where.split("/")[-1] for where, _, _ in stack_exchange.rows(tmp_path)] == [
        "a.jsonl.gz:1",
        "a.jsonl.gz:3",
        "b.jsonl:1",
    ]
    assert len(list(stack_exchange.rows(tmp_path / "b.jsonl"))) == 1
    (tmp_path / "Posts.xml").write_text("<posts/>")
    with pytest.raises(RecordError, match=r"Posts.xml: must end in .jsonl, .jsonl.gz, .json"):
        list(stack_exchange.rows(tmp_path))
    with pytest.raises(RecordError, match=r"none: no data file is there; put posts of a site into"):
        list(stack_exchange.rows(tmp_path / "none"))


def asked(text, *scores):
    answers = tuple(
        Answered(f"tea.example.com:{n}", f"Answer {n}", s, "stop") for n, s in enumerate(scores)
    )
    return Question(f"tea.example.com:{len(text)}", "tea.example.com", text, answers)


def test_what_is_held_out_is_decided_by_the_questions_text_alone():
    some = [asked(f"Question {n}?", 0, 1) for n in range(400)]
    out = [stack_exchange.held_out(q, 0.2) for q in some]
    assert 50 < sum(out) < 110  # 80 are expected, with a standard deviation of 8
    shouted = [asked(f"  QUESTION\n{n}? ", 3, 1, 2) for n in range(400)]
    assert [stack_exchange.held_out(q, 0.2) for q in shouted] == out
    wider = [stack_exchange.held_out(q, 0.3) for q in some]
    assert all(b for a, b in zip(out, wider, strict=True) if a)
    clusters = {
        stack_exchange.pairs(q, "test", min_difference=1)[0].cluster for q in some + shouted
    }
    assert len(clusters) == 400


def test_the_answers_kept_of_many_do_not_depend_on_their_scores():
    ranked = asked("Why?", *range(9))
    turned = asked("Why?", *reversed(range(9)))
    kept = [[a.id for a in stack_exchange.first_answers(q, 4)] for q in (ranked, turned)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4
    assert len(stack_exchange.first_answers(ranked, 20)) == 9


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One</p>\n\n<p>two\nlines</p>", "One\n\ntwo lines"),
        ("a &lt; b &amp;&amp; c&nbsp;&#8805; d", "a < b && c ≥ d"),
        ("Use <code>x = 1</code> here", "Use `x = 1` here"),
        ("<p>See</p><pre><code>if a:\n    b  &lt; 2\n</code></pre><p>End</p>", "See\n\n```\nif a:\n    b  < 2\n```\n\nEnd"),
        ("<ul><li>one</li><li><p>two</p></li></ul>after", "- one\n- two\n\nafter"),
        ("<ol><li>one<li>two</ol>", "1. one\n2. two"),
        ("<ol><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ol>", "1. a\n   - b\n   - c\n2. d"),
        ("<blockquote><p>said</p><p>more</p></blockquote><p>so</p>", "> said\n>\n> more\n\nso"),
        ('<a href="http://x.org/?a=1">the words</a>', "the words"),
        ('<img src="u" alt="a cup"> <img src="v">', "[a cup] [image]"),
        ("one<br>two<br/><br>three", "one\ntwo\n\nthree"),
        ("10<sup>2</sup> H<sub>2</sub>O <s>gone</s> <em>yes</em>", "10^2 H2O ~~gone~~ yes"),
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>", "a | b\n1 | 2"),
        ("x<script>alert(1)</script>y", "xy"),
        ("<ul><li>open<blockquote>deep", "- open\n\n  > deep"),
        ("</li></ul>stray</blockquote>", "stray"),
    ],
)  # fmt: skip
def test_html_becomes_the_text_that_a_person_would_type(html, text):
    assert text_of(html) == text


@given(st.lists(st.sampled_from(
    ["<p>", "</p>", "<ul>", "</ul>", "<ol>", "<li>", "</li>", "</ol>", "<pre>", "</pre>", "<blockquote>",
     "</blockquote>", "<code>", "</code>", "word ", "<br>", "<td>", "<script>", "</script>", " "]
)))  # fmt: skip
def test_no_nesting_however_wrong_loses_a_word(parts):
    html = "".join(parts)
    scripts = html.split("<script>")
    shown = scripts[0] + "".join(s.partition("</script>")[2] for s in scripts[1:])
    assert text_of(html).count("word") == shown.count("word")


def test_the_public_sample_gives_the_questions_its_source_counts(real_data):
    found = stack_exchange.gather(stack_exchange.rows(real_data / "stackexchange-small"))
    sites = [q.site.split(".")[0] for q in found.questions]
    # SOURCE.md counts the questions with two or more answers: 82, 410, 311, 287
    assert {s: sites.count(s) for s in sites} == {
        "coffee": 82, "beer": 410, "matheducators": 311, "history": 287,
    }  # fmt: skip
    pairs = [p for q in found.questions for p in stack_exchange.pairs(q, "test", min_difference=1)]
    assert len(pairs) == 6004  # counted apart, on the raw rows
    assert not any("<p>" in q.text for q in found.questions)
    assert all(math.isclose(p.weight, 1 / math.comb(len(q.answers), 2)) for q in found.questions[:50]
               for p in stack_exchange.pairs(q, "test", min_difference=1))  # fmt: skip
