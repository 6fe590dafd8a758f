"""Keeps the adapter at some steps of its training.

A killed training goes on from a checkpoint; what it kept before that lies beside the checkpoints,
and is handed over at the end.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.runtime import files, processes
from stages.lib.snapshots import FOLDER, kept

if TYPE_CHECKING:
    from transformers import Trainer

    from stages.lib.models import LanguageModel


def steps(total: int, count: int) -> list[int]:
    """Return up to `count` steps that part a training evenly, neither its start nor its end.

    Of 8 steps, 3 are [2, 4, 6]; of 2 steps there is but [1].
    """
    parts = (round(total * place / (count + 1)) for place in range(1, count + 1))
    return sorted(set(parts) - {0, total})


@dataclass(frozen=True, slots=True)
class Keeper:
    """Writes the adapter `default` at some steps of its training."""

    lm: "LanguageModel"
    checkpoints: Path
    """Folder that survives a kill."""
    count: int

    def after(self, step: int, total: int) -> None:
        """Keep the adapter if this is a step, of `total`, to keep it at."""
        from stages.lib import models

        if step in steps(total, self.count):
            with files.whole_folder(self.checkpoints / FOLDER / f"{step:06}") as folder:
                models.save_adapter(self.lm, folder)

    def watch(self, trainer: "Trainer") -> None:
        """Keep adapters of a training by transformers' loop."""
        from transformers import TrainerCallback

        class Keeping(TrainerCallback):
            def on_step_end(_, args: Any, state: Any, control: Any, **__: Any) -> None:
                self.after(state.global_step, state.max_steps)

        trainer.add_callback(Keeping())

    def hand_over(self, out: Path) -> None:
        """Copy what was kept to the policy's folder: a kill from here on must find it again."""
        if processes.rank():
            return
        for folder in kept(self.checkpoints).values():
            shutil.copytree(folder, out / FOLDER / folder.name)
