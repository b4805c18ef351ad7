"""Costs of a training step, a checkpoint and a sweep, by rows, latents and what else they grow with."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from tests.bench.scale.tables import Costs, Table, cpu, peak
from tests.making import make_norm, make_recipe, make_rows
from train.checkpoint import save
from train.config import TrainConfig
from train.loop import train_together
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

BASE: dict[str, Any] = dict(width=256, rows=1024, d_sae=8192, k=32, prefixes=4)
"""A step of the bench; the tables vary one of them at a time."""
TIMES = 3
LR = 1e-3
SILENT = 2_000_000
"""Rows for which dead latents have not fired."""


def tables(small: bool) -> list[Table]:
    widths = [1024, 2048] if small else [4096, 16_384, 65_536]
    runs = [1, 2] if small else [1, 2, 8]
    with TemporaryDirectory() as name:
        folder = Path(name)
        varied: dict[str, tuple[str, list[int], dict[str, Any]]] = {
            "rows of a step": ("rows", [256, 1024, 4096], {}),
            "latents": ("d_sae", widths, {}),
            "active latents a row": ("k", [16, 64, 256], {}),
            "prefixes": ("prefixes", [1, 4, 16], {}),
            "width of the model": ("width", [144, 576, 2304], dict(d_sae=4096)),
            "dead latents of 32,768": ("dead", [1024, 4096, 16_384], dict(d_sae=32_768, rows=512)),
            "rows of a step, 8,192 latents dead": ("rows", [128, 512, 2048], dict(d_sae=16_384, dead=8192)),
            "latents, TopK": ("d_sae", widths, dict(activation="topk")),
        }
        if small:
            varied = {
                "rows of a step": ("rows", [128, 512], dict(d_sae=1024)),
                "dead latents": ("dead", [64, 256], dict(d_sae=1024, rows=128)),
            }
        found = [
            Table(name, sizes, of_steps(folder, option, sizes, fixed)) for name, (option, sizes, fixed) in varied.items()
        ]
        found.append(Table("latents", widths, of_states(folder, widths)))
        found.append(Table("runs of a sweep", runs, of_sweeps(folder, runs, 512 if small else 8192)))
        return found


def store_of(folder: Path, width: int) -> Store:
    """A small store of rows of this width."""
    place = folder / f"store-{width}"
    if not place.exists():
        recipe = make_recipe(shard_sequences=256)
        with StoreWriter(place, recipe, make_norm(width)) as writer:
            for number in range(2):
                writer.append(make_rows(number, recipe, width, width))
    return open_store(place)


class Step:
    """A module with its optimizer, and a batch."""

    def __init__(
        self,
        folder: Path,
        width: int,
        rows: int,
        d_sae: int,
        k: int,
        prefixes: int,
        dead: int = 0,
        activation: str = "batchtopk",
    ) -> None:
        store = store_of(folder, width)
        config = TrainConfig(
            model="tiny",
            layer=1,
            d_sae=d_sae,
            k=k,
            prefix_sizes=",".join(str(d_sae * (n + 1) // prefixes) for n in range(prefixes)) if prefixes > 1 else "none",
            activation=activation,  # type: ignore[arg-type]
            batch_rows=rows,
            tokens=10**9,
            lr=LR,
            dead_after=SILENT // 2,
            device="cpu",
        )
        self.module = TrainingTranscoder(config, store.manifest, store.norm, "float32")
        self.optimizer = make_optimizer(self.module, LR)
        self.dead = dead
        generator = torch.Generator().manual_seed(0)
        self.source, self.target = torch.randn(2, rows, width, generator=generator)

    @torch.no_grad()
    def take(self) -> None:
        """One step, in which the first latents are dead: nothing can wake them."""
        if self.dead:
            self.module.b_enc[: self.dead] = -1e3
            self.module.tokens_since_fired[: self.dead] = SILENT
        train_step(self.module, self.optimizer, self.source, self.target, LR)


def of_steps(folder: Path, option: str, sizes: Sequence[int], fixed: dict[str, Any]) -> Costs:
    """CPU seconds of a step, after one to warm up."""
    found = Costs()
    for size in sizes:
        step = Step(folder, **(BASE | fixed | {option: size}))
        step.take()
        found.note("a step, CPU s", cpu(step.take, TIMES))
    return found


def of_states(folder: Path, widths: Sequence[int]) -> Costs:
    """Memory of a step with its weights, and a checkpoint of it."""
    found = Costs()
    for d_sae in widths:
        with peak() as most:
            step = Step(folder, **(BASE | dict(d_sae=d_sae, rows=512)))
            step.take()
            step.take()
        found.note("weights, Adam and a step, peak MB", most[0])
        path = folder / "checkpoint.safetensors"

        def saved(step: Step = step, path: Path = path) -> None:
            save(path, step.module, step.optimizer, 1, {})

        found.note("a checkpoint, CPU s", cpu(saved, TIMES))
        with peak() as most:
            saved()
        found.note("a checkpoint, peak MB above that", most[0])
        found.note("a checkpoint, MB of its file", path.stat().st_size / 1e6)
        del step, saved
        gc.collect()
    return found


def of_sweeps(folder: Path, sizes: Sequence[int], d_sae: int) -> Costs:
    """Memory and time of runs that are trained from one pass."""
    store = store_of(folder, BASE["width"])
    found = Costs()
    for size in sizes:
        configs = [
            TrainConfig(
                model="tiny",
                layer=1,
                store=store.directory,
                run=folder / f"sweep-{size}-{number}",
                d_sae=d_sae,
                k=number + 8,
                batch_rows=256,
                tokens=256 * 4,
                warmup_steps=1,
                lr=LR,
                device="cpu",
                heldout_every=0,
            )
            for number in range(size)
        ]
        with peak() as most:
            seconds = cpu(act_of(configs))
        found.note("trained together, peak MB", most[0])
        found.note("trained together, CPU s", seconds)
        gc.collect()
    return found


def act_of(configs: list[TrainConfig]) -> Callable[[], object]:
    return lambda: train_together(configs)
