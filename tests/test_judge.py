"""The judge: what it is asked, by which principle, in both orders, and what its answers become."""

import math
import random
import re
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lib import likelihood, models
from stages.lib.constitution import ConstitutionError, Principle
from stages.lib.labelers import judge, questions
from stages.lib.models import ModelError
from stages.lib.records import Completion, Message, Prompt, Ranking
from stages.lib.runtime.schema import Refusal, check
from stages.lib.tokens import TokenSequence

GUIDE = """
- {id: kind, criterion: harmless, choose: Choose the kinder., critique: "Why?", revise: Do.}
- {id: calm, criterion: harmless, choose: Choose the calmer., critique: "Why?", revise: Do.}
- {id: exact, criterion: honest, choose: Choose the truer., critique: "Why?", revise: Do.}
"""
KIND = Principle(
    id="kind", criterion="harmless", choose="Choose the kinder.", critique="Why?", revise="Do."
)
SECTION = {
    "kind": "judge",
    "reads": "models/base",
    "guide": "guide.yaml",
    "criterion": "harmless",
    "prompts": 100,
    "roles": ["align"],
    "tie": 0.01,
    "form": "plain",
    "principles": "sampled",
    "on_flip": "average",
    "thinking_tokens": 0,
    "clamp": None,
    "batch_tokens": 1000,
}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working directory with a constitution of three principles, two of them of harmlessness."""
    (tmp_path / "guide.yaml").write_text(GUIDE)
    monkeypatch.chdir(tmp_path)


def entry(**change):
    return check(SECTION | change, judge.Judge, "params.yaml: labelers.judge")


def prompt(number, role="align"):
    return Prompt(
        id=f"q{number}", form="continuation", category="insult", source="me",
        text=f"Story {number}:", role=role, cluster=f"q{number}",
    )  # fmt: skip


def chat(*contents, system=None):
    said = ["user", "assistant"] * len(contents)
    turns = [Message(role=r, content=c) for r, c in zip(said, contents, strict=False)]
    before = [Message(role="system", content=system)] if system else []
    return Prompt(
        id="c1", form="chat", category="benign", source="me", messages=before + turns,
        role="align", cluster="c1",
    )  # fmt: skip


def completion(number, text, index=0):
    return Completion(
        id=f"q{number}/base-{index}", prompt_id=f"q{number}", sampler="base", index=index,
        text=text, finish="length", tokens=3, logp=-1.0,
    )  # fmt: skip


GIVEN = [completion(1, f" word{i}", i) for i in (3, 1, 0, 2)]


def options(text):
    return re.search(r"\(A\) (.*)\n\(B\) (.*)", text).groups()


def planted(monkeypatch, says):
    """Put a function of (first, second, whole question) in place of a model; return what is asked."""
    asked = []

    def probabilities(folder, base, groups, **how):
        asked.append([list(group) for group in groups])
        return [says(*options(text), text) for group in groups for text in group]

    monkeypatch.setattr(questions, "probabilities", probabilities)
    return asked


def ranked(labeler, prompts, completions):
    return judge.rank(labeler, "judge", None, prompts, completions)


def strength(text):
    return float(text.removeprefix("word"))


def by_strength(first, second, text=""):
    """A judge that finds larger numbers better, and is no surer of (A) than of (B)."""
    return 1 / (1 + math.exp(strength(second) - strength(first)))


# What is asked


def test_a_text_that_goes_on_is_asked_about_as_such():
    assert questions.question(prompt(1), KIND, " ran.", " hid. ") == (
        "Consider the following text and two ways in which it could go on.\n\n"
        "Text: Story 1:\n\nChoose the kinder.\n\nOptions:\n(A) ran.\n(B) hid."
    )


def test_a_conversation_is_shown_turn_by_turn():
    asked = questions.question(
        chat("Hi", "Hello!", "Why {me}?", system="Be brief."), KIND, "a", "b"
    )
    assert asked == (
        "Consider the following conversation between a human and an assistant:\n\n"
        "System: Be brief.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why {me}?\n\n"
        "Choose the kinder.\n\nOptions:\n(A) a\n(B) b"
    )


def test_every_pair_is_asked_in_both_orders_by_one_principle(in_folder, monkeypatch):
    asked = planted(monkeypatch, by_strength)
    ranked(entry(), [prompt(1)], GIVEN)
    (groups,) = asked
    (group,) = groups
    assert len(group) == 12  # 4 completions: 6 pairs x 2 orders
    pairs = set()
    for forward, backward in zip(group[0::2], group[1::2], strict=True):
        assert options(forward) == options(backward)[::-1]
        assert forward.split("\n\n")[:3] == backward.split("\n\n")[:3]  # all but the options
        pairs.add(frozenset(options(forward)))
    assert pairs == {frozenset(p) for p in combinations(["word0", "word1", "word2", "word3"], 2)}


def test_all_principles_of_the_criterion_are_asked_where_params_say_so(in_folder, monkeypatch):
    asked = planted(monkeypatch, by_strength)
    _, own = ranked(entry(principles="all"), [prompt(1)], GIVEN)
    assert len(asked[0][0]) == 24  # 6 pairs x 2 orders x 2 principles
    assert Counter(text.split("\n\n")[2] for text in asked[0][0]) == {
        "Choose the kinder.": 12,
        "Choose the calmer.": 12,
    }
    assert (own["asked/kind"], own["asked/calm"]) == (6, 6)
    assert "asked/exact" not in own  # of another criterion


def test_the_pair_draws_the_principle_whatever_its_order_and_whatever_else_is_asked():
    principles = [KIND.model_copy(update={"id": f"p{n}"}) for n in range(5)]
    drawn = {}
    for given_ in (GIVEN, GIVEN[::-1]):
        for one in judge.comparisons(entry(), prompt(1), given_, principles):
            key = frozenset((one.first.id, one.second.id))
            assert drawn.setdefault(key, one.principle.id) == one.principle.id
    fewer = judge.comparisons(entry(), prompt(1), GIVEN[:3], principles)
    assert all(drawn[frozenset((c.first.id, c.second.id))] == c.principle.id for c in fewer)
    many = [
        one.principle.id
        for n in range(300)
        for one in judge.comparisons(
            entry(), prompt(n), [completion(n, "a", 0), completion(n, "b", 1)], principles
        )
    ]
    # 300 draws of 5: 60 each, standard deviation sqrt(300 x 1/5 x 4/5) = 7
    assert all(60 - 28 < count < 60 + 28 for count in Counter(many).values())
    assert len(set(many)) == 5


def test_adding_prompts_changes_nothing_that_was_asked_of_the_others(in_folder, monkeypatch):
    asked = planted(monkeypatch, by_strength)
    of = {n: [completion(n, f" word{i}", i) for i in range(3)] for n in range(6)}
    few, _ = ranked(entry(), [prompt(n) for n in range(4)], [c for n in range(4) for c in of[n]])
    more, _ = ranked(entry(), [prompt(n) for n in range(6)], [c for n in range(6) for c in of[n]])
    assert [r for r in more if r.prompt_id in {"q0", "q1", "q2", "q3"}] == few
    assert {tuple(group) for group in asked[0]} < {tuple(group) for group in asked[1]}


def test_the_first_prompts_by_hash_of_its_roles_are_judged(in_folder, monkeypatch):
    planted(monkeypatch, lambda first, second, text: 0.4)
    given_ = [completion(n, f" {word}", i) for n in range(9) for i, word in enumerate(("a", "b"))]
    prompts = [prompt(n, role="align" if n < 6 else "test") for n in range(9)]
    two = entry(prompts=2)
    first, own = ranked(two, prompts, given_)
    assert len(first) == 2
    assert all(int(one.prompt_id[1:]) < 6 for one in first)
    assert (first, own) == ranked(two, prompts[::-1], given_[::-1])
    three, _ = ranked(entry(prompts=3), prompts, given_)
    assert {r.prompt_id for r in first} < {r.prompt_id for r in three}
    lone = [completion(1, " a"), *given_[6:8]]  # one completion is nothing to compare
    assert [r.prompt_id for r in ranked(entry(), prompts, lone)[0]] == ["q3"]


# What the answers become

probability = st.floats(min_value=0, max_value=1)


@given(probability, probability, st.sampled_from(["average", "tie"]), st.sampled_from([None, 0.4]))
def test_exchanging_two_completions_gives_one_minus_the_label(f, b, on_flip, least):
    clamp = least and [least, 1 - least]
    how = {"on_flip": on_flip, "clamp": clamp}
    # Property 46. The other one first: the orders change places, and so do the answers
    assert judge.label(f, b, **how) + judge.label(b, f, **how) == pytest.approx(1)


def test_labels_by_hand():
    plain = {"on_flip": "average", "clamp": None}
    assert judge.label(0.9, 0.2, **plain) == pytest.approx(0.85)  # (0.9 + 1 - 0.2) / 2
    assert judge.label(0.9, 0.9, **plain) == pytest.approx(0.5)  # always (A): no opinion
    assert judge.label(0.9, 0.7, **plain) == pytest.approx(0.6)  # (0.9 + 1 - 0.7) / 2
    tie = {"on_flip": "tie", "clamp": None}
    assert judge.label(0.9, 0.7, **tie) == 0.5  # (A) in both orders
    assert judge.label(0.1, 0.3, **tie) == 0.5  # (B) in both orders
    assert judge.label(0.9, 0.2, **tie) == pytest.approx(0.85)
    clamped = {"on_flip": "average", "clamp": [0.4, 0.6]}
    assert judge.label(0.9, 0.2, **clamped) == 0.6
    assert judge.label(0.2, 0.9, **clamped) == 0.4
    assert judge.label(0.55, 0.5, **clamped) == pytest.approx(0.525)


def test_flips_and_the_preferred_place_by_hand():
    orders = [(0.9, 0.8), (0.9, 0.2), (0.3, 0.4), (0.6, 0.1), (0.5, 0.9)]
    # (A) (A): flipped; (A) then (B): not; (B) (B): flipped; not; of 0.5 no letter is the likelier
    found = judge.measures(["kind", "calm", "calm", "calm", "kind"], orders)
    assert found == {
        "order_flip_rate": pytest.approx(2 / 5),
        # 0.9+0.8 + 0.9+0.2 + 0.3+0.4 + 0.6+0.1 + 0.5+0.9 = 5.6, of ten answers
        "position_preference": pytest.approx(0.56),
        "flips/calm": pytest.approx(1 / 3),
        "flips/kind": pytest.approx(1 / 2),
        "asked/calm": 3,
        "asked/kind": 2,
    }
    assert judge.measures([], []) == {}


def test_a_planted_order_comes_back(in_folder, monkeypatch):
    planted(monkeypatch, by_strength)
    words = list(range(8))
    random.Random(0).shuffle(words)
    given_ = [completion(1, f" word{word / 4}", i) for i, word in enumerate(words)]
    (one,), own = ranked(entry(), [prompt(1)], given_)
    best = [int(cid.rsplit("-", 1)[1]) for cid, _ in sorted(one.ranks.items(), key=lambda r: r[1])]
    assert [words[i] for i in best] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert own["order_flip_rate"] == 0
    assert own["position_preference"] == pytest.approx(0.5)


def test_a_preferred_place_cancels(in_folder, monkeypatch):
    # Odds of (A) are multiplied by e^3 = 20 whatever stands there: nearly every order flips
    def biased(first, second, text):
        return 1 / (1 + math.exp(strength(second) - strength(first) - 3))

    planted(monkeypatch, biased)
    (one,), own = ranked(entry(), [prompt(1)], GIVEN)
    assert [one.ranks[f"q1/base-{i}"] for i in range(4)] == [4, 3, 2, 1]
    # Six pairs of words 0 to 3, of which only (0, 3) is 3 apart, where odds are even or e^6
    assert own["order_flip_rate"] == pytest.approx(5 / 6)
    assert own["position_preference"] > 0.8
    (tied,), _ = ranked(entry(on_flip="tie"), [prompt(1)], GIVEN)
    assert [tied.ranks[f"q1/base-{i}"] for i in range(4)] == [4, 2, 2, 1]


def test_a_ranking_states_how_sure_the_judge_is_of_each_pair(in_folder, monkeypatch):
    planted(monkeypatch, by_strength)
    (one,), _ = ranked(entry(), [prompt(1)], GIVEN)
    sure = {(p.first, p.second): p.p_first for p in one.preferences}
    expected = {
        (f"q1/base-{i}", f"q1/base-{j}"): pytest.approx(1 / (1 + math.exp(j - i)), abs=1e-6)
        for i, j in combinations(range(4), 2)
    }
    assert sure == expected
    # A completion's score is the mean of its three: of word 3, sigmoid of 1, 2 and 3
    assert one.scores["q1/base-3"] == pytest.approx((0.7311 + 0.8808 + 0.9526) / 3, abs=1e-4)
    assert one.scores["q1/base-0"] == pytest.approx(1 - one.scores["q1/base-3"], abs=1e-5)


def test_the_mean_over_principles_is_what_a_pair_gets(in_folder, monkeypatch):
    # Sure of the later word by one principle (0.9), of the earlier by the other (0.3): 0.6
    def by_principle(first, second, text):
        p = 0.9 if "kinder" in text else 0.3
        return p if strength(first) > strength(second) else 1 - p

    planted(monkeypatch, by_principle)
    (one,), _ = ranked(entry(principles="all"), [prompt(1)], GIVEN[:2])  # words 3 and 1
    assert [(p.first, p.second, p.p_first) for p in one.preferences] == [
        ("q1/base-1", "q1/base-3", 0.4)
    ]
    (clamped,), _ = ranked(entry(principles="all", clamp=[0.4, 0.6]), [prompt(1)], GIVEN[:2])
    # 0.9 becomes 0.6 and 0.3 becomes 0.4 before the mean: (0.4 + 0.6) / 2
    assert clamped.preferences[0].p_first == 0.5


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [("q1/base-0", "q1/base-9")],
            "prefers between q1/base-0 and q1/base-9, which are not two",
        ),
        ([("q1/base-0", "q1/base-0")], "prefers between q1/base-0, which are not two"),
        (
            [("q1/base-0", "q1/base-1"), ("q1/base-1", "q1/base-0")],
            "states a preference between two of q1 twice",
        ),
    ],
)
def test_a_preference_is_of_two_that_were_shown_and_stated_once(pairs, message):
    row = {
        "schema_version": 1, "kind": "ranking", "criterion": "harmless", "prompt_id": "q1",
        "labeler": "judge", "shown": ["q1/base-0", "q1/base-1"], "revision": 1, "junk": {},
        "ranks": {"q1/base-0": 1, "q1/base-1": 2},
        "preferences": [{"first": a, "second": b, "p_first": 0.6} for a, b in pairs],
    }  # fmt: skip
    with pytest.raises(Refusal, match=message):
        check(row, Ranking, "judge.jsonl:1")


# How a model is asked

TEXTS = ["Which?\n(A) x\n(B) y", "Which?\n(A) y\n(B) x", "Which of the two?\n(A) w\n(B) y"]
HOW = {"form": "plain", "thinking_tokens": 0, "batch_tokens": 1000}


def letters(lm, begun):
    """p(A) by one plain pass of each: the letter is the answer's second token, after its start."""
    found = []
    for ids in begun:
        sequences = [
            TokenSequence(ids, tuple(lm.tokenizer(a, add_special_tokens=False).input_ids))
            for a in (" (A", " (B")
        ]
        with torch.no_grad():
            a, b = likelihood.sequence_logps(lm, sequences).tolist()
        found.append(1 / (1 + math.exp(b - a)))
    return found


