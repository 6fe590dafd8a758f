"""Conversations as a model reads them, with a chat template and without."""

import pytest

from stages.lib import models
from stages.lib.dialogue import Voice, encode, said, transcript
from stages.lib.records import Message
from stages.lib.sampling import Decoding, Draw
from stages.lib.tokens import TooLong, encode_prompt

ALL = Decoding(temperature=1.0, top_k=0, top_p=1.0)
TURNS = [
    Message(role="user", content="Who was John?"),
    Message(role="assistant", content="A king."),
    Message(role="user", content="Of what?"),
]


def text_of(lm, ids):
    return lm.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture
def plain(tiny):
    """The same model, its tokenizer without a chat template."""
    tiny.tokenizer.chat_template = None
    return tiny


def draw_of(lm, text, finish="length"):
    ids = tuple(lm.tokenizer(text, add_special_tokens=False).input_ids)
    return Draw("p", 0, (*ids, lm.eos_ids[0]) if finish == "stop" else ids, finish, -3.0)


def test_a_template_is_used_where_there_is_one(tiny):
    assert encode(tiny, TURNS) == encode_prompt(tiny, TURNS)


def test_what_the_assistant_begins_with_stands_after_its_header(tiny):
    found = text_of(tiny, encode(tiny, TURNS, begins="Of England"))
    assert found.endswith("<|im_start|>user\nOf what?<|im_end|>\n<|im_start|>assistant\nOf England")
    assert encode(tiny, TURNS, begins="Of")[: len(encode(tiny, TURNS))] == encode(tiny, TURNS)


def test_without_a_template_it_is_a_transcript(plain):
    expected = "Human: Who was John?\n\nAssistant: A king.\n\nHuman: Of what?"
    assert transcript(TURNS) == expected
    assert text_of(plain, encode(plain, TURNS)) == f"{expected}\n\nAssistant:"
    assert text_of(plain, encode(plain, TURNS, begins="Of")) == f"{expected}\n\nAssistant: Of"


def test_a_transcripts_turn_ends_where_the_humans_next_one_begins(plain):
    found = said(plain, draw_of(plain, " Of England.\n\nHuman: Since when?"))
    assert (found.text, found.finish) == ("Of England.", "stop")
    found = said(plain, draw_of(plain, " Of England, which"))
    assert (found.text, found.finish) == ("Of England, which", "length")


def test_a_templates_turn_is_what_was_drawn_to_the_last_space(tiny):
    found = said(tiny, draw_of(tiny, " Of it.\n\nHuman: x ", "stop"))
    assert (found.text, found.finish) == (" Of it.\n\nHuman: x ", "stop")
    assert found.tokens == len(draw_of(tiny, " Of it.\n\nHuman: x ", "stop").ids)
    assert not found.blank
    assert said(tiny, draw_of(tiny, " \n ", "stop")).blank


def test_what_is_said_depends_on_its_name_and_not_on_what_else_is_asked(tiny):
    asked = {f"p{n}": encode(tiny, TURNS[: 1 + 2 * (n % 2)]) for n in range(6)}
    together = Voice(tiny, ALL, 1, 10_000).speak(asked, max_tokens=8, label="x")
    for name, ids in asked.items():
        alone = Voice(tiny, ALL, 1, 60).speak({name: ids}, max_tokens=8, label="x")
        assert alone[name].text == together[name].text
    assert len({one.text for one in together.values()}) > 2
    other = Voice(tiny, ALL, 2, 10_000).speak(asked, max_tokens=8, label="x")
    assert [one.text for one in other.values()] != [one.text for one in together.values()]


def test_a_bare_voice_speaks_without_the_adapter(tiny, tiny_folder, full_precision, tmp_path):
    from tiny_model import moved_adapter

    moved_adapter(models.load(tiny_folder, full_precision), tmp_path, std=0.5)
    both = models.load_adapted(tiny_folder, tmp_path, full_precision)
    asked = {f"p{n}": encode(tiny, TURNS) for n in range(4)}
    base = Voice(tiny, ALL, 1, 10_000).speak(asked, max_tokens=8, label="x")
    bare = Voice(both, ALL, 1, 10_000, bare=True).speak(asked, max_tokens=8, label="x")
    adapted = Voice(both, ALL, 1, 10_000).speak(asked, max_tokens=8, label="x")
    assert [one.text for one in bare.values()] == [one.text for one in base.values()]
    assert [one.text for one in adapted.values()] != [one.text for one in base.values()]


def test_a_conversation_that_the_model_cannot_hold_is_refused(tiny):
    asked = {"p1": tuple(range(5, 512))}  # 507 tokens, and 6 to come, of 512
    with pytest.raises(TooLong) as refused:
        Voice(tiny, ALL, 1, 10_000).speak(asked, max_tokens=6, label="x")
    assert str(refused.value) == (
        f"p1: takes 513 tokens, and {tiny.folder} reads 512; ask for fewer turns or tokens, or "
        "leave the prompt out"
    )
    assert Voice(tiny, ALL, 1, 10_000).speak({}, max_tokens=6, label="x") == {}
