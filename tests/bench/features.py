"""`python -m tests.bench.features STORE RUN`: rows/s of collecting features against the evaluation's, interleaved."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from evaluate.config import FeaturesConfig
from evaluate.features import collect
from evaluate.metrics import evaluate
from store.reader import open_store
from store.transcoder import Transcoder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    store, transcoder = open_store(options.store), Transcoder.load(options.run)
    rows, times = store.manifest.n_rows("heldout"), {"evaluate": [], "features": []}
    with tempfile.TemporaryDirectory() as folder:
        config = FeaturesConfig(run=Path(folder), device="cpu")
        for _ in range(options.rounds):
            start = time.perf_counter()
            evaluate([transcoder], store, "heldout", config.batch_rows, torch.device("cpu"))
            middle = time.perf_counter()
            collect(transcoder, store, config, "bench", 1 << 18)
            times["evaluate"].append(middle - start)
            times["features"].append(time.perf_counter() - middle)
    ratios = [e / f for e, f in zip(times["evaluate"], times["features"], strict=True)]
    for name, seconds in times.items():
        print(f"{name:10s} {rows / statistics.median(seconds):10,.0f} rows/s")
    print(f"features at {statistics.median(ratios):.2f} of the evaluation's rows/s, d_sae {transcoder.config.d_sae}")


if __name__ == "__main__":
    main()