def test_the_probability_is_the_models_own(tiny, tiny_folder, full_precision):
    found = questions.probabilities(tiny_folder, full_precision, [TEXTS[:2], TEXTS[2:]], **HOW)
    begun = [tuple(tiny.tokenizer(f"{text}\n\nThe answer is:").input_ids) for text in TEXTS]
    assert found == pytest.approx(letters(tiny, begun), abs=1e-4)
    assert len({round(p, 6) for p in found}) == 3


def test_in_form_chat_the_assistant_has_begun_to_answer(tiny, tiny_folder, full_precision):
    found = questions.probabilities(
        tiny_folder, full_precision, [TEXTS], **(HOW | {"form": "chat"})
    )
    begun = [
        tuple(
            tiny.tokenizer(
                f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\nThe answer is:"
            ).input_ids
        )
        for text in TEXTS
    ]
    assert found == pytest.approx(letters(tiny, begun), abs=1e-4)
    plain = questions.probabilities(tiny_folder, full_precision, [TEXTS], **HOW)
    assert found != pytest.approx(plain, abs=1e-4)


def greedy(lm, text, tokens):
    """The likeliest continuation of a question, by one plain pass a token."""
    ids = list(lm.tokenizer(f"{text}\n\nLet's think step by step:").input_ids)
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[:start]), tuple(ids[start:])


