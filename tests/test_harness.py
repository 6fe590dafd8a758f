"""A policy and its base on standard tasks: refusals, arithmetic, and the harness on a local task."""

import json
import math
import sys
import tomllib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from graph import ROOT
from ruamel.yaml import YAML
from tiny_model import moved_adapter

from stages.lib import likelihood, models, standard_tasks
from stages.lib.base import Base
from stages.lib.commands import harness
from stages.lib.runtime import files
from stages.lib.runtime.schema import Refusal
from stages.lib.standard_tasks import Score, TaskError
from stages.lib.tokens import TokenSequence

installed = pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason=f"lm_eval is not installed: pip install -c requirements.lock {standard_tasks.REQUIREMENT}",
)


def test_the_refusal_names_the_version_of_the_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["harness"] == [standard_tasks.REQUIREMENT]
    assert "lm-eval" not in (ROOT / "requirements.lock").read_text()


# --- arithmetic, by hand ---------------------------------------------------------------------------


def found(values, *, aggregate=None, task="colours", through="none"):
    """What the harness returns of one task whose documents have these values of `acc`."""
    mean = sum(values) / len(values)
    own = {"name": task, "alias": task, "sample_len": len(values), "acc_stderr,none": "N/A"}
    samples = [
        {"doc_id": n, "prompt_hash": f"{n:064}", "filter": through, "metrics": ["acc"], "acc": one}
        for n, one in enumerate(values)
    ]
    return {
        "results": {task: {**own, f"acc,{through}": mean if aggregate is None else aggregate}},
        "higher_is_better": {task: {"acc": True}},
        "group_subtasks": {},
        "samples": {task: samples},
    }


def test_the_difference_is_paired_by_document():
    # changes: 0 - 1 = -1, 1 - 1 = 0, 0 - 0 = 0, 1 - 1 = 0; mean -1/4. A resample draws the one that
    # changed k times of 4, k ~ Binomial(4, 1/4): P(k=0) = .316, P(k<=2) = .949, P(k<=3) = .996,
    # so the interval is [-3/4, 0].
    (line,) = harness.results(found([1, 1, 0, 1]), found([0, 1, 0, 1]), resamples=2000, seed=1)
    assert (line["baseline"], line["policy"]) == (0.75, 0.5)
    assert line["difference"] == {"value": -0.25, "low": -0.75, "high": 0.0, "n": 4}


