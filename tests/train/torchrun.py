"""`torchrun --nproc-per-node 2 tests/train/torchrun.py FOLDER`: what test_parallel.py compares with one process.

`two_processes` starts them by itself, without the imports that torchrun and each of its processes begin with.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist

from store.shards.reader import open_store
from tests.killed import Killed
from train import run
from train.checkpoint import identity
from train.config import Activation, TrainConfig
from train.loop import start, train
from train.parallel import Ranks, join
from train.writer import CheckpointWriter

NESTING = {
    "nested": {},
    "plain": {"prefix_sizes": "none"},
    "skip": {"skip": True},
    "random": {"random_prefixes": 3},
    "recipes": {
        "k_start": 3.0,
        "resample_every": 2,
        "dense_weight": 0.1,
        "prefix_weights": "2,1,1,1,3",
        "detach_prefixes": True,
        "step_gradients": True,
        "target_view": "fisher",
    },
    "sae": {"source_site": "mlp_out", "target_site": "mlp_out"},
    "fisher": {"target_view": "fisher", "skip": True},
}
BEGUN = [f"{activation}-nested" for activation in get_args(Activation)]
RECIPES = ["batchtopk-recipes", "jumprelu-recipes"]
KINDS = [*BEGUN, *RECIPES, "batchtopk-sae", "batchtopk-fisher"]
KINDS += [f"{activation}-{nesting}" for activation, nesting in product(("batchtopk", "gated"), ("plain", "skip", "random"))]
"""Nesting is decoded alike for all; gated alone decodes twice."""
STOPPED = {"rows-stopped": "jumprelu-nested", "latents-stopped": "jumprelu-nested"}
SAVED, STEPS, FEW = 10, 15, 8
CPU = torch.device("cpu")


def configs(folder: Path) -> dict[str, TrainConfig]:
    """By the run's folder, which begins with what processes share. `followed` has a ring."""
    base = TrainConfig(
        model="tiny",
        layer=1,
        store=folder / "store",
        d_sae=41,
        k=4,
        tokens=32 * STEPS,
        batch_rows=32,
        lr=5e-3,
        warmup_steps=5,
        checkpoint_every=SAVED,
        log_every=5,
        heldout_every=10,
        heldout_rows=100,
        dead_after=16,
        aux_k=1,
        device="cpu",
        check=False,
        target_view="raw",
    )
    found = {"rows-followed": replace(base, follow=True, store=folder / "ring", tokens=32 * 9), "latents-bad": base}
    names = {f"latents-{kind}": kind for kind in KINDS} | {f"rows-{kind}": kind for kind in [*BEGUN, *RECIPES]} | STOPPED
    for name, kind in names.items():
        activation, nesting = kind.split("-")
        found[name] = replace(base, activation=activation, **NESTING[nesting])
        if kind not in BEGUN:
            found[name] = replace(found[name], tokens=32 * FEW, heldout_every=FEW)
    shards = {name: name.startswith("latents") for name in found}
    return {name: replace(config, run=folder / name, shard_dictionary=shards[name]) for name, config in found.items()}


@contextmanager
def before_step(number: int, act: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Does something to the target of a step before it is taken."""
    real = run.train_step

    def acting(module, optimizer, source, target, lr, step):
        if step == number:
            act(target)
        return real(module, optimizer, source, target, lr, step)

    run.train_step = acting
    try:
        yield
    finally:
        run.train_step = real


def die(target: torch.Tensor) -> None:
    raise Killed


def poison(target: torch.Tensor) -> None:
    target[3, 2] = float("inf")


def press(target: torch.Tensor) -> None:
    """Ctrl-C, for one process alone."""
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGINT)


def begin(config: TrainConfig) -> None:
    """Leaves the checkpoint of a run that was killed."""
    with before_step(SAVED + 3, die), suppress(Killed):
        train(config)


def save_again(config: TrainConfig, ranks: Ranks, folder: Path) -> None:
    """Loads a run's checkpoint, saves it again, and the artefact that it makes, in another folder."""
    store = open_store(config.store_directory)
    loaded = start(config, store, CPU, identity(config, store, CPU), ranks)
    loaded.path = folder / "checkpoint.safetensors"
    transcoder = loaded._export("")
    with CheckpointWriter() as writer:
        loaded.save(writer)
    if ranks.rank == 0:
        transcoder.save(folder)


def main(folder: Path) -> None:
    """One of the two processes."""
    asked = configs(folder)
    ranks = join("cpu", shard_dictionary=True)
    said = []
    for kind in BEGUN:
        save_again(asked[f"latents-{kind}"], ranks, folder / f"again-{kind}")
    for name in STOPPED:
        with before_step(SAVED - 7, press):
            try:
                train(asked.pop(name))
            except KeyboardInterrupt:
                said.append(f"{name}: stopped")
    with before_step(SAVED - 4, poison):
        try:
            train(asked.pop("latents-bad"))
        except ValueError as error:
            said.append(f"latents-bad: {str(error).partition('(')[0]}")
    for one in asked.values():
        train(one)
    (folder / f"said-{ranks.rank}").write_text("\n".join(said))


def two_processes(folder: Path) -> None:
    """Both processes, as forks of this one with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    pids = []
    for rank in ("0", "1"):
        if (pid := os.fork()) == 0:
            os.environ |= meeting | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            main(folder)
            os._exit(0)
        pids.append(pid)
    endings = [os.waitpid(pid, 0)[1] for pid in pids]
    assert endings == [0, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