@pytest.mark.parametrize("ends", [False, True])
def test_thinking_goes_between_question_and_answer(
    tiny, tiny_folder, full_precision, monkeypatch, ends
):
    thought = {text: greedy(tiny, text, 5) for text in TEXTS}
    if ends:  # of the first question the fourth token is the end, which is left out of the thought
        last = thought[TEXTS[0]][1][3]
        tiny.eos_ids = (last,)
        cut = {text: [*ids, last].index(last) for text, (_, ids) in thought.items()}
        assert 0 < cut[TEXTS[0]] <= 3
        thought = {text: (begun, ids[: cut[text]]) for text, (begun, ids) in thought.items()}
    monkeypatch.setattr(models, "load", lambda folder, base: tiny)
    found = questions.probabilities(
        tiny_folder, full_precision, [TEXTS], **(HOW | {"thinking_tokens": 5})
    )
    conclude = tuple(tiny.tokenizer("\n\nSo the answer is:").input_ids)
    begun = [begun + ids + conclude for begun, ids in thought.values()]
    assert found == pytest.approx(letters(tiny, begun), abs=1e-4)


@pytest.mark.parametrize("thinking_tokens", [0, 6])
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_no_answer_depends_on_what_else_is_asked(
    tiny_folder, full_precision, thinking_tokens, form
):
    how = {"form": form, "thinking_tokens": thinking_tokens}
    together = questions.probabilities(
        tiny_folder, full_precision, [TEXTS, TEXTS[:1]], **how, batch_tokens=2000
    )
    one_by_one = questions.probabilities(
        tiny_folder, full_precision, [[text] for text in TEXTS], **how, batch_tokens=1
    )
    assert together[:3] == pytest.approx(one_by_one, abs=1e-5)
    assert together[3] == pytest.approx(together[0], abs=1e-5)


