"""transformers' Trainer on prompt groups with the Bradley-Terry loss.

Shape suffixes: B = unique sequences of the batch, P = pairs.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from stages.lib import losses, models, training
from stages.lib.groups import Batch, Group, collate, collate_share
from stages.lib.lora import ScorerTraining, require_size
from stages.lib.models import LanguageModel
from stages.lib.reward_model import Head, TrainableScorer, last_states_of, read_head
from stages.lib.runtime import processes
from stages.lib.training import Shared


def probe(lm: LanguageModel, head: Head, groups: list[Group], *, l2: float) -> None:
    """Fit the head alone to the frozen base's states, before any adapter moves them.

    Linear probing, then fine-tuning (Kumar et al. 2022, arXiv:2202.10054). From a random direction
    an adapter finds no gradient worth following in the few hundred steps that a small set of pairs
    affords; from the best direction of the base it goes on at once.

        minimise  mean of preference_loss + l2 |w|^2

    which is convex, so that the result depends on the pairs alone.
    """
    batch = collate(groups)
    states_BD = torch.stack(
        processes.shared(
            batch.sequences,
            lambda some: [one.clone() for one in last_states_of(lm, some, label="probe")],
            cost=len,
        )
    )
    direction_D = best_direction(states_BD / head.scale, batch, l2=l2)
    with torch.no_grad():
        head.weight.copy_(direction_D[None])


def best_direction(states_BD: torch.Tensor, batch: Batch, *, l2: float) -> torch.Tensor:
    """Return the minimum of `probe`'s objective, weights of the states as they are given."""
    apart_PD = (states_BD[batch.chosen_P] - states_BD[batch.rejected_P]).double()
    weight_D = torch.zeros(apart_PD.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight_D], max_iter=500, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        solver.zero_grad()
        losses_P = losses.preference_loss(apart_PD @ weight_D, batch.p_chosen_P.double())
        value = (
            losses.weighted_mean(losses_P, batch.weight_P.double()) + l2 * weight_D.square().sum()
        )
        value.backward()
        return value

    solver.step(objective)
    return weight_D.detach().float()


def new_head(lm: LanguageModel, knobs: ScorerTraining, groups: list[Group], *, seed: int) -> Head:
    """Attach a new adapter, which changes nothing yet, and return a head probed on the base."""
    models.add_lora(lm, rank=knobs.lora_rank, alpha=knobs.lora_alpha, seed=seed)
    head = Head(lm.unembedding_VD.shape[1], seed=seed)
    probe(lm, head, groups, l2=knobs.probe_l2)
    return head.to(lm.device)


def pretrained_head(lm: LanguageModel, knobs: ScorerTraining, folder: Path) -> Head:
    """Attach a copy of a reward model's adapter to go on from, and return its head.

    Raises:
        Refusal: the folder holds no reward model, or an adapter of another size.
    """
    require_size(folder, knobs, kind="reward model")
    head = read_head(folder)
    models.continue_adapter(lm, folder)
    return head.to(lm.device)


def fit_scorer(
    lm: LanguageModel,
    head: Head,
    knobs: ScorerTraining,
    groups: list[Group],
    *,
    seed: int,
    checkpoints: Path,
) -> list[dict[str, float]]:
    """Train the adapter `default` of `lm` and the head; return one row of curves a step."""
    arguments = training.arguments(knobs, prompts=len(groups), seed=seed, checkpoints=checkpoints)
    trainer = PreferenceTrainer(
        model=TrainableScorer(lm, head),
        args=TrainingArguments(**arguments),
        train_dataset=groups,
        data_collator=lambda some: {"batch": collate_share(some)},
        callbacks=[training.Curves()],
    )
    rows = training.fit(trainer, checkpoints)
    lm.model.eval()
    head.requires_grad_(False)
    return rows


class PreferenceTrainer(Shared, Trainer):
    """Bradley-Terry with soft labels and weights, over whole prompts."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._seen: dict[str, list[float]] = defaultdict(list)

    def compute_loss(
        self, model: TrainableScorer, inputs: dict[str, Batch], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Return the weighted mean of -log sigmoid(score of chosen - score of rejected)."""
        batch = inputs["batch"]
        scores_B = model(batch.sequences)
        margins_P = scores_B[batch.chosen_P] - scores_B[batch.rejected_P]
        seen = {
            "accuracy": (margins_P > 0).float().mean().item(),
            "margin": margins_P.mean().item(),
        }
        for name, mean in processes.means(seen, batch.count).items():
            self._seen[name].append(mean)
        losses_P = losses.preference_loss(margins_P, batch.p_chosen_P.to(margins_P.device))
        weight_P = batch.weight_P.to(margins_P.device)
        return losses.weighted_mean(losses_P, weight_P, whole_weight=batch.whole_weight)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Add what `compute_loss` saw since the last call."""
        logs |= {key: sum(seen) / len(seen) for key, seen in self._seen.items()}
        self._seen.clear()
        super().log(logs, *rest)
