"""KTO through TRL: the loss, what is good and what is bad, the reference point, and who it is of."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_online import demonstration, write_neutral

from stages.lib import likelihood, losses, models
from stages.lib.algorithms import kto
from stages.lib.algorithms.kto import signals
from stages.lib.algorithms.kto import trainer as kto_trainer
from stages.lib.algorithms.sft import trainer as sft_trainer
from stages.lib.algorithms.task import Task
from stages.lib.records import Pair, Signal
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal
from stages.lib.tokens import TooLong

K = kto.Kto(
    algorithm="kto", starts_from="models/base", learns_from="data/pairs", prompts="data/pairs", snapshots=0, seed=None, anchor=None,
    signals="thumbs", beta=0.1, balance=1.0, lora_rank=4, lora_alpha=8, learning_rate=1e-2, warmup=0.0,
    epochs=2, batch_prompts=8, max_grad_norm=1.0, max_tokens=64,
)  # fmt: skip
FILLERS = (" the sea was calm", " a dog ran home", " rain came at noon", " she read a book")


def but(**changes):
    return K.model_copy(update=changes)


def signal(name, *, text, up, prompt=None, role="align", share=1.0, votes=1, finish="length"):
    prompt = prompt or f"Tale {name}:"
    where = prompt.replace(" ", "-")
    return Signal(
        id=f"s{name}", prompt_id=where, cluster=where, role=role, category="insult", criterion="harmless",
        prompt=prompt, completion_id=f"c{name}", text=text, finish=finish, up=up, share=share,
        votes=votes, labelers=["ann"],
    )  # fmt: skip


def pair(name, *, chosen, rejected, prompt=None, role="align", p=1.0, weight=1.0, finish="length"):
    prompt = prompt or f"Tale {name}:"
    where = prompt.replace(" ", "-")
    return Pair(
        id=f"p{name}", prompt_id=where, cluster=where, role=role, category="insult", criterion="harmless",
        prompt=prompt, chosen_id=f"{name}-{chosen}".replace(" ", "_"), rejected_id=f"{name}-{rejected}".replace(" ", "_"),
        chosen=chosen, rejected=rejected, chosen_finish=finish, rejected_finish=finish, p_chosen=p,
        weight=weight, margin=1.0, votes=1, labelers=["words"], junk=False,
    )  # fmt: skip


def thumbs(count, *, liked="good", role="align", start="Tale"):
    """One completion a prompt; every other one holds `good`, the rest `awful`."""
    return [
        signal(
            f"{role}{n}", prompt=f"{start} {n}:", role=role, up=word == liked,
            text=f"{FILLERS[n // 2 % 4]} and {word}",
        )
        for n in range(count)
        for word in (("good", "awful")[n % 2],)
    ]  # fmt: skip


def judged(lm, some, max_tokens=64):
    found, _ = signals.judge(lm, signals.by_thumbs(some), max_tokens=max_tokens)
    return found


@pytest.fixture
def task(tiny_folder, full_precision, tmp_path, monkeypatch):
    """A training on thumbs of forty prompts that starts from the base."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    rows = [
        *thumbs(40), *thumbs(12, role="validation", start="Another"), *thumbs(6, role="reward", start="Third"),
    ]  # fmt: skip
    files.write_lines(tmp_path / "pairs/signals.jsonl", rows)
    (tmp_path / "kto").mkdir()
    neutral = write_neutral(tmp_path / "neutral.jsonl")
    where = tmp_path / "pairs", tmp_path / "pairs", neutral, tmp_path / "kto", tmp_path / "kto.csv"
    return Task(full_precision, 1, tiny_folder, tiny_folder, *where)


def again(task, name):
    """The same training, into another folder."""
    out = task.out.with_name(name)
    out.mkdir()
    return replace(task, out=out, curves=out.with_suffix(".csv"))


def curves(task):
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(task.curves.open())]


def adapter(task):
    return load_file(task.out / "adapter_model.safetensors")


# The loss


