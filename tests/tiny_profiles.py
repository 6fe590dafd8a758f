"""A profile of profiles/ as a dry run: its own models and data sets, tiny and in the hub's own form.

    python tests/tiny_profiles.py PROFILE FOLDER

Repositories and commits stay the profile's: what stands in the hub's cache under them is a random model
of the same architecture, a random classifier with the same classes, or a few rows of this project's own
texts. Sizes are cut to what two cores do in minutes. What the models say means nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import torch
from model_files import write_hub_cache
from ruamel.yaml import YAML
from tiny_graph import ROOT, environment, workspace
from tiny_model import tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

CUT = {
    "samplers.*.completions": 3,
    "samplers.*.max_tokens": 6,
    "graders.*.completions": 3,
    "graders.*.max_tokens": 6,
    "labelers.*.prompts": 6,
    "reward.normaliser_completions": 20,
    "policies.*.batch_prompts": 4,
    "policies.*.minibatch_prompts": 4,
    "policies.*.microbatch_prompts": 2,
    "policies.*.samples": 2,
    "policies.*.stop.max_steps": 2,
    "policies.*.max_steps": 2,
    "policies.*.look.prompts": 4,
    "policies.*.snapshots": 1,
    "policies.*.anchor.passages": 2,
    "policies.*.epochs": 1,
    "provokers.*.draws": 3,
    "provokers.*.max_tokens": 12,
    "provokers.*.answer_tokens": 6,
    "revisers.*.prompts": 6,
    "revisers.*.max_tokens": 6,
    "revisers.*.critique_tokens": 6,
    "evaluate.sets.*.prompts": 5,
    "evaluate.sets.*.samples": 2,
    "evaluate.sets.*.tokens": 6,
    "evaluate.reward_samples": 2,
    "evaluate.snapshots.prompts": 3,
    "evaluate.snapshots.samples": 1,
    "evaluate.implicit_prompts": 4,
    "evaluate.identities.beginnings": 2,
    "evaluate.identities.samples": 1,
    "evaluate.identities.tokens": 4,
    "scorers.*.prompts": 4,
    "report.resamples": 200,
    "*resamples": 100,
}
"""The most that a parameter is here, by its dotted name."""
SET = {
    "base.weights": "rounded",  # packed needs a GPU
    "reward.max_tokens": 512,  # the tiny tokenizer makes more tokens of a text
    "policies.*.max_tokens": 512,
    "policies.*.min_effective": 0.0,  # a random reward model may like one answer alone
    "graders.*.min_p_chosen": 0.5,
    "provokers.*.min_words": 1,  # what a random model writes is no words
    "provokers.*.max_repeated": 1.0,
    "provokers.*.max_copied": 1.0,
    "labelers.hate.tie": 1.0e-6,  # a random classifier hardly tells two texts apart
    "pairs.min_p_chosen": 0.5,  # so that so few prompts leave pairs
}
ONLINE = ("ppo", "rloo")


def cut(settings: dict) -> dict:
    """Return a profile with its sizes cut, everything else as it is."""

    def smaller(value, name):
        if isinstance(value, dict):
            return {
                key: smaller(one, f"{name}.{key}" if name else key) for key, one in value.items()
            }
        for pattern, given in SET.items():
            if fnmatch(name, pattern):
                return given
        for pattern, most in CUT.items():
            if isinstance(value, int) and not isinstance(value, bool) and fnmatch(name, pattern):
                return min(value, most)
        return value

    made = smaller(settings, "")
    for entry in made["policies"].values():
        if entry["algorithm"] in ONLINE:
            entry["max_tokens"] = 6
    for source in made["prompts"]["sources"]:
        if "rows" in source:
            source["rows"] = min(source["rows"], 120)
    return made


def causal(folder: Path) -> None:
    """Qwen2, which Qwen2.5 is: biases on queries, keys and values, shared keys, its own ends."""
    words = tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    ))  # fmt: skip
    with torch.no_grad():  # so that the next token depends on the text
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.generation_config.eos_token_id = [3, 1]
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def classifier(kind: str, labels: list[str], folder: Path, **more) -> None:
    """A random classifier in the shape of BERT or RoBERTa with these classes."""
    config, model = {
        "bert": (BertConfig, BertForSequenceClassification),
        "roberta": (RobertaConfig, RobertaForSequenceClassification),
    }[kind]
    words = tokenizer()
    torch.manual_seed(1)
    model(config(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=514, pad_token_id=0,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}, **more,
    )).save_pretrained(folder)  # fmt: skip
    words.save_pretrained(folder)


JIGSAW = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
MODELS = {
    "Qwen/Qwen2.5": causal,
    "unitary/toxic-bert": lambda folder: classifier(
        "bert", JIGSAW, folder, problem_type="multi_label_classification"
    ),
    "facebook/roberta-hate-speech": lambda folder: classifier(
        "roberta", ["nothate", "hate"], folder
    ),
}


def texts() -> list[str]:
    """The beginnings of sentences among the project's own prompts."""
    found = []
    for name in ("insult", "profanity", "threat", "neutral"):
        lines = (ROOT / f"data/sources/prompts/{name}.jsonl").read_text().splitlines()
        found += [row["text"] for row in map(json.loads, lines) if "text" in row]
    return found


