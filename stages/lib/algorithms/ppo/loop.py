"""The loop of proximal policy optimisation: roll out, update, look, decide whether to stop.

Random numbers depend on seed and step and on nothing that happened before, so that a run which was
killed goes on to the very weights of one that was not.

Shape suffixes: N = completion tokens of a part.
"""

import math
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from stages.lib import likelihood, models, online, training
from stages.lib.algorithms.ppo import advantages, control, rollouts, surrogates
from stages.lib.algorithms.ppo.control import Look, Rule, Watch
from stages.lib.algorithms.ppo.knobs import Ppo
from stages.lib.algorithms.ppo.rollouts import POLICY, Part, Roles, Rollout
from stages.lib.algorithms.ppo.values import active
from stages.lib.anchor import Anchor
from stages.lib.diversity import distinct
from stages.lib.keeper import Keeper
from stages.lib.online import Ask
from stages.lib.runtime import files, processes, sealed, tracking
from stages.lib.runtime.schema import Refusal


@dataclass(slots=True)
class Progress:
    """All that changes from step to step beside weights and moments; plain data."""

    step: int = 0
    beta: float = 0.0
    stopped_by: Rule | None = None
    watch: Watch = field(default_factory=Watch)
    rows: list[dict[str, float]] = field(default_factory=list)
    """Curves, one row a step."""
    looks: list[dict[str, float]] = field(default_factory=list)
    """Evaluations on validation prompts, each with the steps before it."""