def test_two_that_fail_the_same_documents_have_an_interval_of_no_width():
    (line,) = harness.results(found([1, 0, 0, 1]), found([1, 0, 0, 1]), resamples=100, seed=1)
    assert line["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}


def test_a_metric_that_is_no_mean_over_documents_has_a_difference_without_an_interval():
    before, after = found([-1.0, -3.0], aggregate=math.exp(2)), found([-2.0, -3.0], aggregate=9.0)
    (line,) = harness.results(before, after, resamples=100, seed=1)
    assert line["difference"] == {
        "value": pytest.approx(9 - math.exp(2)), "low": None, "high": None, "n": 0,
    }  # fmt: skip


def test_other_documents_are_not_paired():
    one, other = (
        Score("t", "acc", 0.5, True, {"t/0/a": 0.5}),
        Score("t", "acc", 0.7, True, {"t/0/b": 0.7}),
    )
    change = standard_tasks.difference(other, one, resamples=100, seed=1)
    assert change.value == pytest.approx(0.2)
    assert math.isnan(change.low)
    assert change.n == 0


def test_a_group_is_paired_over_the_documents_of_its_tasks():
    # 2 of 3 and 0 of 1: weighted by size (2 + 0) / 4 = 1/2
    red, blue = found([1, 1, 0], task="red"), found([0], task="blue")
    both = {key: {**red[key], **blue[key]} for key in red}
    both["results"]["paint"] = {"acc,none": 0.5}
    both["group_subtasks"] = {"paint": ["warm", "blue"], "warm": ["red"]}
    whole = standard_tasks.scores(both)[-1]
    assert (whole.task, whole.value) == ("paint", 0.5)
    assert list(whole.documents.values()) == [1, 1, 0, 0]
    # Unweighted, (2/3 + 0) / 2 = 1/3 is not the mean of the four
    both["results"]["paint"] = {"acc,none": 1 / 3}
    assert standard_tasks.scores(both)[-1].documents is None


def test_a_filter_of_answers_stands_in_the_name_of_the_metric():
    (score,) = standard_tasks.scores(found([1, 0], through="strict-match"))
    assert score.metric == "acc.strict-match"
    assert score.value == 0.5


def test_the_table_shows_values_difference_and_what_is_better():
    shown = harness.table(
        {
            "resamples": 2000,
            "results": [
                {
                    "task": "colours", "metric": "acc", "higher_is_better": True,
                    "baseline": 0.75, "policy": 0.5,
                    "difference": {"value": -0.25, "low": -0.75, "high": 0.0, "n": 4},
                },
                {
                    "task": "prose", "metric": "perplexity", "higher_is_better": False,
                    "baseline": 7.389, "policy": 9.0,
                    "difference": {"value": 1.611, "low": None, "high": None, "n": 0},
                },
            ],
        }
    )  # fmt: skip
    assert shown.splitlines()[:3] == [
        "task     metric        n  baseline  policy  difference",
        "colours  acc ↑         4  0.750     0.500   −0.250 [−0.750, 0.000]",
        "prose    perplexity ↓  –  7.389     9.000   +1.611",
    ]
    assert "2,000 resamples" in shown


# --- refusals, without the harness -----------------------------------------------------------------


@pytest.fixture
def root(tiny, tiny_folder, tmp_path):
    """A repository with a base and the policies `dpo` and `baseline`, as far as they are read."""
    folder = tmp_path / "plumbline"
    tree = YAML(typ="safe").load(ROOT / "params.yaml")
    tree["base"] = {"quantisation": "nf4", "weights": "rounded", "dtype": "float32"}
    tree["report"]["resamples"] = 200
    folder.mkdir()
    with (folder / "params.yaml").open("w") as out:
        YAML(typ="safe").dump(tree, out)
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(tiny_folder)
    moved_adapter(tiny, folder / "models/policies/dpo", std=0.3)
    cards = {"dpo": {"algorithm": "dpo"}, "baseline": {"algorithm": "none", "quantised": True}}
    for name, card in cards.items():
        files.write_json(folder / "models/policies" / name / "policy.json", card)
    return folder


def measured(root, *words, monkeypatch, capsys):
    """Status and errors of the command."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    return harness.main(), capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo2", "colours"], "Refusal: POLICY: params.yaml has no policies.dpo2; it has baseline, "),
        (["", "colours"], "Refusal: POLICY: params.yaml has no policies.(none given); it has "),
        (["ppo", "colours"], "Refusal: models/policies/ppo: no policy is there; `dvc repro align@ppo`"),
        (["dpo", " ,"], "Refusal: TASKS: names no task; TASKS=hellaswag,truthfulqa_mc2 names two"),
        (["dpo", "colours", "--limit", "0"], "Refusal: LIMIT: must be at least 1, not 0"),
        (["dpo", "colours", "--include", "gone"], "TaskError: gone: no such folder of tasks"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_one_line(root, monkeypatch, capsys, words, message):
    status, said = measured(root, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 1
    assert said.startswith(message)
    assert said.count("\n") == 1
    assert not (root / "reports").exists()


def test_without_the_harness_one_line_says_what_installs_it(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    status, said = measured(root, "dpo", "colours", monkeypatch=monkeypatch, capsys=capsys)
    assert status == 1
    assert said == (
        "TaskError: lm_eval is not installed; `.venv/bin/pip install -c requirements.lock "
        f"{standard_tasks.REQUIREMENT}` installs lm-evaluation-harness, which is not in the lock "
        "file\n"
    )


def test_the_base_itself_is_refused(root, monkeypatch):
    monkeypatch.setattr(standard_tasks, "find", lambda names, include: None)
    with pytest.raises(Refusal, match="baseline: is the base without an adapter"):
        harness.run(root, "baseline", ["colours"], limit=None, include=None, batch=2)


def test_a_tracking_server_that_is_away_costs_a_line(monkeypatch, capsys):
    from stages.lib.runtime.tracking import store

    def away():
        raise ConnectionError("no answer\nand a trace")

    monkeypatch.setattr(store, "connect", away)
    harness.log({"policy": "dpo", "results": []})
    said = capsys.readouterr().err
    assert said.endswith("does not take these results (no answer)\n")
    assert said.count("\n") == 1


# --- the harness itself, on a task of this file ----------------------------------------------------

DOCUMENTS = [
    ("The sky at noon is", ["blue", "made of wood", "angry"], 0),
    ("Fresh snow is", ["a kind of loud music", "white"], 1),
    ("He said that grass is", ["green", "seven"], 0),
    ("A ripe tomato, she told me, is", ["late", "red"], 1),
    ("Coal is", ["black", "pink and sings"], 0),
    ("In autumn the leaves of the old tree behind our house turn", ["round", "yellow"], 1),
]


@pytest.fixture
def own_alone(monkeypatch):
    """The harness without its own tasks: to list them takes it ten seconds."""
    from functools import partial

    import lm_eval.tasks

    alone = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", alone)


@pytest.fixture
def tasks(tmp_path):
    """A folder with one task of six documents, and one whose data is not there."""
    folder = tmp_path / "tasks"
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in DOCUMENTS]
    files.write_lines(tmp_path / "colours.jsonl", rows)
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "colours.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": m, "aggregation": "mean", "higher_is_better": True}
            for m in ("acc", "acc_norm")
        ],
    }
    gone = {
        **task,
        "task": "gone",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.jsonl")}},
    }
    folder.mkdir()
    for one in (task, gone):
        (folder / f"{one['task']}.yaml").write_text(json.dumps(one))  # JSON is YAML
    return folder


def by_hand(lm, active):
    """Accuracy on each document, by the project's own log-probabilities."""
    return [
        float(np.argmax(logps(lm, active, question, choices)) == answer)
        for question, choices, answer in DOCUMENTS
    ]


def logps(lm, active, question, choices):
    """The project's own log-probability of each answer to a question."""
    with models.adapter(lm, active), torch.no_grad():
        return likelihood.sequence_logps(lm, [pair(lm, question, c) for c in choices]).tolist()


def pair(lm, question, choice):
    """A question and an answer as the harness splits them: encoded as one text."""
    start = lm.tokenizer(question).input_ids
    whole = lm.tokenizer(f"{question} {choice}").input_ids
    assert whole[: len(start)] == start
    return TokenSequence(tuple(start), tuple(whole[len(start) :]))


@installed
@pytest.mark.parametrize(
    ("active", "dtype", "gap"),
    # nats, of sums from -12 to -72; in bfloat16 the two read batches of other shapes, which moves
    # them by 0.01, where a softmax in bfloat16 as well would move them by 0.16
    [(None, "float32", 1e-4), ("policy", "float32", 1e-4), (None, "bfloat16", 0.05)],
)
def test_the_harness_gives_a_text_the_log_probability_that_the_project_gives_it(
    root, tasks, own_alone, active, dtype, gap
):
    quantised = Base(quantisation="nf4", weights="rounded", dtype=dtype)
    plain, held = (
        models.load_adapted(root / "models/base", root / "models/policies/dpo", base)
        for base in (quantised.model_copy(update={"quantisation": "none"}), quantised)
    )
    before, own = (
        [
            logp
            for question, choices, _ in DOCUMENTS
            for logp in logps(lm, active, question, choices)
        ]
        for lm in (plain, held)
    )
    with models.adapter(held, active):
        found = standard_tasks.measure(
            held, standard_tasks.find(["colours"], tasks), limit=None, batch=3
        )
    given = [logp for one in found["samples"]["colours"] for ((logp, _),) in one["resps"]]
    assert given == pytest.approx(own, abs=gap)
    assert own != pytest.approx(before, abs=4 * gap)


@installed
def test_a_policy_and_its_base_are_measured_and_written(root, tasks, own_alone):
    base = Base(quantisation="nf4", weights="rounded", dtype="float32")
    found = harness.run(root, "dpo", ["colours"], limit=None, include=tasks, batch=3)
    acc, norm = found["results"]
    lm = models.load_adapted(root / "models/base", root / "models/policies/dpo", base)
    before, after = by_hand(lm, None), by_hand(lm, "policy")
    assert before != after  # else the adapter took no part
    assert acc["baseline"] == pytest.approx(sum(before) / 6)
    assert acc["policy"] == pytest.approx(sum(after) / 6)
    assert acc["difference"]["n"] == norm["difference"]["n"] == 6
    assert acc["difference"]["low"] <= acc["difference"]["value"] <= acc["difference"]["high"]
    kept = json.loads((root / "reports/harness/dpo.json").read_text())
    assert kept == json.loads(json.dumps(found))
    assert kept["adapter"] == files.sha256(root / "models/policies/dpo/adapter_model.safetensors")
    assert kept["shots"] == {"colours": 0}


@installed
def test_a_limit_takes_the_first_documents_and_mlflow_gets_the_numbers(
    root, tasks, own_alone, monkeypatch, capsys
):
    from stages.lib.runtime.tracking import store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["dpo", "colours", "--limit", "2", "--include", str(tasks)]
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["harness", *words])
    assert harness.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-6].startswith("task     metric      n  baseline  policy  difference")
    assert printed[-5].startswith("colours  acc ↑       2  ")
    (run,) = store.connect().runs("tags.kind = 'harness'")
    assert run.data.tags["policy"] == "dpo"
    assert {"colours/acc", "colours/acc_baseline", "colours/acc_difference_low"} <= set(
        run.data.metrics
    )


@installed
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colurs", "TASKS: lm-evaluation-harness has no 'colurs'; did you mean 'colours'?"),
        ("gone", "gone: cannot be opened: .*gone.jsonl"),
    ],
)
def test_a_task_that_is_not_there_is_refused_before_a_model_is_loaded(
    root, tasks, own_alone, monkeypatch, name, message
):
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(TaskError, match=message):
        harness.run(root, "dpo", ["colours", name], limit=None, include=tasks, batch=2)


@installed
@pytest.mark.slow
def test_the_tasks_of_the_harness_are_known_by_name():
    with pytest.raises(TaskError, match="did you mean 'hellaswag'"):
        standard_tasks.find(["helaswag"])