def loss(ratios, up, z0, *, beta=0.1, up_weight=1.0, down_weight=1.0):
    return losses.kto_loss(
        torch.as_tensor(ratios, dtype=torch.float64), torch.tensor(up),
        torch.tensor(z0, dtype=torch.float64), beta=beta, up_weight=up_weight, down_weight=down_weight,
    )  # fmt: skip


def test_the_loss_equals_the_value_worked_by_hand():
    # z0 = 2, beta = 0.1; good: 0.1 * (r - 2) = [0.5, 0, -0.5]; bad, r = -3: 0.1 * (2 + 3) = 0.5
    # 1 - sigmoid: [0.377541, 0.5, 0.622459, 0.377541]; weights 2, 2, 2, 0.5
    found = loss(
        [7.0, 2.0, -3.0, -3.0], [True, True, True, False], 2.0, up_weight=2.0, down_weight=0.5
    )
    by_hand = torch.tensor([0.755081, 1.0, 1.244919, 0.188770], dtype=torch.float64)
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)


def test_the_gradient_raises_good_and_lowers_bad_completions_and_fades_far_from_the_reference():
    # d loss / d r = -+ weight * beta * s (1 - s), s = sigmoid(beta (r - z0)): at z0 beta / 4 = 0.025;
    # at beta (r - z0) = +-5, s (1 - s) = 0.006648
    ratios = torch.tensor([2.0, 52.0, -48.0, 2.0, 52.0, -48.0], requires_grad=True)
    up = torch.tensor([True] * 3 + [False] * 3)
    losses.kto_loss(
        ratios, up, torch.tensor(2.0), beta=0.1, up_weight=1.0, down_weight=3.0
    ).sum().backward()
    by_hand = torch.tensor([-0.025, -0.0006648, -0.0006648, 0.075, 0.0019944, 0.0019944])
    torch.testing.assert_close(ratios.grad, by_hand, atol=1e-6, rtol=0)


@given(st.floats(-40, 40), st.floats(0, 40), st.floats(0.01, 1), st.floats(0.1, 4))
def test_what_a_completion_loses_as_a_good_one_it_would_gain_as_a_bad_one(r, z0, beta, weight):
    # sigmoid(u) + sigmoid(-u) = 1
    both = loss([r, r], [True, False], z0, beta=beta, up_weight=weight, down_weight=weight)
    assert both.sum().item() == pytest.approx(weight)
    assert both.min() >= 0


def test_the_reference_point_is_the_mean_log_ratio_never_below_zero_and_has_no_gradient():
    ratios = torch.tensor([3.0, -1.0], requires_grad=True)
    found = losses.kto_reference_point(ratios)
    assert found.item() == 1.0
    assert not found.requires_grad
    # The mean is raised to 0, not each of its parts: (0 + 1) / 2 would be 0.5
    assert losses.kto_reference_point(torch.tensor([-3.0, 1.0])).item() == 0.0
    with pytest.raises(ValueError, match="needs an answer put after another prompt"):
        losses.kto_reference_point(torch.tensor([]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, r"beta must be > 0, not 0.0: at 0 the loss is half the weight"),
        ({"up_weight": 0.0}, r"weights must be > 0, not 0.0 and 1.0"),
        ({"down_weight": -1.0}, r"weights must be > 0, not 1.0 and -1.0"),
    ],
)
def test_knobs_that_cannot_learn_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        loss([1.0], [True], 0.0, **changes)


@pytest.mark.parametrize("up", [[1], [True, False], [[True]]])
def test_labels_that_are_not_one_boolean_each_are_refused(up):
    with pytest.raises(ValueError, match=r"must hold a boolean for each of \(1,\) log-ratios"):
        loss([1.0], up, 0.0)


def test_one_good_completion_of_four_weighs_three_bad_ones():
    # 1 * 2 = 3 * 2/3, and 1 * 2 + 3 * 2/3 = 4
    assert kto.weights(1.0, 1, 3) == pytest.approx((2.0, 2 / 3))
    assert kto.weights(None, 1, 3) == (1.0, 1.0)