class Training:
    """One PPO run on roles that share a base; several processes share every batch."""

    def __init__(
        self,
        roles: Roles,
        ppo: Ppo,
        asks: Sequence[Ask],
        held_out: Sequence[Ask],
        *,
        seed: int,
        checkpoints: Path,
        keeper: Keeper | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        """Prepare optimisers.

        Args:
            roles: who takes part.
            ppo: the knobs.
            asks: prompts to learn on; every pass over them is in another order.
            held_out: validation prompts, in order.
            seed: of order and of sampling.
            checkpoints: folder of the states that a killed run goes on from.
            keeper: of adapters on the way, where any are to be kept.
            anchor: what holds the policy to its reference on neutral text, where anything does.

        Raises:
            Refusal: the processes cannot divide an update evenly, or each holds a part of the base.
        """
        processes.require_even("minibatch_prompts", ppo.minibatch_prompts)
        if processes.divides_base():
            raise Refusal(
                "PPO answers in each process at its own pace, where FSDP2 needs all in step; "
                "launch with launch/ddp.yaml"
            )
        own = ppo.minibatch_prompts // processes.size()
        micro = {"microbatch_prompts": math.gcd(own, ppo.microbatch_prompts)}  # memory alone
        self.roles, self.ppo, self.asks = roles, ppo.model_copy(update=micro), asks
        self.held_out, self.seed, self.checkpoints = held_out, seed, checkpoints
        self.keeper, self.anchor = keeper, anchor
        self.policy = {k: p for k, p in roles.lm.model.named_parameters() if f".{POLICY}." in k}
        self.value = roles.value.trained()
        both = ((self.policy, ppo.learning_rate), (self.value, ppo.value.learning_rate))
        self.optimisers = [
            torch.optim.AdamW(own.values(), lr=rate, eps=ppo.adam_epsilon, weight_decay=0.0)
            for own, rate in both
        ]
        self.progress = Progress(beta=ppo.kl.beta)

    def run(self) -> Progress:
        """Train until a rule stops it; return what happened, with one row of curves a step."""
        self._resume()
        processes.copy_first([*self.policy.values(), *self.value.values()])
        tracking.go_on_from(self.checkpoints)
        tracking.watch()
        stop, now = self.ppo.stop, self.progress
        every = -(-stop.max_steps // training.CHECKPOINTS)
        with tqdm(total=stop.max_steps, initial=now.step, desc="ppo", unit="step") as bar:
            while now.stopped_by is None:
                if now.step % self.ppo.look.every == 0:
                    now.stopped_by = self._look()
                if now.stopped_by is None:
                    row = self._step()
                    bar.update()
                    bar.set_postfix_str(f"score {row['score']:.2f}, KL {row['kl_sequence']:.1f}")
                    if now.stopped_by is None:
                        self._keep()
                        if now.step % every == 0:
                            self._save()
        if now.looks[-1]["step"] != now.step:
            self._look()
        return now

    def _look(self) -> Rule | None:
        """Score answers to the validation prompts; return the rule that this fires."""
        roles = self.roles
        seen = online.look(
            roles.lm, self.held_out, rollouts.manner(self.ppo), roles.reward, roles.monitor,
            samples=self.ppo.look.samples, seed=self.seed,
        )  # fmt: skip
        tracking.table(seen.answers, f"completions/{self.progress.step:04}.json")
        tracking.curve(seen.figures, self.progress.step)
        self.progress.looks.append({"step": float(self.progress.step), **seen.figures})
        return self.progress.watch.evaluated(Look(seen.proxy, seen.monitor), self.ppo.stop)

    def _step(self) -> dict[str, float]:
        """Roll out, update the weights unless the rollout stops the run, and return its figures."""
        now, ppo = self.progress, self.ppo
        beta = now.beta
        rollout = rollouts.roll_out(
            self.roles, self._batch(now.step), ppo, processes.total, beta=beta,
            seed=self.seed + 1_000_003 * (now.step + 1),
        )  # fmt: skip
        row = self._figures(rollout, beta)
        now.step += 1
        rule = control.rolled_out(now.step, row["kl_sequence"], ppo.stop)
        if rule != "kl_ceiling":
            row |= self._update(rollout)
        count = ppo.batch_prompts * ppo.samples
        now.beta = control.adapted(beta, row["kl_sequence"], count, ppo.kl)
        now.stopped_by = rule
        now.rows.append({"step": float(now.step), **row})
        tracking.curve(row, now.step)
        return row

    def _batch(self, step: int) -> list[Ask]:
        """Return this process's prompts of a step; each pass over all of them has its own order."""
        size = self.ppo.batch_prompts
        chosen = [
            online.at_turn(self.asks, turn, seed=self.seed)
            for turn in range(step * size, (step + 1) * size)
        ]
        return list(processes.share(chosen))

    def _update(self, rollout: Rollout) -> dict[str, float]:
        """Pass over a rollout several times; return means over its updates."""
        ppo = self.ppo
        rate = 1 - (self.progress.step - 1) / ppo.stop.max_steps
        for optimiser, start in zip(
            self.optimisers, (ppo.learning_rate, ppo.value.learning_rate), strict=True
        ):
            optimiser.param_groups[0]["lr"] = start * rate
        seen: list[dict[str, float]] = []
        for epoch in range(ppo.epochs):
            for parts in self._minibatches(rollout, epoch):
                seen.append(self._update_once(parts, len(seen)))
        means = {key: statistics.fmean(one[key] for one in seen) for key in seen[0]}
        return means | {"learning_rate": ppo.learning_rate * rate}

    def _minibatches(self, rollout: Rollout, epoch: int) -> Iterator[list[Part]]:
        """Yield the parts of each update, in an order of their own at every pass."""
        size = self.ppo.minibatch_prompts // self.ppo.microbatch_prompts // processes.size()
        seed = self.seed + 104_729 * self.progress.step + epoch
        order = torch.randperm(
            len(rollout.parts) // size, generator=torch.Generator().manual_seed(seed)
        )
        for i in order.tolist():
            yield rollout.parts[i * size : (i + 1) * size]

    def _update_once(self, parts: Sequence[Part], number: int) -> dict[str, float]:
        """Move policy and value once; losses are means over all tokens of the minibatch.

        Args:
            parts: of this process.
            number: of this update among those of its rollout, from 0.
        """
        total = processes.total
        tokens = total(torch.tensor(sum(len(p.old_logp_N) for p in parts), dtype=torch.float64))
        sums = torch.zeros(5, dtype=torch.float64)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        for part in parts:
            sums += self._backward(part, float(tokens))
        pulled = self._pull(number)
        norms = []
        for own, optimiser in zip((self.policy, self.value), self.optimisers, strict=True):
            processes.add_gradients(own.values())
            norms.append(nn.utils.clip_grad_norm_(own.values(), self.ppo.max_grad_norm))
            optimiser.step()
        policy, value, clipped, k3, ratio = (total(sums) / tokens).tolist()
        return {
            "loss": policy + value,
            "policy_loss": policy,
            "value_loss": value,
            "clip_fraction": clipped,
            "kl_update": k3,
            "ratio": ratio,
            "grad_norm": float(norms[0]),
            **pulled,
        }

    def _pull(self, number: int) -> dict[str, float]:
        """Add the anchor's gradient to the policy's, after the policy's own."""
        if self.anchor is None:
            return {}
        updates = self.ppo.epochs * self.ppo.batch_prompts // self.ppo.minibatch_prompts
        turn = (self.progress.step - 1) * updates + number
        with active(self.roles.lm, POLICY):
            return {"anchor_kl": self.anchor.pull(turn)}

    def _backward(self, part: Part, tokens: float) -> Tensor:
        """Add one part's gradients; return sums over its tokens.

        The policy's backward pass ends before the value's adapter becomes the active one: peft
        would switch its gradient off without a word.
        """
        lm, ppo = self.roles.lm, self.ppo
        with active(lm, POLICY):
            with models.training_precision(lm):
                at = likelihood.positions(lm, part.sequences)
                if ppo.entropy:
                    logp_N, entropy_N = rollouts.logps_and_entropy(lm, at, ppo.temperature)
                    bonus_N = ppo.entropy * entropy_N
                else:
                    logp_N = rollouts.logps(lm, at, ppo.temperature)
                    bonus_N = torch.zeros_like(logp_N)
            found = surrogates.policy_loss(
                logp_N, part.old_logp_N, part.advantages_N, clip=ppo.clip
            )
            ((found.losses_N - bonus_N).sum() / tokens).backward()
        with self.roles.value.on():
            values_N = self.roles.value(part.sequences, part.states_ND)
            errors_N = surrogates.value_loss(
                values_N, part.old_values_N, part.returns_N, clip=ppo.value.clip
            )
            (errors_N.sum() / tokens).backward()
        seen = (found.losses_N, errors_N, found.clipped_N, found.k3_N, found.ratio_N)
        return torch.stack([one.detach().double().sum().cpu() for one in seen])

    def _figures(self, rollout: Rollout, beta: float) -> dict[str, float]:
        """Return what is watched of a rollout, over all processes."""
        total = processes.total
        k1_B = torch.cat([_row_sums(p.k1_N, p.mask_BT) for p in rollout.parts]).double().cpu()
        texts = [a.text for a in rollout.answers]
        groups = [texts[i : i + self.ppo.samples] for i in range(0, len(texts), self.ppo.samples)]
        diversity = [d for d in (distinct(some, 2) for some in groups) if not math.isnan(d)]
        sums = {
            "completions": float(len(k1_B)),
            "score": float(rollout.scores_B.double().sum()),
            "clipped": float(rollout.clipped_B.sum()),
            "kl": float(k1_B.sum()),
            "square": float(k1_B.square().sum()),
            "tokens": float(sum(len(d.ids) for d in rollout.draws)),
            "ended": float(sum(d.finish == "stop" for d in rollout.draws)),
            "entropy": sum(float(p.entropy_N.double().sum()) for p in rollout.parts),
            "dist2": sum(diversity),
            "groups": float(len(diversity)),  # with a bigram
        }
        added = total(torch.tensor(list(sums.values()), dtype=torch.float64))
        count = float(added[0])
        mean = dict(zip(sums, (added / count).tolist(), strict=True))
        spread = max(mean["square"] - mean["kl"] ** 2, 0)
        values_N = torch.cat([p.old_values_N for p in rollout.parts])
        returns_N = torch.cat([p.returns_N for p in rollout.parts])
        return {
            "score": mean["score"],
            "score_clipped": mean["clipped"],
            "kl_sequence": mean["kl"],
            "kl_sequence_se": math.sqrt(spread / max(count - 1, 1)),
            "kl_token": mean["kl"] / mean["tokens"],
            "entropy": mean["entropy"] / mean["tokens"],
            "explained_variance": advantages.explained_variance(values_N, returns_N, total),
            "length": mean["tokens"],
            "eos_rate": mean["ended"],
            "dist2": mean["dist2"] / mean["groups"] if mean["groups"] else math.nan,
            "beta": beta,
        }

    def _keep(self) -> None:
        if self.keeper is not None:
            self.keeper.after(self.progress.step, self.ppo.stop.max_steps)

    def _save(self) -> None:
        """Write a state that a run goes on from, whole; of those before, the last one stays."""
        if processes.rank():
            return
        name = f"checkpoint-{self.progress.step}"
        with files.whole_folder(self.checkpoints / name) as folder:
            for kind, own in (("policy", self.policy), ("value", self.value)):
                plain = {k: p.detach().cpu().contiguous() for k, p in own.items()}
                save_file(plain, folder / f"{kind}.safetensors")
            torch.save([o.state_dict() for o in self.optimisers], folder / "optimisers.pt")
            files.write_json(folder / "progress.json", asdict(self.progress))
            sealed.seal(folder)
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
        for other in found[:-2]:
            shutil.rmtree(other)

    def _resume(self) -> None:
        """Take up the last whole state, if there is one."""
        folder = processes.from_first(lambda: training.last_whole(self.checkpoints))
        if folder is None:
            return
        for kind, own in (("policy", self.policy), ("value", self.value)):
            saved = load_file(folder / f"{kind}.safetensors")
            with torch.no_grad():
                for key, parameter in own.items():
                    parameter.copy_(saved[key])
        moments = torch.load(folder / "optimisers.pt", weights_only=True)
        for optimiser, state in zip(self.optimisers, moments, strict=True):
            optimiser.load_state_dict(state)
        plain = files.read_json(folder / "progress.json")
        self.progress = Progress(**{**plain, "watch": Watch(**plain["watch"])})
        for row in (*self.progress.rows, *self.progress.looks):
            tracking.curve({k: v for k, v in row.items() if k != "step"}, int(row["step"]))


def _row_sums(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    rows_N = mask_BT.nonzero()[:, 0]
    sums_B = torch.zeros(len(mask_BT), dtype=values_N.dtype, device=values_N.device)
    return sums_B.index_add(0, rows_N, values_N)
