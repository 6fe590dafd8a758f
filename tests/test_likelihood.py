"""Log-probabilities and divergences against direct computation, whatever the batch and padding."""

import pytest
import torch

from stages.lib import likelihood, models, tokens
from stages.lib.tokens import TokenSequence

SEQUENCES = [
    TokenSequence((5, 6, 7), (8, 9, 3)),
    TokenSequence((5,), (11, 12)),
    TokenSequence((20, 21, 22, 23, 24), (30,)),
]


def direct(lm, sequence):
    """log p by one plain forward pass of one sequence."""
    ids = torch.tensor([sequence.ids])
    with torch.no_grad():
        logps = lm.model(input_ids=ids).logits.log_softmax(-1)[0]
    start = len(sequence.prompt)
    return sum(logps[start + i - 1, token].item() for i, token in enumerate(sequence.completion))


def test_a_sequences_log_probability_is_the_sum_over_its_completion(
    tiny,
):  # property 7: no prompt token counts
    with torch.no_grad():
        found = likelihood.sequence_logps(tiny, SEQUENCES)
    expected = torch.tensor([direct(tiny, s) for s in SEQUENCES])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_padding_changes_nothing(tiny):  # properties 2, 5 and 6
    long = TokenSequence(tuple(range(5, 25)), tuple(range(30, 60)))
    with torch.no_grad():
        alone = likelihood.sequence_logps(tiny, SEQUENCES)
        padded = likelihood.sequence_logps(tiny, [*SEQUENCES, long])[:3]
        tiny.pad_id = 17
        other_pad = likelihood.sequence_logps(tiny, [*SEQUENCES, long])[:3]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded, other_pad, atol=0, rtol=0)


SHARING = [
    TokenSequence((20, 21, 22, 23, 24), (30,)),
    TokenSequence((5, 6, 7), (8, 9, 3)),
    TokenSequence((20, 21, 22, 23, 24), (31, 32)),
    TokenSequence((5, 6, 7), (8,)),
    TokenSequence((9,), (11, 12, 13, 14)),
    TokenSequence((5, 6, 7), (8, 9, 3)),
]


def test_a_shared_prompt_is_read_once(tiny):
    seen = []
    tiny.backbone.embed_tokens.register_forward_hook(lambda m, i, o: seen.append(i[0].shape))
    with torch.no_grad():
        together = likelihood.positions(tiny, SHARING)
    assert seen == [(3, 5), (6, 3)]  # three prompts of at most 5 tokens; all but the last of 4 read
    with torch.no_grad():
        alone = [likelihood.positions(tiny, [s]) for s in SHARING]
    assert together.target_N.tolist() == [t for s in SHARING for t in s.completion]
    assert together.owner_N.tolist() == [
        i for i, s in enumerate(SHARING) for _ in range(len(s.completion))
    ]
    apart = torch.cat([one.hidden_ND for one in alone])
    torch.testing.assert_close(together.hidden_ND, apart, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_plain_forward_passes(tiny):
    models.add_lora(tiny, rank=4, alpha=8, seed=0)
    moved = [p for p in tiny.model.parameters() if p.requires_grad]
    with torch.no_grad():  # B starts at 0, where A has no gradient
        for parameter in moved:
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))

    def gradient(logp):
        tiny.model.zero_grad()
        logp.backward()
        return torch.cat([p.grad.flatten().clone() for p in moved])

    shared = gradient(likelihood.sequence_logps(tiny, SHARING).sum())
    plain = []
    for s in SHARING:
        logps = tiny.model(input_ids=torch.tensor([s.ids])).logits.log_softmax(-1)[0]
        at = range(len(s.prompt) - 1, len(s) - 1)
        plain.append(sum(logps[t, token] for t, token in zip(at, s.completion, strict=True)))
    torch.testing.assert_close(shared, gradient(sum(plain)), atol=1e-3, rtol=1e-3)
    assert shared.norm() > 0.1


