"""`python -m tests.bench.features STORE RUN`: rows/s of collecting features against the evaluation's, interleaved.

`--d-sae 65536` runs the whole command instead, on a random dictionary of that width that fires as often as the run's, and
says what memory it took at most.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from evaluate.features.collect import collect
from evaluate.features.config import FeaturesConfig
from evaluate.features.samples import collect_samples
from evaluate.features.summary import read_summary
from evaluate.metrics.results import evaluate
from store.layout import FEATURES
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder


def widened(run: Transcoder, store: Store, d_sae: int) -> Transcoder:
    """Random latents with the threshold at which as many fire in each row as of the run's, on the first rows."""
    generator = torch.Generator().manual_seed(0)
    shard = store.manifest.shards[0]
    x = run.view(store.array(shard, run.config.source_site)[:256], store.norm)
    W_enc = torch.randn(run.config.d_in, d_sae, generator=generator)
    active = int((run.encode(x) > 0).sum())
    threshold = (x @ W_enc).flatten().topk(active).values[-1]
    config = run.config.model_copy(update={"d_sae": d_sae, "prefix_sizes": (d_sae // 8, d_sae // 4, d_sae // 2, d_sae)})
    W_dec = torch.randn(d_sae, run.config.d_out, generator=generator)
    return Transcoder(config, W_enc, torch.zeros(d_sae), W_dec, run.b_dec, threshold.expand(d_sae).contiguous())


def whole_command(store: Store, run: Transcoder, d_sae: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        widened(run, store, d_sae).save(Path(folder))
        start = time.perf_counter()
        samples = collect_samples(FeaturesConfig(store=store.directory, run=Path(folder), device="cpu", json=False))
        seconds, size = time.perf_counter() - start, (samples / FEATURES).stat().st_size
        summary = read_summary(samples)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    print(f"d_sae {d_sae:,}: {summary.rows:,} rows at L0 {summary.l0_mean:.1f} in {seconds:.0f} s")
    print(f"{summary.features_with_samples:,} features with samples, {size / 2**20:.0f} MiB; peak memory {peak:.2f} GiB")


def beside_evaluation(store: Store, transcoder: Transcoder, rounds: int) -> None:
    rows, times = store.manifest.n_rows("heldout"), {"evaluate": [], "features": []}
    with tempfile.TemporaryDirectory() as folder:
        config = FeaturesConfig(run=Path(folder), device="cpu")
        for number in range(rounds):
            start = time.perf_counter()
            evaluate([transcoder], store, "heldout", config.batch_rows, torch.device("cpu"))
            middle = time.perf_counter()
            collect(transcoder, store, config, f"round {number}", 1 << 18)  # its own key: nothing is continued
            times["evaluate"].append(middle - start)
            times["features"].append(time.perf_counter() - middle)
    ratios = [e / f for e, f in zip(times["evaluate"], times["features"], strict=True)]
    for name, seconds in times.items():
        print(f"{name:10s} {rows / statistics.median(seconds):10,.0f} rows/s")
    print(f"features at {statistics.median(ratios):.2f} of the evaluation's rows/s, d_sae {transcoder.config.d_sae}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--d-sae", type=int)
    options = parser.parse_args()
    store, transcoder = open_store(options.store), Transcoder.load(options.run)
    if options.d_sae:
        whole_command(store, transcoder, options.d_sae)
    else:
        beside_evaluation(store, transcoder, options.rounds)


if __name__ == "__main__":
    main()
