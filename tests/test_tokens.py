"""One text, one row of tokens, wherever it goes."""

import pytest

from stages.lib import likelihood, tokens
from stages.lib.models import ModelError
from stages.lib.records import Message
from stages.lib.tokens import TokenSequence

CHAT = [Message(role="user", content="How are you?")]


@pytest.mark.parametrize("prompt", ["He said that", "Odd spaces  ", CHAT])
@pytest.mark.parametrize("text", [" the end", "the end", "s", ""])
def test_the_prompt_is_a_prefix_of_prompt_and_completion(tiny, prompt, text):  # property 7
    sequence = tokens.encode(tiny, prompt, text, "stop", max_tokens=99, where="x")
    alone = tokens.encode_prompt(tiny, prompt)
    assert sequence.ids[: len(alone)] == alone


def test_pad_is_not_eos_and_eos_of_a_completion_is_never_masked(tiny):  # property 1
    assert tiny.pad_id not in tiny.eos_ids
    sequence = tokens.encode(tiny, "a", " b", "stop", max_tokens=9, where="x")
    at = likelihood.positions(tiny, [sequence, TokenSequence((5,), (6,) * 9)])
    assert at.target_N.tolist() == [*sequence.completion, *(6,) * 9]  # no pad among them
    assert at.target_N[len(sequence.completion) - 1] in tiny.eos_ids


def test_only_a_completion_that_ended_gets_an_eos(tiny):  # property 4
    assert tokens.encode_completion(tiny, " word", "stop")[-1] == tiny.eos_ids[0]
    assert tokens.encode_completion(tiny, " word", "length")[-1] not in tiny.eos_ids


def test_the_same_text_is_the_same_tokens_for_reward_and_alignment(tiny):  # property 3
    from stages.lib.groups import group
    from stages.lib.records import Pair

    pair = Pair(
        id="p1", prompt_id="q", cluster="q", role="align", category="c",
        criterion="harmless", prompt="He said", chosen_id="a",
        rejected_id="b", chosen=" yes", rejected=" no", chosen_finish="stop", rejected_finish="length",
        p_chosen=1.0, weight=1.0, margin=1.0, votes=1, labelers=["x"], junk=False,
    )  # fmt: skip
    (one,) = group(tiny, [pair], max_tokens=50)
    assert one.sequences[0] == tokens.encode(
        tiny, "He said", " yes", "stop", max_tokens=50, where="x"
    )
    assert one.sequences[1] == tokens.encode(
        tiny, "He said", " no", "length", max_tokens=50, where="x"
    )


def test_a_conversation_goes_through_the_chat_template_up_to_the_answer(tiny):
    ids = tokens.encode_prompt(tiny, CHAT)
    assert (
        tiny.tokenizer.decode(ids)
        == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_chat_without_a_template_is_refused(tiny):
    tiny.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        tokens.encode_prompt(tiny, CHAT)


def test_a_sequence_that_is_too_long_is_refused_by_name(tiny):
    with pytest.raises(
        tokens.TooLong, match=r"completion c1 has \d+ tokens, over max_tokens 3; raise it"
    ):
        tokens.encode(
            tiny, "one two three four", " five", "stop", max_tokens=3, where="completion c1"
        )


def test_an_empty_completion_that_was_cut_is_refused(tiny):
    with pytest.raises(tokens.TooLong, match="empty completion and no EOS"):
        tokens.encode(tiny, "one", "", "length", max_tokens=9, where="completion c1")


def test_batches_hold_every_index_once_within_the_limit_longest_first():
    lengths = [3, 9, 1, 9, 4, 4, 2]
    found = list(tokens.batches(lengths, batch_tokens=18))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 18 for batch in found)
    assert found[0] == [1, 3]  # 9 + 9 padded tokens
    assert list(tokens.batches([50], batch_tokens=18)) == [[0]]  # one that is over goes alone