def toxicity_rows(folder: Path) -> None:
    """prompts.jsonl as allenai/real-toxicity-prompts has it."""
    with (folder / "prompts.jsonl").open("w") as out:
        for n, text in enumerate(texts()):
            prompt = {"text": text, "toxicity": 0.1 if n % 4 == 0 else 0.7, "profanity": None}
            continuation = {"text": " and so on.", "toxicity": 0.1}
            row = {"filename": f"{n}.txt", "begin": 0, "end": 9, "challenging": n % 4 == 1}
            out.write(json.dumps(row | {"prompt": prompt, "continuation": continuation}) + "\n")


def dialogue_rows(folder: Path) -> None:
    """CSV files as knkarthick/dialogsum has them, with one of no split beside them."""
    import csv

    for name in ("train", "validation", "test", "holdout"):
        with (folder / f"{name}.csv").open("w", newline="") as out:
            table = csv.writer(out)
            table.writerow(["id", "dialogue", "summary", "topic"])
            for n, text in enumerate(texts()):
                said = f"#Person1#: {text}\n#Person2#: Really? Then tell me more." + " Go on." * 20
                table.writerow([f"{name}_{n}", said, "Talk.", "talk"])


DATASETS = {"allenai/real-toxicity-prompts": toxicity_rows, "knkarthick/dialogsum": dialogue_rows}


def fill_cache(settings: dict, home: Path, scratch: Path) -> None:
    """Lay what a profile takes from the hub into a cache under the profile's own commits."""
    for name, entry in settings["models"].items():
        if entry["source"] == "hub":
            (make,) = (m for prefix, m in MODELS.items() if entry["repository"].startswith(prefix))
            make(scratch / name)
            write_hub_cache(home, entry["repository"], entry["revision"], scratch / name)
    wanted = {
        (s["repository"], s["revision"])
        for s in settings["prompts"]["sources"]
        if s["kind"] == "hub"
    }
    for number, (repository, revision) in enumerate(sorted(wanted)):
        rows = scratch / f"rows-{number}"
        rows.mkdir()
        DATASETS[repository](rows)
        write_hub_cache(home, repository, revision, rows, kind="datasets")


def prepare(profile: str, folder: Path) -> dict[str, str]:
    """Make a workspace of a cut profile with everything it needs; return the environment to run in."""
    folder.mkdir(parents=True)
    workspace(folder)
    settings = YAML(typ="safe").load(ROOT / f"profiles/{profile}.yaml")
    settings = cut(settings)
    if (
        settings["models"]["base"]["source"] == "package"
    ):  # a wheel cannot be made up: its hash is named
        settings["models"]["base"] = {
            "source": "local",
            "path": "tiny-model",
            "licence": "Apache-2.0",
        }
    YAML().dump(settings, folder / "params.yaml")
    home = folder.parent / f"{folder.name}-hub"
    fill_cache(settings, home, folder.parent / f"{folder.name}-made")
    return environment(folder) | {"HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "tables")}


if __name__ == "__main__":
    place = Path(sys.argv[2]).resolve()
    for old in (place, *place.parent.glob(f"{place.name}-*")):
        shutil.rmtree(old, ignore_errors=True)
    given = os.environ | prepare(sys.argv[1], place)
    sys.exit(subprocess.run(["dvc", "repro"], cwd=place, env=given, check=False).returncode)
