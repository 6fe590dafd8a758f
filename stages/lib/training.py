"""What every trainer shares: arguments, curves, checkpoints that survive a kill.

transformers' Trainer does the loop; this module sets it up the same way for each algorithm.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ProgressCallback, Trainer, TrainerCallback

from stages.lib.lora import LoraTraining
from stages.lib.runtime import code, files, guard, locks, processes, sealed, tracking

CHECKPOINTS = 4
"""Checkpoints a run: a kill costs at most a quarter of the training."""


def arguments(knobs: LoraTraining, *, prompts: int, seed: int, checkpoints: Path) -> dict[str, Any]:
    """Return keyword arguments for TrainingArguments and its subclasses.

    Args:
        knobs: of params.yaml.
        prompts: rows of the dataset.
        seed: of the order of rows.
        checkpoints: folder for checkpoints, outside the stage's outputs.

    Raises:
        Refusal: the processes that share a batch cannot divide it evenly.
    """
    processes.require_even("batch_prompts", knobs.batch_prompts)
    steps = knobs.steps(prompts)
    return common(
        knobs.learning_rate, knobs.max_grad_norm, steps=steps, seed=seed, checkpoints=checkpoints
    ) | {
        "num_train_epochs": knobs.epochs,
        "per_device_train_batch_size": knobs.batch_prompts,
        "warmup_steps": round(knobs.warmup * steps),
    }


def common(
    learning_rate: float, max_grad_norm: float, *, steps: int, seed: int, checkpoints: Path
) -> dict[str, Any]:
    """Return the arguments that do not depend on how the data is batched."""
    return {
        "output_dir": str(checkpoints),
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "max_grad_norm": max_grad_norm,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": max(1, -(-steps // CHECKPOINTS)),
        "save_total_limit": 2,
        "report_to": "none",
        "seed": seed,
        # TRL switches it on by default; precision is set where the model runs (training_precision).
        "bf16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "use_cpu": not torch.cuda.is_available(),
    }


class Shared:
    """Mix-in of transformers' trainers, first of all: several processes share every batch.

    Left to itself a Trainer gives each process batches of its own, repeats rows where the last ones
    do not come out even, and takes the mean of the processes' losses. Here each process draws the
    same batch as one alone would, computes its share of the one loss, and gradients are added up.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """Leave the model as it is: nothing has to be wrapped for gradients to be added up."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        if processes.size() > 1:
            self.accelerator.prepare_model = lambda model, *_, **__: model

    def get_train_dataloader(self) -> Any:
        """Return the whole of every batch, to every process."""
        loader = super().get_train_dataloader()  # type: ignore[misc]
        if processes.size() > 1:
            dealt = loader.batch_sampler
            dealt.num_processes, dealt.process_index, dealt.even_batches = 1, 0, False
        return loader

    def training_step(self, *given: Any, **named: Any) -> Tensor:
        """Return a loss whose mean over processes, which is logged, is that of the batch."""
        part = super().training_step(*given, **named)  # type: ignore[misc]
        processes.add_gradients(self.model.parameters())  # type: ignore[attr-defined]
        return part * processes.size()


class Progress(ProgressCallback):
    """A bar with rate and time left that shows the loss beside it, not a line for every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the loss at the end of the bar."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


class Curves(TrainerCallback):
    """Sends what the trainer logs at each step to MLflow, buffered."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Pass on the numbers of one step."""
        if logs and "loss" in logs:
            tracking.curve(
                {k: v for k, v in logs.items() if isinstance(v, int | float)}, state.global_step
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Pass on the steps of before a kill that had not been sent when it came."""
        for row in state.log_history:
            self.on_log(args, replace(state, global_step=row["step"]), control, row)


class Sealing(TrainerCallback):
    """Seals every checkpoint once it is whole; the one before stays until then."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seal the last one."""
        if processes.rank() == 0:
            sealed.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


@contextmanager
def checkpoints(stage: str, *inputs: Any) -> Iterator[Path]:
    """Yield where a training with exactly these inputs keeps its checkpoints; removed on success.

    It lies under DVC_ROOT and outside every output, so that it survives a failed `dvc exp run
    --temp` and never enters the cache. Other inputs, other folder: a training never goes on from
    a checkpoint of another one. Equal inputs, as in two queued experiments that share a stage, take
    turns.

    Args:
        stage: name of the stage, for people.
        inputs: paths (their content counts) and values (their repr counts).
    """
    folder = _checkpoint_folder(stage, *inputs)
    guard.require_unchanged()
    lock = locks.take(folder.name, f"another process trains {stage} on the same inputs")
    try:
        yield folder
        processes.barrier()
        if processes.rank() == 0 and folder.is_dir():
            done = folder.with_name(f"{folder.name}.done")  # at once: no half of it is gone on from
            shutil.rmtree(done, ignore_errors=True)
            folder.rename(done)
            shutil.rmtree(done, ignore_errors=True)
    finally:
        lock.release()


def _checkpoint_folder(stage: str, *inputs: Any) -> Path:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return files.cache("checkpoints") / f"{stage}-{files.digest(*inputs, code.beneath(), gpu)[:16]}"


def fit(trainer: Trainer, checkpoints: Path) -> list[dict[str, float]]:
    """Train, going on from the last whole checkpoint if there is one.

    Returns:
        One row a step: step, loss, learning_rate, grad_norm and what the algorithm logs. Rows
        from before a kill are among them, restored with the checkpoint.
    """
    last = processes.from_first(lambda: last_whole(checkpoints))
    processes.copy_first(trainer.model.parameters())
    tracking.go_on_from(checkpoints)
    tracking.watch()
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    trainer.add_callback(Sealing)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return [
        {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        for row in trainer.state.log_history
        if "loss" in row
    ]


def last_whole(checkpoints: Path) -> Path | None:
    """Return the last checkpoint that is whole, and remove those after it, which are not."""
    found = {int(one.name.split("-")[1]): one for one in checkpoints.glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        if sealed.is_whole(found[step]):
            return found[step]
        shutil.rmtree(found[step])
    return None


def write_curves(path: Path, rows: Sequence[dict[str, float]], columns: Sequence[str]) -> None:
    """Write curves as CSV, six significant digits, one row a step; nan where a row has no value."""
    lines = [",".join(columns)]
    lines += [",".join(f"{row.get(key, math.nan):.6g}" for key in columns) for row in rows]
    files.write_text(path, "\n".join(lines) + "\n")
