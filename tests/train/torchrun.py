"""`torchrun --nproc-per-node N tests/train/torchrun.py FOLDER`: what test_parallel.py compares with one process.

Two processes share rows, or latents; four are a grid, two of which share a dictionary. Four go first: they save again the
checkpoints that two go on from. `processes` starts them by itself, without the imports that torchrun and each of its
processes begin with.
"""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist

from store.shards.reader import open_store
from tests.child import fork_ranks
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
        "k_start": 1.5,
        "resample_every": 1,
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
STOPPED = {f"{shared}-stopped": "jumprelu-nested" for shared in ("rows", "zero", "latents", "grid")}
RESUMED = {"grid-resumed": "batchtopk-nested", "zero-resumed": "gated-nested"}
"""Of runs that several processes begin where one was killed."""
OPTIONS: dict[str, dict[str, Any]] = {
    "rows": {},
    "latents": {"shard_dictionary": True},
    "zero": {"shard_optimizer": True},
    "grid": {"shard_dictionary": 2},
    "both": {"shard_dictionary": 2, "shard_optimizer": True},
}
"""By the first word of a run's name: what its processes share."""
FOUR = ("grid", "both")
"""What four processes share; the others are two."""
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
    names = {f"latents-{kind}": kind for kind in KINDS} | STOPPED | RESUMED
    names |= {f"{shared}-{kind}": kind for shared in ("rows", "grid") for kind in [*BEGUN, *RECIPES]}
    names |= {f"{shared}-{kind}": kind for shared in ("zero", "both") for kind in RECIPES}
    for name, kind in names.items():
        activation, nesting = kind.split("-")
        found[name] = replace(base, activation=activation, **NESTING[nesting])
        if kind not in BEGUN:
            found[name] = replace(found[name], tokens=32 * FEW, heldout_every=FEW)
    return {name: replace(one, run=folder / name, **OPTIONS[name.split("-")[0]]) for name, one in found.items()}


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
    """One of two processes, or of four."""
    world = int(os.environ["WORLD_SIZE"])
    asked = {name: one for name, one in configs(folder).items() if name.startswith(FOUR) == (world == 4)}
    ranks = join("cpu", shard_dictionary=2)
    said = []
    for kind in BEGUN:
        one = replace(configs(folder)[f"latents-{kind}"], shard_optimizer=world == 4)
        save_again(one, ranks, folder / f"again-{world}-{kind}")
    for name in [name for name in STOPPED if name in asked]:
        with before_step(SAVED - 7, press):
            try:
                train(asked.pop(name))
            except KeyboardInterrupt:
                said.append(f"{name}: stopped")
    if "latents-bad" in asked:
        with before_step(SAVED - 4, poison):
            try:
                train(asked.pop("latents-bad"))
            except ValueError as error:
                said.append(f"latents-bad: {str(error).partition('(')[0]}")
    for one in asked.values():
        train(one)
    (folder / f"said-{world}-{ranks.rank}").write_text("\n".join(said))


def begin_on_another_layout(asked: dict[str, TrainConfig]) -> None:
    """Puts checkpoints of `begin` where several processes go on."""
    for name, kind in RESUMED.items():
        shutil.copytree(asked[f"latents-{kind}"].run_directory, asked[name].run_directory)


def processes(folder: Path, world: int) -> None:
    """All of them, as forks of this one with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    meeting |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}

    def child(rank: int) -> None:
        os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        main(folder)

    fork_ranks(world, child)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
