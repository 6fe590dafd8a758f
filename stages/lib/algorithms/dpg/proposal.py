"""The policy becomes the proposal once it is nearer to the target than what was drawn from.

KL-adaptive DPG (Khalifa et al. 2021, arXiv:2012.11635, algorithm 1): importance weights of a
proposal far from the target rest on few completions; those of a nearer one on more.
"""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback

from stages.lib import drawing, graded, graded_groups, models, reward_model
from stages.lib.algorithms.task import Task
from stages.lib.graded import WHOLE, Graded
from stages.lib.graded_groups import Batch
from stages.lib.graded_trainer import GradedTrainer, logps
from stages.lib.order import by_hash
from stages.lib.runtime import files
from stages.lib.sampling import Request

if TYPE_CHECKING:
    from stages.lib.algorithms.dpg import Dpg


class Proposal(TrainerCallback):
    """Watches the distance of policy and proposal from the target, and draws from the policy."""

    def __init__(self, trainer: GradedTrainer, policy: "Dpg", task: Task, moves: list[int]) -> None:
        """Take what the trainer learns from as drawn from the first proposal.

        Args:
            trainer: whose completions are replaced.
            policy: the entry; its `adapt` is set.
            task: `data` is the reward model, `prompts` the graded completions.
            moves: filled with the steps after which the policy became the proposal.
        """
        assert policy.adapt is not None
        self._trainer, self._policy, self._adapt, self._moves = trainer, policy, policy.adapt, moves
        self._lm, self._seed = trainer.lm, task.seed
        self._scorer = reward_model.load(self._lm, task.data, name="reward")
        rows = [
            row
            for row in files.read_lines(task.prompts / graded.FILE, Graded)
            if row.role == "align"
        ]
        first = [next(own) for _, own in groupby(rows, key=lambda row: row.prompt_id)]
        self._asked = [graded.prompt_of(row) for row in first]
        self._longest = max(len(row.ids) for row in rows)
        self._folder = Path(trainer.args.output_dir) / "proposals"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the last proposal of before a kill."""
        files_by_step = {int(file.stem): file for file in self._folder.glob("*.jsonl")}
        self._moves[:] = sorted(step for step in files_by_step if step <= state.global_step)
        if self._moves:
            self._take(files.read_lines(files_by_step[self._moves[-1]], Graded))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare, where it is time, and move."""
        step = state.global_step
        if step % self._adapt.every or step >= state.max_steps or self._nearness() <= 0:
            return
        rows = self._drawn(step)
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_lines(self._folder / f"{step}.jsonl", rows)
        self._take(rows)
        self._moves.append(step)

    def _nearness(self) -> float:
        """Return KL(target || proposal) - KL(target || policy), of some prompts, in nats."""
        groups = sorted(self._trainer.groups, key=lambda g: by_hash(g.prompt_id))
        some = groups[: self._adapt.prompts]
        return float(
            nearness(
                logps(self._lm, some, label="proposal"),
                graded_groups.collate(some),
                temperature=self._policy.temperature,
            )
        )

    def _drawn(self, step: int) -> list[Graded]:
        """Return graded completions of the policy as it is now, as many as there were."""
        lm = self._lm
        lm.model.eval()
        own = {g.prompt_id: g.sequences for g in self._trainer.groups}

        requests = [Request(p.id, own[p.id][0].prompt, len(own[p.id])) for p in self._asked]
        with models.training_precision(lm):
            drawn = drawing.answers(
                lm, requests, WHOLE, max_tokens=self._longest, seed=self._seed + step,
                batch_tokens=self._adapt.batch_tokens, label="draw from the policy",
            )  # fmt: skip
        return graded.grade(
            lm, self._asked, drawn, self._scorer, proposal="default", name=f"step-{step}",
            batch_tokens=self._adapt.batch_tokens,
        )  # fmt: skip

    def _take(self, rows: list[Graded]) -> None:
        self._trainer.groups = graded_groups.groups(self._lm, rows)


def nearness(logps_GN: Tensor, batch: Batch, *, temperature: float) -> Tensor:
    """Return KL(target || proposal) - KL(target || policy) in nats, a mean over prompts.

        E_target[ log pi - log q' ]    by self-normalised importance weights of q'

    Above 0 the policy is the nearer one; Z, which both would need, cancels.
    """
    target_GN = (batch.log_target(temperature) - batch.proposal_GN).softmax(1)
    return (target_GN * (logps_GN - batch.proposal_GN)).sum(1).mean()
