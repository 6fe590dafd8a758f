"""One PPO training by all processes that torchrun started; see test_processes.py.

torchrun --standalone --nproc_per_node 2 tests/two_processes.py MODEL OUT
"""

import json
import sys
from pathlib import Path

import torch
from test_ppo import P, but
from tiny_online import LOOKS, Planted, asks

from stages.lib import models
from stages.lib.base import Base
from stages.lib.ppo.loop import Training, processes
from stages.lib.ppo.rollouts import Reference, Roles
from stages.lib.ppo.values import HeadValue

if __name__ == "__main__":
    model, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    lm = models.load(model, Base(quantisation="none", weights="rounded", dtype="float32"))
    models.add_lora(lm, rank=4, alpha=8, seed=0)
    roles = Roles(
        lm,
        Reference(lm, None),
        Planted(),
        Planted(),
        HeadValue(lm.unembedding_VD.shape[1], seed=0),
    )
    knobs = but(
        P, batch_prompts=4, minibatch_prompts=2, microbatch_prompts=1, whiten_rewards=True, kl__target=0.5
    )  # fmt: skip
    who = processes()
    run = Training(
        roles, knobs, asks(lm), asks(lm, LOOKS), seed=0, checkpoints=out / "ck", processes=who
    )
    done = run.run()
    torch.save(
        {k: p.detach() for k, p in (run.policy | run.value).items()}, out / f"weights-{who.rank}.pt"
    )
    (out / f"rows-{who.rank}.json").write_text(json.dumps(done.rows))