@pytest.mark.parametrize("batch_tokens", [1, 20, 1000])
def test_batches_of_any_size_give_every_log_probability(tiny, batch_tokens):
    found = likelihood.all_logps(tiny, SHARING, batch_tokens=batch_tokens, label="test")
    expected = torch.tensor([direct(tiny, s) for s in SHARING])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_batches_keep_a_prompts_completions_together_and_within_the_limit():
    found = list(tokens.batches_by_prompt(SHARING, batch_tokens=14))
    assert found == [
        [2, 0],
        [1, 5],
        [3, 4],
    ]  # (5 + 2) x 2; (3 + 3) x 2, where x 3 is over 14; (3 + 4) x 2
    assert sorted(i for batch in found for i in batch) == list(range(6))


def test_chunks_change_nothing(tiny, monkeypatch):
    with torch.no_grad():
        whole = likelihood.sequence_logps(tiny, SEQUENCES)
        monkeypatch.setattr(likelihood, "CHUNK", 2)
        torch.testing.assert_close(likelihood.sequence_logps(tiny, SEQUENCES), whole)


def measured(policy, reference, sequences, temperature=1.0):
    with torch.inference_mode():
        return likelihood.divergences(
            likelihood.positions(policy, sequences), likelihood.positions(reference, sequences),
            policy.unembedding_VD, reference.unembedding_VD, temperature=temperature, count=len(sequences),
        )  # fmt: skip


def test_a_policy_that_is_its_reference_has_no_divergence(tiny):  # property 9
    for one in measured(tiny, tiny, SEQUENCES):
        assert abs(one.k1) < 1e-6
        assert one.k3 < 1e-6
        assert one.exact < 1e-6


def test_nll_is_the_references_own(tiny):
    for one, sequence in zip(measured(tiny, tiny, SEQUENCES), SEQUENCES, strict=True):
        assert one.nll == pytest.approx(-direct(tiny, sequence), abs=1e-4)


@pytest.fixture
def other(tmp_path, full_precision):
    from tiny_model import build

    return models.load(build(tmp_path / "other", seed=1), full_precision)


def test_the_estimators_agree_with_the_exact_divergence(tiny, other):  # property 19
    # Every next token after one prompt, weighted by the policy's own probability, is an exact
    # expectation: E[k1] = E[k3] = KL, and k3 is never negative.
    size = len(tiny.tokenizer)
    every = [TokenSequence((5, 6), (token,)) for token in range(size)]
    found = measured(tiny, other, every)
    with torch.no_grad():
        p = tiny.model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].double().softmax(-1)
        q = other.model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].double().softmax(-1)
    kl = (p * (p / q).log()).sum().item()
    assert kl > 0.01
    assert sum(w * one.k1 for w, one in zip(p.tolist(), found, strict=True)) == pytest.approx(
        kl, rel=1e-3
    )
    assert sum(w * one.k3 for w, one in zip(p.tolist(), found, strict=True)) == pytest.approx(
        kl, rel=1e-3
    )
    assert all(one.k3 >= 0 for one in found)
    assert found[0].exact == pytest.approx(kl, rel=1e-3)
    assert min(one.k1 for one in found) < 0  # a single draw may be negative: it is not clamped


def test_divergence_adds_up_over_the_sequence(
    tiny, other
):  # property 20: nats a sequence, not a token
    long = TokenSequence((5, 6), (7, 8, 9))
    parts = [
        TokenSequence((5, 6), (7,)),
        TokenSequence((5, 6, 7), (8,)),
        TokenSequence((5, 6, 7, 8), (9,)),
    ]
    (whole,) = measured(tiny, other, [long])
    pieces = measured(tiny, other, parts)
    assert whole.exact == pytest.approx(sum(p.exact for p in pieces), rel=1e-4)
    assert whole.k1 == pytest.approx(sum(p.k1 for p in pieces), rel=1e-3, abs=1e-4)


QUESTIONS = [[(5, 6, 7), (5, 6, 8, 9), (5, 6)], [(20, 21, 22, 23)], [(30,), (31, 32)]]


