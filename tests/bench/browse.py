"""`python -m tests.bench.browse RUN`: how long pages take when a dictionary has 65,536 features.

The run's own features are repeated until there are that many; pages come through the whole server, without a network.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from evaluate.browse.server import make_app
from evaluate.features.write import CHUNK
from store.layout import COLLECTION_SUMMARY, CONFIG, FEATURES

SAMPLES = "activation_samples"


def repeat(run: Path, folder: Path, features: int) -> None:
    """A run's folder with its features repeated, as `features` would have written them."""
    (folder / SAMPLES).mkdir(parents=True)
    shutil.copy(run / CONFIG, folder / CONFIG)
    shutil.copy(run / "train_config.json", folder)
    shutil.copy(run / SAMPLES / COLLECTION_SUMMARY, folder / SAMPLES / COLLECTION_SUMMARY)
    source = pq.ParquetFile(run / SAMPLES / FEATURES)
    with pq.ParquetWriter(folder / SAMPLES / FEATURES, source.schema_arrow, compression="zstd") as writer:
        for start in range(0, features, CHUNK):
            chunk = source.read_row_group(start // CHUNK % source.num_row_groups)
            numbers = pa.array(range(start, start + len(chunk)), pa.int32())
            writer.write_table(chunk.set_column(0, "feature", numbers))


def timed(client: TestClient, url: str) -> float:
    start = time.perf_counter()
    client.get(url).raise_for_status()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--features", type=int, default=65_536)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as results:
        repeat(options.run, Path(results) / "run", options.features)
        client = TestClient(make_app(Path(results)), base_url="http://127.0.0.1")
        draw = random.Random(0)
        pages = [timed(client, f"/feature/run/{draw.randrange(options.features)}") for _ in range(51)]
        urls = {
            "list of runs": "/",
            "table of features": "/features/run",
            "sorted by density": "/features/run?sort=density&desc=1",
            "text search": "/features/run?q=return",
            "the same again": "/features/run?q=return",
            "coarse to fine": "/tree/run",
        }
        for name, url in urls.items():
            print(f"{name:24s} {timed(client, url):8.0f} ms")
    print(f"{'first feature page':24s} {pages[0]:8.0f} ms (opens the file; `browse` does that when it starts)")
    print(f"{'other feature pages':24s} {statistics.median(pages[1:]):8.0f} ms median, {max(pages[1:]):.0f} ms worst of 50")


if __name__ == "__main__":
    main()