@given(st.floats(0.1, 10), st.integers(1, 500), st.integers(1, 500))
def test_weights_have_the_balance_asked_for_and_a_mean_of_one(balance, up, down):
    good, bad = kto.weights(balance, up, down)
    assert up * good / (down * bad) == pytest.approx(balance)
    assert up * good + down * bad == pytest.approx(up + down)


# What is good and what is bad


def verdicts(lm, found):
    return [
        {lm.tokenizer.decode(s.completion): up for s, up in zip(one.sequences, one.up, strict=True)}
        for one in found
    ]


def test_a_completion_of_pairs_is_good_where_it_wins_more_than_it_loses(tiny):
    # a > b, a > c, b > c: shares of wins 1, 1/2, 0; b is neither
    pairs = [
        pair(n, prompt="P", chosen=x, rejected=y, weight=1 / 3)
        for n, (x, y) in enumerate(((" a", " b"), (" a", " c"), (" b", " c")))
    ]
    found, even = signals.judge(tiny, signals.by_pairs(pairs), max_tokens=64)
    assert verdicts(tiny, found) == [{" a": True, " c": False}]
    assert even == 1


def test_a_win_of_a_pair_that_is_less_sure_is_less_of_a_win(tiny):
    # b: wins one with p .6, loses one with p .9: (.6 + .1) / 2 = .35 of its pairs
    # sure of nothing: d over e with p .5 leaves both out; f: .6 - .2 - .4 is 0 but for rounding
    pairs = [
        pair(1, prompt="P", chosen=" b", rejected=" c", p=0.6),
        pair(2, prompt="P", chosen=" a", rejected=" b", p=0.9),
        pair(3, prompt="Q", chosen=" d", rejected=" e", p=0.5),
        pair(4, prompt="R", chosen=" f", rejected=" g", p=0.8),
        pair(5, prompt="R", chosen=" h", rejected=" f", p=0.6),
        pair(6, prompt="R", chosen=" i", rejected=" f", p=0.7),
    ]
    found, even = signals.judge(tiny, signals.by_pairs(pairs), max_tokens=64)
    assert verdicts(tiny, found) == [
        {" b": False, " c": False, " a": True},
        {" g": False, " h": True, " i": True},
    ]
    assert even == 3  # d, e, f


def test_completions_of_the_same_tokens_are_one_and_thumbs_weigh_by_their_votes(tiny):
    # a: 3 of 4 up (2 votes net) under one id, 1 down under another: good. b: 1 up, 1 down: left out
    # c: as many up as down: left out. The same text that ended is another completion.
    some = [
        signal(1, prompt="P", text=" a", up=True, share=0.75, votes=4),
        signal(2, prompt="P", text=" a", up=False),
        signal(3, prompt="P", text=" b", up=True),
        signal(4, prompt="P", text=" b", up=False),
        signal(5, prompt="P", text=" c", up=True, share=0.5, votes=2),
        signal(6, prompt="P", text=" a", up=False, finish="stop"),
    ]
    found, even = signals.judge(tiny, signals.by_thumbs(some), max_tokens=64)
    assert verdicts(tiny, found) == [{" a": True, " a<|im_end|>": False}]
    assert even == 2
    assert signals.count(found) == (1, 1)


def test_only_a_completion_that_the_model_ended_has_eos(tiny):  # property 4
    eos = tiny.eos_ids[0]
    for finish in ("stop", "length"):
        some = [signal(1, text=" a dog", up=True, finish=finish)]
        both = [pair(1, chosen=" a dog", rejected=" a cat", finish=finish)]
        for said in (signals.by_thumbs(some), signals.by_pairs(both)):
            found, _ = signals.judge(tiny, said, max_tokens=64)
            for sequence in found[0].sequences:
                assert sequence.ids.count(eos) == (finish == "stop")
                assert (sequence.completion[-1] == eos) == (finish == "stop")


