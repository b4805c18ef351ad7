"""`torchrun --nproc-per-node 2 tests/train/torchrun.py FOLDER`: what test_parallel.py compares with one process."""

import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from train import run
from train.config import TrainConfig
from train.loop import train

KINDS = ("batchtopk", "topk", "relu", "jumprelu", "gated")
BEGUN, STOPPED = ("begun", "begun_sharded"), ("stopped", "stopped_sharded")
STOP = 15


class Stopped(BaseException):
    pass


def configs(folder: Path) -> dict[str, TrainConfig]:
    """By the run's folder. Those STOPPED are left at their checkpoint, those BEGUN begun by one process; `followed` has a
    ring."""
    base = TrainConfig(
        model="tiny", layer=1, store=folder / "store", d_sae=40, k=4, tokens=32 * 30, batch_rows=32, lr=5e-3,
        warmup_steps=5, checkpoint_every=10, log_every=5, heldout_every=20, heldout_rows=100, dead_after=200, aux_k=4,
        device="cpu",
    )  # fmt: skip
    kinds = {kind: replace(base, activation=kind) for kind in KINDS} | {"begun": base, "stopped": base}
    kinds |= {f"{name}_sharded": replace(kinds[name], shard_optimizer=True) for name in ("jumprelu", "begun", "stopped")}
    kinds["followed"] = replace(base, follow=True, store=folder / "ring", tokens=32 * 9)
    return {name: replace(config, run=folder / name) for name, config in kinds.items()}


def train_until(config: TrainConfig, last: int) -> None:
    """Dies after a step, as if killed: the checkpoint before it is what is left."""
    whole = run.train_step

    def step_or_die(*args):
        if args[-1] >= last:
            raise Stopped
        return whole(*args)

    run.train_step = step_or_die
    try:
        train(config)
    except Stopped:
        pass
    finally:
        run.train_step = whole


if __name__ == "__main__":
    asked = configs(Path(sys.argv[1]))
    for name in STOPPED:
        train_until(asked.pop(name), STOP)
    for one in asked.values():
        train(one)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}")