@pytest.mark.parametrize(
    "answers",
    [
        [(10, 11), (10, 12)],  # " (A" and " (B": one token differs, the last
        [(10, 11, 13), (10, 12, 13)],  # and a bracket that closes both
        [(11,), (12,)],  # one token each
        [(10, 11), (12,)],  # no two alike
        [(10, 11, 13), (14, 12, 13), (15,)],
    ],
)
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_a_choice_is_the_softmax_of_the_answers_log_probabilities(tiny, answers, batch_tokens):
    found = likelihood.choice(tiny, QUESTIONS, answers, batch_tokens=batch_tokens, label="test")
    alike = len(answers) == 2 and len(answers[0]) == 3
    whole = [answer[:2] for answer in answers] if alike else answers  # the bracket is left out
    asked = [question for group in QUESTIONS for question in group]
    logps = [[direct(tiny, TokenSequence(q, answer)) for answer in whole] for q in asked]
    expected = torch.tensor(logps, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(found.log(), expected, atol=1e-3, rtol=0)
    assert found[:, 0].log().std() > 0.01
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))


def test_one_pass_a_question_gives_what_reading_each_answer_whole_gives(tiny, monkeypatch):
    answers = [(10, 11), (10, 12)]
    fast = likelihood.choice(tiny, QUESTIONS, answers, batch_tokens=100, label="test")
    monkeypatch.setattr(likelihood, "differing_token", lambda answers: ((), ()))
    whole = likelihood.choice(tiny, QUESTIONS, answers, batch_tokens=100, label="test")
    torch.testing.assert_close(fast, whole, atol=1e-5, rtol=1e-4)
    assert not torch.equal(fast, whole)  # two ways indeed


def test_answers_differ_in_one_token_or_are_read_whole():
    assert likelihood.differing_token([(1, 2, 9), (1, 3, 9)]) == ((1,), (2, 3))
    assert likelihood.differing_token([(2,), (3,), (4,)]) == ((), (2, 3, 4))
    assert likelihood.differing_token([(1, 2, 9), (1, 3, 8)]) == ((), ())  # in two
    assert likelihood.differing_token([(1, 2), (1, 2, 9)]) == ((), ())  # in length
    assert likelihood.differing_token([(1, 2), (1, 3, 9)]) == ((), ())


def test_questions_are_split_where_they_cease_to_be_alike():
    split = [
        (s.prompt, s.completion) for s in likelihood.sharing_a_start([(1, 2, 3), (1, 2, 4, 5)])
    ]
    assert split == [((1, 2), (3,)), ((1, 2), (4, 5))]
    # each keeps a token of its own, also where one is the beginning of the other or all are equal
    split = [(s.prompt, s.completion) for s in likelihood.sharing_a_start([(1, 2), (1, 2, 3)])]
    assert split == [((1,), (2,)), ((1,), (2, 3))]
    split = [(s.prompt, s.completion) for s in likelihood.sharing_a_start([(1, 2), (1, 2)])]
    assert split == [((1,), (2,)), ((1,), (2,))]
    split = [(s.prompt, s.completion) for s in likelihood.sharing_a_start([(1, 2), (3, 4)])]
    assert split == [((1,), (2,)), ((3,), (4,))]


def test_what_questions_begin_with_is_read_once(tiny):
    seen = []
    tiny.backbone.embed_tokens.register_forward_hook(lambda m, i, o: seen.append(i[0].shape))
    asked = [(5, 6, 7, 8, n) for n in range(9, 15)]
    likelihood.choice(tiny, [asked], [(10, 11), (10, 12)], batch_tokens=1000, label="test")
    assert seen == [(1, 4), (6, 2)]  # four tokens once; then six of its own token and the stem


def test_a_models_own_precision_does_not_round_its_choice(tiny_folder):
    from stages.lib.base import Base

    half = models.load(tiny_folder, Base(quantisation="none", weights="rounded", dtype="bfloat16"))
    states = []
    half.backbone.register_forward_hook(lambda m, i, o: states.append(o.last_hidden_state[0, -1]))
    for n in range(5, 25):
        p = likelihood.choice(half, [[(n, 6, 7)]], [(11,), (12,)], batch_tokens=9, label="test")
        logits = half.unembedding_VD[[11, 12]].double() @ states[-1].double()
        torch.testing.assert_close(p[0], logits.softmax(-1), atol=1e-6, rtol=1e-4)