def test_a_completion_that_is_too_long_is_refused(tiny):
    with pytest.raises(TooLong, match=r"completion c1 has \d+ tokens, over max_tokens 5"):
        judged(tiny, [signal(1, text=" a very long tale indeed", up=True)], max_tokens=5)


# Batches and the reference point


def test_every_completion_of_a_batch_is_set_against_one_wrong_prompt(tiny):
    some = judged(tiny, [
        signal(f"{n}-{k}", prompt=f"P{n}", text=f" word{n}{k}", up=bool(k % 2))
        for n in range(7) for k in range(1 + n % 3)
    ])  # fmt: skip
    found = kto_trainer.rows(some, batch_prompts=3, seed=0)
    assert sorted(row.judged.prompt_id for row in found) == sorted(one.prompt_id for one in some)
    own = {row.judged.sequences[0].prompt: row.judged.sequences for row in found}
    for row in found:
        assert {s.prompt for s in row.mismatched} == {row.judged.sequences[0].prompt}
        assert not {s.completion for s in row.mismatched} & {s.completion for s in own[row.mismatched[0].prompt]}  # fmt: skip
    for batch in (found[:3], found[3:6]):  # the same completions, each once
        given = sorted(s.completion for row in batch for s in row.judged.sequences)
        assert sorted(s.completion for row in batch for s in row.mismatched) == given
    alone, before = found[6], found[5]  # borrows from the prompt before it
    assert [s.completion for s in alone.mismatched] == [
        s.completion for s in before.judged.sequences
    ]


def test_the_seed_decides_the_order(tiny):
    some = judged(tiny, thumbs(12))
    one, two, three = (kto_trainer.rows(some, batch_prompts=4, seed=s) for s in (0, 0, 1))
    assert one == two
    assert [r.judged for r in one] != [r.judged for r in three]
    assert [r.judged for r in one] != some  # as TRL would take them


def trainer_of(lm, some, folder, policy=K, weights=(1.0, 1.0)):
    """A trainer on one batch of all that is given."""
    policy = policy.model_copy(update={"batch_prompts": max(2, len(some))})
    given = kto_trainer.rows(some, batch_prompts=policy.batch_prompts, seed=0)
    return kto_trainer.JudgedKTOTrainer(
        lm, policy, given, weights=weights, seed=0, checkpoints=folder
    )


def with_adapter(folder, base):
    lm = models.load(folder, base)
    return models.add_lora(lm, rank=4, alpha=8, seed=0)


@torch.no_grad()
def move(lm, std=0.1):
    """Make the policy another than its reference."""
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=std, generator=torch.Generator().manual_seed(1))


def raise_what_is_borrowed(trainer, steps=4):
    """Train the policy until what it says of mismatched completions is above its reference."""
    optimiser = torch.optim.Adam(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=0.02
    )
    given = [s for row in trainer._given for s in row.mismatched]
    for _ in range(steps):
        optimiser.zero_grad()
        (-likelihood.sequence_logps(trainer._lm, given).mean()).backward()
        optimiser.step()
    optimiser.zero_grad()


def batch_loss(trainer, places=None):
    """The loss of rows as one batch, and what was logged of it."""
    trainer._metrics["train"].clear()
    trainer._metrics["eval"].clear()
    places = range(len(trainer._given)) if places is None else places
    inputs = trainer._collate([{"index": place} for place in places])
    found = trainer._compute_loss(trainer.model, inputs, False)
    mode = "train" if trainer.model.training else "eval"
    return found, {key: value[0] for key, value in trainer._metrics[mode].items()}


def gradient(trainer, *batches):
    trainer.model.zero_grad()
    for places in batches:
        (batch_loss(trainer, places)[0] / len(batches)).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


