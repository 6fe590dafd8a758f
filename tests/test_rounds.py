"""Rounds: a policy is kept as it is and answers prompts, whose rankings join the earlier ones."""

import shutil

import pytest
from tiny_online import write_prompts

from stages import sample
from stages.lib import models
from stages.lib.commands.freeze import freeze
from stages.lib.records import Completion
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal

SAMPLER = sample.Sampler(
    model="models/base", adapter="models/base", roles=["align"], categories=[], completions=2, max_tokens=6,
    temperature=1.0, top_k=0, top_p=1.0, batch_tokens=4096,
)  # fmt: skip


@pytest.fixture
def policy(tmp_path, tiny_folder, full_precision):
    """A policy that is not the base: its adapter's B matrices are not 0."""
    import torch

    lm = models.add_lora(models.load(tiny_folder, full_precision), rank=4, alpha=8, seed=1)
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(2))
    folder = tmp_path / "models/policies/dpo"
    folder.mkdir(parents=True)
    models.save_adapter(lm, folder)
    files.write_json(folder / "policy.json", {"name": "dpo", "algorithm": "dpo"})
    return folder


def texts(base_folder, adapter, base, tmp_path):
    write_prompts(tmp_path / "prompts")
    out = tmp_path / "out.jsonl"
    sample.run(
        SAMPLER, base, 1, name="round1", model=base_folder, adapter=adapter,
        prompts=tmp_path / "prompts", out=out,
    )  # fmt: skip
    return files.read_lines(out, Completion)


def test_a_frozen_policy_answers_as_itself_and_not_as_the_base(
    policy, tmp_path, tiny_folder, full_precision
):
    target = freeze(tmp_path, "dpo", "1")
    own = texts(tiny_folder, policy, full_precision, tmp_path)
    assert texts(tiny_folder, target, full_precision, tmp_path) == own
    base = texts(tiny_folder, tiny_folder, full_precision, tmp_path)
    assert [c.id for c in base] == [c.id for c in own]
    assert [c.logp for c in base] != [c.logp for c in own]


def test_a_frozen_policy_stays_when_the_policy_is_trained_again(policy, tmp_path):
    shutil.copytree(policy, policy / "snapshots/000002")
    target = freeze(tmp_path, "dpo", "1")
    assert not (target / "snapshots").exists()  # nobody asks them again
    before = files.sha256(target / "adapter_model.safetensors")
    (policy / "adapter_model.safetensors").write_bytes(b"another training")
    assert files.sha256(target / "adapter_model.safetensors") == before


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("ppo", "1", r"models/policies/ppo: no adapter is there; `dvc repro align@ppo` makes it"),
        ("dpo", "one", r"make freeze POLICY=name ROUND=number: a policy's name and a whole number"),
        ("dpo", "²", r"make freeze POLICY=name ROUND=number"),
        ("../dpo", "2", r"make freeze POLICY=name ROUND=number"),
        ("", "", r"make freeze POLICY=name ROUND=number"),
    ],
)
def test_what_cannot_be_frozen_is_refused(policy, tmp_path, name, number, message):
    with pytest.raises(Refusal, match=message):
        freeze(tmp_path, name, number)
    assert not (tmp_path / "data/rounds").exists()


def test_a_round_is_never_overwritten(policy, tmp_path):
    freeze(tmp_path, "dpo", "1")
    with pytest.raises(Refusal, match=r"data/rounds/1: is there already"):
        freeze(tmp_path, "dpo", "1")
