"""A policy as a folder to share: what is in it, and what its card says."""

import json
import shutil

import pytest
import torch
from ruamel.yaml import YAML
from tiny_model import moved_adapter

from stages.lib import models
from stages.lib.commands.export import export
from stages.lib.runtime.schema import Refusal

ESTIMATE = {"value": 0.156, "low": 0.131, "high": 0.182, "n": 120}


@pytest.fixture
def root(tiny, tiny_folder, tmp_path):
    """A repository after `dvc repro`, as far as an export reads it."""
    from graph import ROOT

    folder = tmp_path / "plumbline"
    tree = YAML(typ="safe").load(ROOT / "params.yaml")
    tree["base"] = {"quantisation": "none", "weights": "rounded", "dtype": "float32"}
    shutil.copytree(tiny_folder, folder / "models/base")
    card = {"name": "base", "licence": "Apache-2.0", "parameters": 1234567}
    source = {
        "source": "package",
        "package": "tiny==0.1",
        "sha256": "ab12",
        "licence": "Apache-2.0",
    }
    (folder / "models/base/identity.json").write_text(json.dumps({**card, "source": source}))
    moved_adapter(tiny, folder / "models/policies/dpo", std=0.3)
    with (folder / "params.yaml").open("w") as out:
        YAML(typ="safe").dump(tree, out)
    (folder / "reports").mkdir()
    own = {"independent": {"emt": ESTIMATE}, "cost": {"dist2": ESTIMATE | {"value": 0.977}}}
    found = {"policies": {"baseline": own, "dpo": own}, "verdicts": {"dpo": {"improved": 0}}}
    (folder / "reports/comparison.json").write_text(json.dumps(found))
    verdict = (
        "policy  verdict\n\ndpo: not shown: it fell: −0.2, but it\n  refuses benign requests.\n"
    )
    (folder / "reports/verdict.txt").write_text(verdict)
    return folder


def test_the_card_carries_the_verdict_whichever_it_is_and_what_was_measured(root, tmp_path):
    card = (export(root, "dpo", tmp_path / "out", merged=False) / "README.md").read_text()
    assert "**Verdict: not shown: it fell: −0.2, but it refuses benign requests.**" in card
    assert "| Expected maximum toxicity | 0.156 [0.131, 0.182] | 0.156 [0.131, 0.182] |" in card
    assert "| Distinct bigrams | 0.977 [0.131, 0.182] |" in card
    head = YAML(typ="safe").load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "peft"
    assert "1,234,567 parameters, from package tiny==0.1, sha256 ab12; licence Apache-2.0" in card
    assert "beta 0.1" in card


def test_an_adapter_is_loaded_from_where_it_was_exported(
    root, tmp_path, tiny_folder, full_precision
):
    out = export(root, "dpo", tmp_path / "out", merged=False)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    lm = models.load_adapter(models.load(tiny_folder, full_precision), out, name="policy")
    assert "policy" in lm.model.peft_config


def test_the_merged_model_says_what_base_and_adapter_say(
    root, tmp_path, tiny_folder, full_precision
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = export(root, "dpo", tmp_path / "out", merged=True)
    merged = AutoModelForCausalLM.from_pretrained(out)
    ids = AutoTokenizer.from_pretrained(out)("He said that", return_tensors="pt").input_ids
    adapter = root / "models/policies/dpo"
    lm = models.load_adapted(tiny_folder, adapter, full_precision)
    plain = models.load(tiny_folder, full_precision)
    with torch.no_grad():
        found, expected, base = (m(input_ids=ids).logits for m in (merged, lm.model, plain.model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - base).abs().max() > 0.01
    assert (
        YAML(typ="safe").load((out / "README.md").read_text().split("---")[1])["library_name"]
        == "transformers"
    )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("gone", "no adapter is there; `dvc repro align@gone` makes it"),
        ("ppo", "no verdict on ppo"),
    ],
)
def test_a_policy_that_is_not_there_or_not_judged_is_refused_and_nothing_written(
    root, tmp_path, policy, message
):
    shutil.copytree(root / "models/policies/dpo", root / "models/policies/ppo")
    with pytest.raises(Refusal, match=message):
        export(root, policy, tmp_path / "out", merged=False)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(root, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(Refusal, match="is there already; name another folder"):
        export(root, "dpo", tmp_path / "out", merged=False)