def test_a_policy_that_is_its_reference_loses_half_and_has_no_divergence(
    tiny_folder, full_precision, tmp_path
):  # property 9
    lm = with_adapter(tiny_folder, full_precision)
    trainer = trainer_of(lm, judged(lm, thumbs(6)), tmp_path)
    found, seen = batch_loss(trainer)
    assert found.item() == pytest.approx(0.5, abs=1e-6)
    for name in ("kl", "reward_up", "reward_down"):
        assert seen[name] == pytest.approx(0.0, abs=1e-6)


def test_loss_gradient_and_log_equal_trls_own(tiny_folder, full_precision, tmp_path):
    """The subclass against stock TRL on the same tokens, labels, weights and mismatched rows."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    ours_lm, theirs_lm = (models.load(tiny_folder, full_precision) for _ in range(2))
    models.add_lora(ours_lm, rank=4, alpha=8, seed=0)
    ours = trainer_of(ours_lm, judged(ours_lm, thumbs(7)), tmp_path / "o", weights=(1.5, 0.5))

    class Stock(KTOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    rows = [
        {
            "prompt_ids": list(row.judged.sequences[0].prompt),
            "completion_ids": list(row.judged.sequences[0].completion),
            "KL_completion_ids": list(row.mismatched[0].completion),
            "label": row.judged.up[0],
        }
        for row in ours._given
    ]
    stock = Stock(
        model=theirs_lm.model,
        args=KTOConfig(
            output_dir=str(tmp_path / "s"), beta=0.1, desirable_weight=1.5, undesirable_weight=0.5,
            seed=0, bf16=False, report_to="none", gradient_checkpointing=False,
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=theirs_lm.tokenizer,
        peft_config=models.lora_config(rank=4, alpha=8),
    )  # fmt: skip
    raise_what_is_borrowed(ours)
    twin = dict(stock.model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if parameter.requires_grad:
                twin[name].copy_(parameter)
    own, seen = batch_loss(ours)
    their = stock._compute_loss(stock.model, stock.data_collator(rows), False)
    logged = stock._metrics["train" if stock.model.training else "eval"]
    assert seen["kl"] > 0.1
    assert own.item() == pytest.approx(their.item(), abs=1e-5)
    assert seen["kl"] == pytest.approx(logged["kl"][0], abs=1e-4)
    assert seen["reward_up"] == pytest.approx(logged["rewards/chosen"][0], abs=1e-4)
    assert seen["reward_down"] == pytest.approx(logged["rewards/rejected"][0], abs=1e-4)
    own.backward()
    their.backward()
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad, twin[name].grad, atol=1e-6, rtol=1e-3)


def test_the_reference_is_what_the_policy_was_not_what_it_becomes(
    tiny_folder, full_precision, tmp_path
):  # properties 13, 14
    lm = with_adapter(tiny_folder, full_precision)
    trainer = trainer_of(lm, judged(lm, thumbs(5)), tmp_path)
    move(lm)
    base = models.load(tiny_folder, full_precision)
    for row, (matched, mismatched) in zip(trainer._given, trainer._reference, strict=True):
        with torch.no_grad():
            for some, found in ((row.judged.sequences, matched), (row.mismatched, mismatched)):
                expected = likelihood.sequence_logps(base, list(some))
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert not any(".ref." in name for name, _ in lm.model.named_parameters())


def test_what_pads_a_batch_changes_nothing(tiny_folder, full_precision, tmp_path):  # property 6
    lm = with_adapter(tiny_folder, full_precision)
    some = [signal(1, prompt="A", text=" a", up=True), *thumbs(5)]
    trainer = trainer_of(lm, judged(lm, some), tmp_path)
    move(lm)
    before, given = batch_loss(trainer)[0].item(), gradient(trainer, range(6))
    lm.pad_id = 17
    assert batch_loss(trainer)[0].item() == before
    assert torch.equal(gradient(trainer, range(6)), given)


def test_two_half_batches_give_the_gradient_of_the_whole_where_no_reference_point_is_above_zero(
    tiny_folder, full_precision, tmp_path
):  # property 29, as far as KTO has it: each batch has a reference point of its own
    lm = with_adapter(tiny_folder, full_precision)
    trainer = trainer_of(lm, judged(lm, thumbs(8)), tmp_path)
    halves, whole = (range(4), range(4, 8)), range(8)
    move(lm, std=1e-4)  # a first step's worth: reference points are 0 or next to it
    torch.testing.assert_close(
        gradient(trainer, *halves), gradient(trainer, whole), atol=1e-6, rtol=1e-3
    )
    raise_what_is_borrowed(trainer)
    one, two, both = (batch_loss(trainer, places)[1]["kl"] for places in (*halves, whole))
    assert abs(one - two) > 0.1
    assert both == pytest.approx((one + two) / 2, abs=1e-4)
    apart = gradient(trainer, *halves) - gradient(trainer, whole)
    assert apart.norm() > 0.01 * gradient(trainer, whole).norm()


def test_the_adapter_stays_float32_though_trl_casts_that_of_a_packed_base(
    tiny_folder, full_precision, tmp_path
):
    lm = with_adapter(tiny_folder, full_precision)
    lm.model.get_base_model().is_loaded_in_4bit = True  # what TRL looks at
    before = {k: p.detach().clone() for k, p in lm.model.named_parameters() if p.requires_grad}
    trainer_of(lm, judged(lm, thumbs(4)), tmp_path)
    after = {k: p for k, p in lm.model.named_parameters() if p.requires_grad}
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


# Training


def likes(task, out, texts=(" a sea ran home and good", " a sea ran home and awful")):
    """How much a trained policy raises each text after a prompt that it has not seen, in nats."""
    lm = models.load(task.base_folder, task.base)
    some = [signal(n, prompt="Elsewhere:", text=t, up=True) for n, t in enumerate(texts)]
    given = [s for one in judged(lm, some) for s in one.sequences]
    with torch.no_grad():
        before = likelihood.sequence_logps(lm, given)
        models.load_adapter(lm, out, name="policy")
        return (likelihood.sequence_logps(lm, given) - before).tolist()


def test_thumbs_teach_the_planted_word(task):  # property 31
    found = kto.train(but(epochs=4), task)
    assert found["examples_up"] == found["examples_down"] == 20  # those of role reward are not used
    assert found["examples_undecided"] == 0
    assert found["prompts"] == 40
    assert found["steps"] == 20  # 40 prompts / 8 x 4 epochs
    assert found["implicit_accuracy"] == 1.0
    assert found["implicit_accuracy_n"] == 12
    rows = curves(task)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["loss"] < 0.4
    assert rows[-1]["reward_up"] > rows[-1]["reward_down"] + 1
    good, awful = likes(task, task.out)
    assert good > awful + 3


def test_thumbs_turned_round_teach_the_other_word(task):  # property 31
    files.write_lines(task.data / "signals.jsonl", thumbs(40, liked="awful"))
    found = kto.train(but(epochs=4), task)
    assert "implicit_accuracy" not in found  # there is nothing of role validation
    assert found["held_out_up"] == found["held_out_down"] == 0
    good, awful = likes(task, task.out)
    assert awful > good + 3


@pytest.mark.parametrize("sign", [1, -1])
def test_pairs_teach_the_planted_word(task, sign):  # property 31
    def some(count, start, **more):
        for n in range(count):
            texts = [FILLERS[n % 4] + " and good", FILLERS[(n + 1) % 4] + " and awful"][::sign]
            yield pair(
                f"{start}{n}", prompt=f"{start} {n}:", chosen=texts[0], rejected=texts[1], **more
            )

    train = [*some(24, "Tale"), *some(4, "Third", role="reward")]
    files.write_lines(task.data / "train.jsonl", train)
    files.write_lines(task.data / "validation.jsonl", list(some(6, "Another", role="validation")))
    found = kto.train(but(signals="pairs", epochs=4), task)
    assert found["examples_up"] == found["examples_down"] == found["prompts"] == 24
    assert found["implicit_accuracy"] == 1.0
    good, awful = likes(task, task.out)
    assert sign * (good - awful) > 3


def test_a_step_without_bad_completions_has_no_reward_of_them(task, tmp_path):
    lm = with_adapter(task.base_folder, task.base)
    _, seen = batch_loss(trainer_of(lm, judged(lm, thumbs(8)[::2]), tmp_path / "ck"))
    assert seen.keys() == {"kl", "reward_up"}  # nothing that is not a number goes into the log
    rows = [signal(n, text=f" a{n} and good", up=n > 0) for n in range(4)]
    files.write_lines(task.data / "signals.jsonl", rows)
    kto.train(but(batch_prompts=2, epochs=1), task)
    found = curves(task)
    assert len(found) == 2
    assert sum(math.isnan(row["reward_down"]) for row in found) == 1
    assert not any(math.isnan(row["reward_up"]) or math.isnan(row["loss"]) for row in found)


def test_a_balance_above_one_favours_good_completions(task):
    # With 30 good and 10 bad ones
    rows = [*thumbs(40)[::2], *(signal(f"x{n}", text=f" {n} and good", up=True) for n in range(10)), *thumbs(20)[1::2]]  # fmt: skip
    files.write_lines(task.data / "signals.jsonl", rows)
    raised = {}
    for balance in (0.05, 1.0, 20.0):
        one = again(task, f"b{balance}")
        assert kto.train(but(balance=balance, epochs=4), one)["examples_up"] == 30
        raised[balance] = sum(likes(task, one.out))
    assert raised[0.05] < raised[1.0] < raised[20.0]


def test_only_the_adapter_moves(task, monkeypatch):  # property 13
    seen = {}
    real = models.save_adapter

    def look(lm, folder):
        seen["lm"] = lm
        real(lm, folder)

    monkeypatch.setattr(models, "save_adapter", look)
    found = kto.train(K, task)
    fresh = models.load(task.base_folder, task.base).model.state_dict()
    after = seen["lm"].model.get_base_model().state_dict()
    for name, value in fresh.items():
        twin = after.get(name, after.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(value, twin), name
    saved = sum(v.numel() for v in adapter(task).values())
    assert found["trainable_parameters"] == saved  # TRL's copy of the reference is not among them


def test_same_seed_same_adapter_other_seed_another(task):  # property 35
    runs = [(again(task, n), s) for n, s in (("a", 0), ("b", 0), ("c", 1))]
    found = [kto.train(K, replace(one, seed=seed)) for one, seed in runs]
    a, b, c = (adapter(one) for one, _ in runs)
    assert found[0] == found[1]
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_adapter(task, tmp_path, monkeypatch):  # property 34
    whole = kto.train(K, task)
    real = kto_trainer.JudgedKTOTrainer._compute_loss
    calls = []

    def dies_at_step_eight(self, *arguments):
        calls.append(1)
        if len(calls) == 8:
            raise Killed
        return real(self, *arguments)

    second = again(task, "second")
    monkeypatch.setattr(kto_trainer.JudgedKTOTrainer, "_compute_loss", dies_at_step_eight)
    with pytest.raises(Killed):
        kto.train(K, second)
    assert list(tmp_path.glob(".cache/checkpoints/align-kto-*/checkpoint-6"))
    monkeypatch.setattr(kto_trainer.JudgedKTOTrainer, "_compute_loss", real)
    assert kto.train(K, second) == whole
    one, two = adapter(task), adapter(second)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert task.curves.read_text() == second.curves.read_text()
    assert not list(tmp_path.glob(".cache/checkpoints/align-kto-*"))


def test_a_policy_that_training_starts_from_is_the_reference(
    after_sft, tmp_path
):  # properties 9, 12
    files.write_lines(
        tmp_path / "pairs/signals.jsonl",
        [*thumbs(16), *thumbs(6, role="validation", start="Another")],
    )
    task = replace(after_sft, data=tmp_path / "pairs", prompts=tmp_path / "pairs")
    lm = task.open_with_adapter(K)
    given = kto_trainer.rows(judged(lm, thumbs(16)), batch_prompts=8, seed=1)
    trainer = kto_trainer.JudgedKTOTrainer(
        lm, K, given, weights=(1.0, 1.0), seed=1, checkpoints=tmp_path / "ck"
    )
    alone = models.load(task.base_folder, task.base)
    sequences = [s for row in given for s in row.judged.sequences]
    with torch.no_grad():
        base = likelihood.sequence_logps(alone, sequences)
        models.load_adapter(alone, task.starts_from, name="start")
        start = likelihood.sequence_logps(alone, sequences)
    found = torch.cat([matched for matched, _ in trainer._reference])
    torch.testing.assert_close(found, start, atol=1e-4, rtol=1e-5)
    assert (found - base).abs().max() > 0.5
    done = kto.train(but(epochs=4), task)
    rows = curves(task)
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert done["implicit_accuracy"] == 1.0
    assert done["trainable_parameters"] == sum(v.numel() for v in adapter(task).values())
    # What the demonstrations taught is still there: it went on from the policy, not from the base
    shown = sft_trainer.sequences(alone, [demonstration(1)], max_tokens=64)
    end = models.load_adapter(alone, task.out, name="end")
    with torch.no_grad():
        logps = []
        for name in (None, "start", "end"):
            with models.adapter(end, name):
                logps.append(likelihood.sequence_logps(end, shown).item())
    assert abs(logps[2] - logps[1]) < abs(logps[2] - logps[0])


# What is measured, and what is refused


def test_accuracy_counts_good_against_bad_completions_of_any_prompts():
    # good 2, 0, 1; bad 1, 0: of six comparisons 2 > 1, 2 > 0, 1 > 0 right, 0 = 0, 1 = 1 half: 4 / 6
    one = signals.Judged("p", ((), (), ()), (True, False, True))
    two = signals.Judged("q", ((), ()), (True, False))
    found = kto.accuracy([one, two], torch.tensor([2.0, 1.0, 0.0, 1.0, 0.0]))
    assert found["implicit_accuracy"] == pytest.approx(4 / 6)
    assert found["implicit_accuracy_n"] == 5
    assert (found["held_out_up"], found["held_out_down"]) == (3, 2)
    assert kto.accuracy([one], torch.tensor([2.0, 1.0, 3.0]))["implicit_accuracy"] == 1.0


def test_no_thumbs_are_refused(task):
    files.write_lines(task.data / "signals.jsonl", thumbs(6, role="reward"))
    with pytest.raises(
        Refusal,
        match=r"signals.jsonl: no thumbs of role align; label some with `make label TASK=thumbs`, "
        "or set signals: pairs$",
    ):
        kto.train(K, task)


def test_no_pairs_are_refused(task):
    files.write_lines(task.data / "train.jsonl", [pair(1, chosen=" a", rejected=" b", role="reward")])  # fmt: skip
    files.write_lines(task.data / "validation.jsonl", [])
    with pytest.raises(
        Refusal, match=r"train.jsonl: no pairs that say which is better of role align; raise"
    ):
        kto.train(but(signals="pairs"), task)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (thumbs(12)[::2], "6 good and 0 bad completions of 6 prompts of role align"),
        (
            [signal(n, prompt="P", text=f" {n}", up=n > 1) for n in range(4)],
            "2 good and 2 bad completions of 1 prompts of role align; KTO learns from both kinds, and "
            "from two prompts at least; label some",
        ),
    ],
)
def test_one_kind_or_one_prompt_alone_is_refused(task, rows, message):
    files.write_lines(task.data / "signals.jsonl", rows)
    with pytest.raises(Refusal, match=message):
        kto.train(K, task)


def test_one_prompt_a_step_is_refused():
    from stages.lib.runtime.schema import check

    with pytest.raises(Refusal, match="batch_prompts must be greater than or equal to 2, not 1"):
        check(K.model_dump() | {"batch_prompts": 1}, kto.Kto, "policies.kto")