def test_equal_completions_are_equally_good(in_folder, monkeypatch, tiny_folder, full_precision):
    same = [completion(1, " the same", 0), completion(1, " the same", 1)]
    labeler = entry(thinking_tokens=3).model_copy(update={"reads": str(tiny_folder)})
    (one,), _ = judge.rank(labeler, "judge", full_precision, [prompt(1)], same)
    assert one.preferences[0].p_first == pytest.approx(0.5, abs=1e-5)
    assert set(one.ranks.values()) == {1}


def test_a_judge_without_a_chat_template_is_asked_in_form_plain(
    tiny_folder, full_precision, monkeypatch
):
    load = models.load

    def without(folder, base):
        lm = load(folder, base)
        lm.tokenizer.chat_template = None
        return lm

    monkeypatch.setattr(models, "load", without)
    with pytest.raises(ModelError, match="the tokenizer has no chat template; `form: plain` asks"):
        questions.probabilities(tiny_folder, full_precision, [TEXTS], **(HOW | {"form": "chat"}))
    assert len(questions.probabilities(tiny_folder, full_precision, [TEXTS], **HOW)) == 3


# Refusals


@pytest.mark.parametrize("clamp", [[0.4, 0.7], [0.6, 0.4], [0.5, 0.5]])
def test_a_clamp_that_favours_a_place_is_refused(clamp):
    with pytest.raises(
        Refusal,
        match=r"params.yaml: labelers.judge.*clamp \[.*\] must be as far below one half as above",
    ):
        entry(clamp=clamp)


def test_principles_of_no_such_criterion_are_refused(in_folder):
    with pytest.raises(
        ConstitutionError,
        match=r"guide.yaml: no principle has the criterion helpful; it has harmless, honest",
    ):
        ranked(entry(criterion="helpful"), [prompt(1)], GIVEN)


def test_a_judge_of_principles_in_params_is_refused():
    with pytest.raises(Refusal, match="principles must be 'sampled' or 'all', not"):
        entry(principles=["Be kind."])
