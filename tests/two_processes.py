"""One PPO training by all processes that torchrun started; see test_processes.py.

torchrun --standalone --nproc_per_node 2 tests/two_processes.py MODEL OUT
"""

import json
import sys
from pathlib import Path

import torch
from test_ppo import P, but
from tiny_online import LOOKS, asks, fresh_roles

from stages.lib.base import Base
from stages.lib.ppo.loop import Training, processes

if __name__ == "__main__":
    model, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    roles = fresh_roles(model, Base(quantisation="none", weights="rounded", dtype="float32"))
    knobs = but(
        P, batch_prompts=4, minibatch_prompts=2, microbatch_prompts=1, whiten_rewards=True, kl__target=0.5
    )  # fmt: skip
    who = processes()
    run = Training(
        roles,
        knobs,
        asks(roles.lm),
        asks(roles.lm, LOOKS),
        seed=0,
        checkpoints=out / "ck",
        processes=who,
    )
    done = run.run()
    torch.save(
        {k: p.detach() for k, p in (run.policy | run.value).items()}, out / f"weights-{who.rank}.pt"
    )
    (out / f"rows-{who.rank}.json").write_text(json.dumps(done.rows))
