"""Two processes give what one gives; one error ends both; one run is tracked."""

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PARTS = "dpo", "sft", "brain", "dpg", "reward", "ppo", "sampled", "asked"
WEIGHTS, NUMBERS = 5e-5, 1e-4
"""How far weights (up to 0.5) and figures (relative) of two processes may be from those of one: sums
of float32 are taken in another order, and Adam divides small gradients by their size. Seen: 2e-5
and 5e-6."""


def environment(folder, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"} | more


@pytest.fixture(scope="module")
def world(tiny_folder, full_precision, tmp_path_factory):
    """Prompts, pairs of unlike weight, demonstrations, a policy and a reward model."""
    from test_reward import planted
    from tiny_graded import write_graded
    from tiny_model import moved_adapter
    from tiny_online import demonstration, write_neutral, write_prompts, write_reward

    from stages.lib import models
    from stages.lib.runtime import files

    folder = tmp_path_factory.mktemp("world")
    write_prompts(folder / "prompts")
    write_neutral(folder / "neutral.jsonl")
    # 33 prompts in batches of 8: in the last one, of one prompt, the second process has no share
    learned = [
        pair.model_copy(update={"weight": (1 + number % 3) / 3})
        for number, pair in enumerate(planted(33, role="align"))
    ]
    held_out = [
        pair.model_copy(update={"role": "validation", "prompt_id": f"v{pair.id}"})
        for pair in planted(8)
    ]
    files.write_lines(folder / "pairs/train.jsonl", learned)
    files.write_lines(folder / "pairs/validation.jsonl", held_out)
    files.write_lines(folder / "demos.jsonl", [demonstration(n) for n in range(41)])
    moved_adapter(models.load(tiny_folder, full_precision), folder / "moved", std=0.3)
    write_reward(folder / "reward", tiny_folder, full_precision)
    write_graded(folder / "graded", tiny_folder, count=33)
    return folder


@pytest.fixture(scope="module")
def both(world, tiny_folder, tmp_path_factory):
    """What one process found, and what each of two, with the folders that they wrote to."""
    import two_processes

    one, two = (tmp_path_factory.mktemp(f"by-{count}") for count in (1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(one))
        alone = {name: getattr(two_processes, name)(tiny_folder, world, one) for name in PARTS}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    given = [ROOT / "tests/two_processes.py", tiny_folder, world, two, *PARTS]
    done = subprocess.run(
        [*torchrun, *given], env=environment(ROOT, DVC_ROOT=str(two)), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(two / f"rank-{n}.pt", weights_only=True) for n in range(2)]
    return ([alone], one), (ranks, two)


def same_completions(one, two):
    """The same records to the last character, and log-probabilities to a unit of their last digit."""
    rows = [[json.loads(line) for line in (place / "sampled.jsonl").open()] for place in (one, two)]
    assert len(rows[0]) == 24  # 8 prompts, 3 completions each
    for mine, row in zip(rows[1], rows[0], strict=True):
        assert mine.pop("logp") == pytest.approx(row.pop("logp"), abs=1.1e-4)
        assert mine == row


def close(mine, one, *, rel=NUMBERS):
    assert mine.keys() == one.keys()
    for name in one:
        assert mine[name] == pytest.approx(one[name], rel=rel, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("name", ["dpo", "sft", "brain", "dpg"])
def test_two_processes_align_a_policy_as_one_does(both, name):
    from safetensors.torch import load_file

    (((alone,), one), ((first, second), two)) = both
    # A moved proposal's log-probabilities are written with four digits after the point
    near = {"rel": 1e-3} if name == "dpg" else {}
    close(first[name], alone[name], **near)
    assert second[name] == first[name]  # it holds the same policy, and measured it alike
    weights = [load_file(out / name / "adapter_model.safetensors") for out in (one, two)]
    for key, weight in weights[0].items():
        assert torch.allclose(weights[1][key], weight, atol=WEIGHTS), key
    curves = [list(csv.DictReader((out / f"{name}.csv").open())) for out in (one, two)]
    assert len(curves[0]) == len(curves[1]) > 4
    assert float(curves[0][-1]["anchor_kl"]) > 1e-5
    for mine, row in zip(curves[1], curves[0], strict=True):
        close({k: float(v) for k, v in mine.items()}, {k: float(v) for k, v in row.items()}, **near)
    assert [p.name for p in two.iterdir() if ".partial" in p.name] == []


@pytest.mark.parametrize("name", ["reward", "ppo"])
def test_two_processes_train_as_one_does_with_twice_the_batch(both, name):
    (((alone,), _), ((first, second), _)) = both
    for key, weight in alone[name]["weights"].items():
        assert torch.equal(first[name]["weights"][key], second[name]["weights"][key]), key
        assert torch.allclose(first[name]["weights"][key], weight, atol=WEIGHTS), key
    assert len(alone[name]["rows"]) == len(first[name]["rows"]) >= 4
    for rows in ("rows", "looks")[: 1 + (name == "ppo")]:
        for mine, one in zip(first[name][rows], alone[name][rows], strict=True):
            close(
                {k: v for k, v in mine.items() if not k.startswith(("train_", "total_"))},
                {k: v for k, v in one.items() if not k.startswith(("train_", "total_"))},
            )
    assert first["reward"]["normaliser"] == pytest.approx(
        alone["reward"]["normaliser"], rel=NUMBERS
    )


def test_two_processes_say_what_one_says(both):
    (((alone,), one), ((first, second), two)) = both
    same_completions(one, two)
    assert first["sampled"] == second["sampled"] == alone["sampled"]
    assert first["asked"]["texts"] == second["asked"]["texts"] == alone["asked"]["texts"]
    assert first["asked"]["numbers"] == second["asked"]["numbers"]
    assert first["asked"]["numbers"] == pytest.approx(alone["asked"]["numbers"], rel=1e-4, abs=2e-5)


TOY = """
import sys
from typing import Literal
from pathlib import Path
from stages.lib.runtime import entry, files, locks, processes
from stages.lib.runtime.schema import Refusal, Strict

class Toy(Strict):
    fails: Literal["nothing", "refusal", "error"]

def run(toy: Toy, *, out: Path) -> dict[str, float]:
    print("heard", flush=True)
    lock = locks.take("toy", "taken")
    print("a bar", file=sys.stderr, flush=True)
    with files.whole_folder(out) as folder:
        files.write_text(folder / "sum.txt", str(sum(processes.gather(1 + processes.rank()))))
        if processes.rank() == 1 and toy.fails == "refusal":
            raise Refusal("toy.fails is 'refusal'; 'nothing' would do")
        if processes.rank() == 1 and toy.fails == "error":
            raise ZeroDivisionError("of rank 1")
        processes.barrier()
    lock.release()
    return {"processes": float(processes.size())}

if __name__ == "__main__":
    entry.main(run, "toy", record="{stage}.json", shared=lambda toy: True)
"""


def stage(folder, fails, launcher):
    """Run the toy stage as DVC would, and return what it printed, with its MLflow runs."""
    from mlflow import MlflowClient

    (folder / "toy.py").write_text(textwrap.dedent(TOY))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text(f"toy: {{fails: {fails}}}\n")
    done = subprocess.run(
        [sys.executable, "toy.py", "out"], cwd=folder, env=environment(folder, PLUMBLINE_LAUNCH=launcher),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not (folder / "mlflow.db").exists():
        return done, []
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("plumbline").experiment_id
    runs = client.search_runs([experiment], "tags.kind = 'stage'")
    return done, [(run.info.status, run.data.metrics.get("processes")) for run in runs]


DDP = f"accelerate launch --config_file {ROOT}/launch/ddp.yaml --num_processes 2"


def test_a_stage_starts_itself_in_two_processes_of_which_one_is_heard_and_tracked(tmp_path):
    done, runs = stage(tmp_path, "nothing", DDP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("heard") == done.stderr.count("a bar") == 1
    assert (tmp_path / "out/sum.txt").read_text() == "3"  # 1 + 2
    assert runs == [("FINISHED", 2.0)]
    assert json.loads((tmp_path / "toy.json").read_text())["metrics"] == {"processes": 2.0}
    assert sorted(p.name for p in (tmp_path / ".cache").iterdir()) == ["locks", "mlflow.lock"]


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("refusal", "Refusal: toy.fails is 'refusal'; 'nothing' would do"),
        pytest.param("error", "ZeroDivisionError: of rank 1", marks=pytest.mark.slow),
    ],
)
def test_what_fails_in_one_process_ends_both_and_is_told_once(tmp_path, fails, said):
    done, runs = stage(tmp_path, fails, "torchrun --standalone --nproc_per_node 2")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == said
    assert done.stderr.count(said) == 1
    assert done.stderr.count("Traceback") == (fails == "error")
    assert "ChildFailedError" not in done.stderr
    assert runs == [("FAILED", None)]
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {".cache", "dvc.yaml", "mlflow.db", "params.yaml", "toy.py"}


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ("no-such-launcher -n 2", "PLUMBLINE_LAUNCH: no-such-launcher: No such file or directory"),
        ("false", "PLUMBLINE_LAUNCH: `false` ended with status 1"),
    ],
)
def test_a_launcher_that_does_not_start_is_refused_in_one_line(tmp_path, launcher, said):
    done, runs = stage(tmp_path, "nothing", launcher)
    assert (done.returncode, runs) == (1, [])
    assert done.stderr.strip() == f"Refusal: {said}"


def test_params_are_refused_before_anything_is_launched(tmp_path):
    done, _ = stage(tmp_path, "everything", "false")
    assert done.stderr.startswith("ParamError: params.yaml: toy.fails must be")


@pytest.mark.parametrize("config", sorted(p.name for p in (ROOT / "launch").glob("*.yaml")))
def test_accelerate_reads_every_launch_config(config):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = str(ROOT / "launch" / config)
    assert load_config_from_file(path).num_processes == 2
    given = launch_command_parser().parse_args(["--config_file", path, "-m", "stages.align", "dpo"])
    arguments, *_ = _validate_launch_command(given)
    assert arguments.module
    assert (arguments.training_script, arguments.training_script_args) == ("stages.align", ["dpo"])
    kind = {"ddp.yaml": (True, False), "fsdp2.yaml": (False, True)}[config]
    assert (bool(arguments.multi_gpu), bool(arguments.use_fsdp)) == kind


def test_a_batch_that_processes_cannot_divide_is_refused_in_one_line(tmp_path, monkeypatch):
    from test_dpo import P

    from stages.lib import training
    from stages.lib.runtime.schema import Refusal

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(Refusal, match="3 processes share batch_prompts 8, which does not come out"):
        training.arguments(P, prompts=32, seed=0, checkpoints=tmp_path)


def test_deepspeed_is_refused_in_one_line(monkeypatch):
    from stages.lib.runtime import processes
    from stages.lib.runtime.schema import Refusal

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(Refusal, match=r"launch with launch/fsdp2\.yaml"):
        processes.device()


@pytest.mark.slow
def test_processes_that_divide_the_base_find_what_one_finds(
    world, tiny_folder, tmp_path_factory, both
):
    from safetensors.torch import load_file

    (((alone,), one), _) = both
    out = tmp_path_factory.mktemp("divided")
    script, parts = (
        ROOT / "tests/two_processes.py",
        ("divided", "dpo", "sft", "brain", "reward", "sampled", "asked"),
    )
    done = subprocess.run(
        ["accelerate", "launch", "--config_file", ROOT / "launch/fsdp2.yaml", script, tiny_folder, world, out, *parts],
        env=environment(ROOT, DVC_ROOT=str(out), PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first = torch.load(out / "rank-0.pt", weights_only=True)
    assert first["divided"] == {"layer": 0.5, "rest": 1.0}
    for name in ("dpo", "sft", "brain"):
        close(first[name], alone[name])
        weights = [load_file(place / name / "adapter_model.safetensors") for place in (one, out)]
        for key, weight in weights[0].items():
            assert torch.allclose(weights[1][key], weight, atol=WEIGHTS), key
    for key, weight in alone["reward"]["weights"].items():
        assert torch.allclose(first["reward"]["weights"][key], weight, atol=WEIGHTS), key
    same_completions(one, out)
    assert first["asked"]["texts"] == alone["asked"]["texts"]
    assert first["asked"]["numbers"] == pytest.approx(alone["asked"]["numbers"], rel=1e-4, abs=2e-5)
