"""A policy criticises and revises its own answers, and what is made of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny_model import moved_adapter

from stages import revise
from stages.lib import models, revision_quality, revisions
from stages.lib.algorithms import sft
from stages.lib.algorithms.sft import trainer as sft_trainer
from stages.lib.constitution import Principle
from stages.lib.dialogue import Said
from stages.lib.order import by_hash
from stages.lib.records import Completion, Demonstration, Message, Prompt, Ranking
from stages.lib.revisions import Chain, Round, Trace
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal, check

PRINCIPLES = [
    Principle(
        id=name, criterion="harmless", choose=f"Choose by {name}.",
        critique=f"Criticise by {name}.", revise=f"Revise by {name}.",
    )
    for name in ("calm", "kind", "plain")
]  # fmt: skip
WORDS = Path("data/sources/words.txt")
FILES = ("trace", "demonstrations", "completions", "rankings")


def chat(name, role="align", content="Write something mean.", category="unsafe"):
    return Prompt(
        id=name, cluster=name, category=category, role=role, source="t", form="chat",
        messages=[Message(role="user", content=content)],
    )  # fmt: skip


def beginning(name, role="align", text="He said", category="insult"):
    return Prompt(
        id=name, cluster=name, category=category, role=role, source="t", form="continuation",
        text=text,
    )  # fmt: skip


@dataclass
class Scripted:
    """A voice that says what a test has it say, and remembers what it was asked."""

    lm: object
    says: dict = field(default_factory=dict)
    seed: int = 1
    asked: dict = field(default_factory=dict)

    def speak(self, asked, *, max_tokens, label):
        self.asked |= {name: self.lm.tokenizer.decode(ids) for name, ids in asked.items()}
        texts = {name: self.says.get(name, f"text of {name}") for name in asked}
        return {name: Said(text, "stop", len(text.split()), -1.0) for name, text in texts.items()}


def chains_of(voice, prompts, rounds=1):
    return revisions.revise(
        voice, prompts, PRINCIPLES, rounds=rounds, max_tokens=8, critique_tokens=8, label="x"
    )


def first(prompt_id, number=0):
    return revisions.principle_of(prompt_id, number, PRINCIPLES, seed=1)


# -------------------------------------------------------------------------------- conversation


def test_the_conversation_is_prompt_answer_critique_and_request_for_a_revision(tiny):
    voice = Scripted(tiny, {"c": "You dog.", "c critique 0": "It calls a man a dog."})
    (chain,) = chains_of(voice, [chat("c")])
    one = first("c").id
    before = (
        "<|im_start|>user\nWrite something mean.<|im_end|>\n<|im_start|>assistant\nYou dog."
        f"<|im_end|>\n<|im_start|>user\nCriticise by {one}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert voice.asked["c critique 0"] == before
    assert voice.asked["c revision 0"] == (
        f"{before}It calls a man a dog.<|im_end|>\n<|im_start|>user\nRevise by {one}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert chain.rounds == [
        Round(
            principle=one, critique="It calls a man a dog.", revision="text of c revision 0",
            finish="stop", tokens=5,
        )
    ]  # fmt: skip


def test_a_beginning_is_asked_as_it_stands_and_its_revision_goes_on_with_it(tiny):
    voice = Scripted(tiny, {"b": " you dog", "b revision 0": " nothing"})
    (chain,) = chains_of(voice, [beginning("b")])
    assert voice.asked["b"] == "He said"  # what a sampler answers, too
    asked = voice.asked["b revision 0"]
    assert asked.startswith(
        "<|im_start|>user\nHere is the beginning of a text:\n\nHe said\n\nGo on with it.<|im_end|>\n"
        "<|im_start|>assistant\nHe said you dog<|im_end|>\n"
    )
    assert asked.endswith(
        f"Revise by {first('b').id}. Begin with the same words.<|im_end|>\n"
        "<|im_start|>assistant\nHe said"
    )
    assert chain.text == " nothing"


def test_the_next_round_starts_from_the_revision_and_by_another_principle(tiny):
    voice = Scripted(tiny, {"c revision 0": "Better."})
    (chain,) = chains_of(voice, [chat("c")], rounds=2)
    assert "assistant\nBetter.<|im_end|>" in voice.asked["c critique 1"]
    assert "text of c<" not in voice.asked["c critique 1"]
    assert [one.principle for one in chain.rounds] == [first("c").id, first("c", 1).id]
    assert chain.text == "text of c revision 1"


def test_no_principle_comes_twice_before_all_have_come():
    drawn = {n: [first(f"p{n}", number).id for number in range(6)] for n in range(200)}
    for order in drawn.values():
        assert set(order[:3]) == {"calm", "kind", "plain"}
        assert order[3:] == order[:3]
    firsts = [order[0] for order in drawn.values()]
    assert min(firsts.count(one.id) for one in PRINCIPLES) > 40  # 67 of 200 expected


def test_a_new_principle_leaves_the_others_in_their_order():
    new = PRINCIPLES[0].model_copy(update={"id": "brief"})
    for n in range(20):
        order = [
            revisions.principle_of(f"p{n}", number, [new, *PRINCIPLES], seed=1).id
            for number in range(4)
        ]
        order.remove("brief")
        assert order == [first(f"p{n}", number).id for number in range(3)]


def test_another_seed_draws_other_principles():
    other = [revisions.principle_of(f"p{n}", 0, PRINCIPLES, seed=2).id for n in range(30)]
    assert other != [first(f"p{n}").id for n in range(30)]


# --------------------------------------------------------------------------------------- blanks


@pytest.mark.parametrize(
    ("blank", "rounds", "said"),
    [
        ("c", 0, []),
        ("c critique 0", 1, [None]),
        ("c revision 0", 1, [" \n"]),
        ("c critique 1", 2, ["text of c revision 0", None]),
        ("c revision 1", 2, ["text of c revision 0", " \n"]),
    ],
)
def test_a_blank_ends_the_rounds_is_recorded_and_makes_nothing(tiny, blank, rounds, said):
    voice = Scripted(tiny, {blank: " \n"})
    chains = chains_of(voice, [chat("c"), chat("d")], rounds=2)
    blanked, whole = chains
    assert [one.revision for one in blanked.rounds] == said
    assert len(blanked.rounds) == rounds
    assert len(whole.rounds) == 2
    assert [trace.final for trace in revisions.traces(chains)] == [None, "text of d revision 1"]
    assert [one.id for one in revisions.demonstrations(chains, "own")] == ["d/own"]
    assert [one.prompt_id for one in revisions.rankings(chains, "own", "harmless")] == ["d"]
    assert {one.prompt_id for one in revisions.completions(chains, "own")} == {"d"}
    found = measured(chains)
    assert found["empty_share"] == 0.5
    assert sum(one["blank"] for one in found["by_round"]) == (rounds > 0)


def test_a_reviser_of_which_nothing_is_left_is_refused(tiny):
    chains = chains_of(Scripted(tiny, {"c": ""}), [chat("c")])
    with pytest.raises(Refusal) as refused:
        measured(chains)
    assert str(refused.value) == (
        "none of 1 prompts has a revision: answer, criticism or revision is blank each time; "
        "another temperature, more tokens or a larger model would do"
    )


# ------------------------------------------------------------------------- what is made of it


def test_an_unchanged_answer_is_a_demonstration_and_no_pair(tiny):
    chains = chains_of(
        Scripted(tiny, {"c": "Same words", "c revision 0": " Same\nwords"}), [chat("c")]
    )
    assert revisions.rankings(chains, "own", "harmless") == []
    assert revisions.completions(chains, "own") == []
    assert [one.answer for one in revisions.demonstrations(chains, "own")] == [" Same\nwords"]
    assert measured(chains)["changed_share"] == 0.0


def test_rankings_say_that_the_revision_is_better_in_an_order_that_says_nothing(tiny):
    prompts = [chat(f"c{n}") for n in range(30)]
    chains = chains_of(Scripted(tiny), prompts)
    rankings = revisions.rankings(chains, "own", "harmless")
    completions = {one.id: one for one in revisions.completions(chains, "own")}
    assert len(completions) == 60
    for one in rankings:
        original, revised = f"{one.prompt_id}/own-original-0", f"{one.prompt_id}/own-0"
        assert one.ranks == {revised: 1, original: 2}
        assert one.shown == sorted(one.ranks, key=by_hash)
        assert (one.labeler, one.criterion, one.revision) == ("own", "harmless", 1)
        assert completions[original].text == f"text of {one.prompt_id}"
        assert completions[revised].text == f"text of {one.prompt_id} revision 0"
        assert (completions[original].sampler, completions[revised].sampler) == (
            "own-original", "own",
        )  # fmt: skip
        assert completions[original].logp == -1.0
        assert completions[revised].logp is completions[revised].tokens is None
    assert 5 < sum(one.shown[0].endswith("own-0") for one in rankings) < 25


def test_no_demonstration_answers_a_prompt_that_judges(tiny):
    roles = ("sft", "reward", "monitor", "align", "validation", "test")
    chains = chains_of(Scripted(tiny), [chat(role, role=role) for role in roles])
    found = [one.id.split("/")[0] for one in revisions.demonstrations(chains, "own")]
    assert found == ["sft", "reward", "monitor", "align"]
    assert len(revisions.rankings(chains, "own", "harmless")) == 6


# -------------------------------------------------------------------------------------- figures


def chain(name, before, *after, category="unsafe", cluster=None, form=chat):
    prompt = form(name, category=category).model_copy(update={"cluster": cluster or name})
    rounds = [
        Round(
            principle=f"p{n}", critique="c", revision=text, finish="stop", tokens=len(text.split())
        )
        for n, text in enumerate(after)
    ]
    return Chain(prompt, Said(before, "stop", len(before.split()), -1.0), rounds)


def bad(texts):
    return [float(text.split().count("bad")) for text in texts]


def measured(chains):
    return revision_quality.measure(chains, {"bad": bad}, resamples=200, seed=1)


def test_figures_equal_those_worked_by_hand():
    chains = [
        chain("a", "bad bad dog", "bad dog", "good dog"),
        chain("b", "bad cat", "bad cat", "bad cat"),
        chain("c", "one two three four", "one two", "one two five bad bad", category="other"),
    ]
    found = measured(chains)
    # before 2 1 0, after 0 1 2: mean 1 and 1; changes -2 0 2
    assert found["harm"]["bad"]["before"] == 1.0
    assert found["harm"]["bad"]["after"] == 1.0
    assert found["harm"]["bad"]["change"]["value"] == 0.0
    assert (
        found["harm"]["bad"]["change"]["low"] < -0.5 < 0.5 < found["harm"]["bad"]["change"]["high"]
    )
    # after round 1: 1 1 0, changes -1 0 0
    assert found["by_round"][0]["bad"]["after"] == pytest.approx(2 / 3)
    assert found["by_round"][0]["bad"]["change"]["value"] == pytest.approx(-1 / 3)
    # the second principle took it from 1 1 0 to 0 1 2
    assert found["by_principle"]["p1"]["bad"]["before"] == pytest.approx(2 / 3)
    assert found["by_principle"]["p1"]["bad"]["change"]["value"] == pytest.approx(1 / 3)
    assert found["by_category"]["unsafe"]["bad"]["change"]["value"] == -1.0
    assert found["by_category"]["other"]["n"] == 1
    # words in common: {dog} of {bad, dog, good}; all; {one, two} of six
    assert found["overlap"] == pytest.approx((1 / 3 + 1 + 2 / 6) / 3)
    assert found["changed_share"] == pytest.approx(2 / 3)
    assert found["tokens"] == {"original": 3.0, "final": 3.0}  # 3 2 4 and 2 2 5
    flat = revision_quality.numbers(found)
    assert flat["bad_change"] == 0.0
    assert flat["bad_change_low"] == found["harm"]["bad"]["change"]["low"]


def test_intervals_resample_clusters_of_prompts():
    # Of one cluster: every resample is the same mean, so the interval has no width.
    chains = [chain(n, "bad", after, cluster="k") for n, after in (("a", "good"), ("b", "bad x"))]
    change = measured(chains)["harm"]["bad"]["change"]
    assert change["low"] == change["value"] == change["high"] == -0.5


def test_boilerplate_is_the_share_that_begins_alike():
    texts = ["I am sorry, but I can't.", "i am sorry, but I will", "I am sorry, but it", "No."]
    assert revision_quality.commonest_opening(texts) == {"words": "i am sorry, but i", "share": 0.5}
    assert revision_quality.commonest_opening(["B", "a"]) == {"words": "a", "share": 0.5}


def test_going_in_circles_is_seen():
    # "a b a b": pairs ab, ba, ab, of which one stood before; one word has no pair
    assert revision_quality.repetition(["a b a b"]) == pytest.approx(1 / 3)
    assert revision_quality.repetition(["a"]) is None


def test_refusals_are_counted_among_conversations_alone():
    sorry = "I'm sorry, but I can't help with that."
    some = [chain("a", "Sure, here you are", sorry), chain("b", "He ran", sorry, form=beginning)]
    assert measured(some)["refused"] == {"n": 1, "original": 0.0, "final": 1.0}
    assert measured(some[1:])["refused"] is None
    assert "refused" not in revision_quality.numbers(measured(some[1:]))


# ---------------------------------------------------------------------------------------- stage

SECTION = {
    "model": "models/base", "adapter": "models/base", "guide": "constitution.yaml",
    "criterion": "harmless", "roles": ["align", "validation"], "categories": [], "prompts": None,
    "rounds": 2, "max_tokens": 6, "critique_tokens": 5, "batch_tokens": 4096, "resamples": 100,
    "temperature": 1.0, "top_k": 0, "top_p": 1.0,
}  # fmt: skip


def write_prompts(folder, count=4):
    some = [chat(f"c{n}", content=f"Write number {n}.") for n in range(count)]
    some += [beginning(f"b{n}", text=f"The tale {n} began") for n in range(count)]
    files.write_lines(folder / "train.jsonl", some)
    files.write_lines(
        folder / "validation.jsonl", [chat("v0", "validation"), beginning("v1", "validation")]
    )
    files.write_lines(folder / "test.jsonl", [chat("t0", "test")])
    return folder


@pytest.fixture
def stage(tmp_path, tiny_folder, full_precision):
    """Run the stage on the tiny model; return what it wrote, by file, and its metrics."""
    guide = tmp_path / "constitution.yaml"
    guide.write_text(json.dumps([one.model_dump() for one in PRINCIPLES]))

    def run(name="own", *, seed=1, count=4, adapter=None, **over):
        section = check(SECTION | over, revise.Reviser, f"params.yaml: revisers.{name}")
        out = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        found = revise.run(
            section, full_precision, seed, name=name, model=tiny_folder,
            adapter=adapter or tiny_folder, guide=guide, words=WORDS,
            prompts=write_prompts(tmp_path / f"prompts{count}", count), out=out,
            metrics=tmp_path / f"{out.name}.json",
        )  # fmt: skip
        return {file: (out / f"{file}.jsonl").read_text() for file in FILES}, found, out

    return run


def lines(text):
    return {json.loads(line)["prompt_id"]: line for line in text.splitlines()}


def test_equal_runs_give_equal_bytes_and_another_seed_gives_others(stage):
    one, again, other = stage()[0], stage()[0], stage(seed=2)[0]
    assert one == again
    assert one["trace"] != other["trace"]


def test_a_revision_does_not_depend_on_its_batch(stage):
    assert stage()[0] == stage(batch_tokens=120)[0]


def test_prompts_that_are_added_move_no_other_revision(stage):
    few, more = lines(stage()[0]["trace"]), lines(stage(count=7)[0]["trace"])
    assert len(more) == len(few) + 6
    assert all(more[name] == line for name, line in few.items())


def test_the_first_prompts_by_hash_are_taken_and_more_keep_them(stage):
    all_of_them = list(lines(stage()[0]["trace"]))
    assert set(all_of_them) == {*(f"{kind}{n}" for kind in "bc" for n in range(4)), "v0", "v1"}
    three = lines(stage(prompts=3)[0]["trace"])
    assert set(three) == set(sorted(all_of_them, key=by_hash)[:3])


def test_the_original_is_what_a_sampler_with_that_decoding_draws_first(stage, tiny):
    from stages.lib import sampling
    from stages.lib.tokens import encode_prompt

    traces = [json.loads(line) for line in stage()[0]["trace"].splitlines()]
    requests = [
        sampling.Request(t["prompt_id"], encode_prompt(tiny, check(t, Trace, "t").prompt), 2)
        for t in traces
    ]
    decoding = check(SECTION, revise.Reviser, "x")
    draws = sampling.sample(
        tiny, requests, decoding, max_tokens=6, seed=1, batch_tokens=4096, label=None
    )
    assert [t["original"] for t in traces] == [
        sampling.text(tiny, draw) for draw in draws if draw.index == 0
    ]


def test_an_adapter_revises_and_the_models_own_folder_stands_for_none(
    stage, tiny_folder, full_precision, tmp_path
):
    place = moved_adapter(models.load(tiny_folder, full_precision), tmp_path / "adapter", std=0.5)
    assert stage()[0]["trace"] != stage(adapter=place)[0]["trace"]


def test_what_it_writes_is_read_where_it_goes(stage, tiny, tmp_path):
    _, found, out = stage(max_tokens=40)
    demonstrations = files.read_lines(out / "demonstrations.jsonl", Demonstration)
    assert {one.id.split("/")[0] for one in demonstrations} <= {
        f"{kind}{n}" for kind in "bc" for n in range(4)
    }
    assert {one.source for one in demonstrations} == {"revised:own"}
    learned, held_out = sft.divided(demonstrations, 0.3)
    sft._require_apart(out, [*learned, *held_out], tmp_path / "prompts4")
    sequences = sft_trainer.sequences(tiny, demonstrations, max_tokens=400)
    assert {one.finish for one in demonstrations} == {"stop", "length"}
    for one, sequence in zip(demonstrations, sequences, strict=True):
        assert (sequence.completion[-1] == tiny.eos_ids[0]) == (one.finish == "stop")
    known = {one.id for one in files.read_lines(out / "completions.jsonl", Completion)}
    rankings = files.read_lines(out / "rankings.jsonl", Ranking)
    assert {cid for one in rankings for cid in one.shown} == known
    traces = files.read_lines(out / "trace.jsonl", Trace)
    assert found["prompts"] == len(traces) == 10
    assert found["changed_share"] == len(rankings) / 10
    assert found["words_before"] >= 0
    report = files.read_json(out.with_name(f"{out.name}.json"))
    assert set(report["harm"]) == {"n", "words", "vader_negative"}  # not the independent scorer


def test_of_all_criteria_rankings_are_overall(stage):
    _, _, out = stage(criterion=None)
    rankings = files.read_lines(out / "rankings.jsonl", Ranking)
    assert {one.criterion for one in rankings} == {"overall"}


def test_a_category_that_no_prompt_has_is_refused(stage):
    with pytest.raises(Refusal) as refused:
        stage(categories=["insults"])
    assert str(refused.value) == (
        "params.yaml: revisers: no prompt has category 'insults'; there are insult, unsafe"
    )
    with pytest.raises(Refusal, match="no prompt has one of the roles sft and one of the categ"):
        stage(roles=["sft"])
