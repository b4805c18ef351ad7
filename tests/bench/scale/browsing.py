"""Costs of collecting features and of the browser's pages, by latents and by runs."""

import json
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from starlette.testclient import TestClient
from torch import Tensor

from evaluate.browse.folder import _known
from evaluate.browse.server import make_app
from evaluate.features.config import FeaturesConfig
from evaluate.features.neighbours import by_decoder
from evaluate.features.samples import collect_samples
from store.layout import EVALUATION, FEATURES, METRICS, SAMPLES, TRAIN_CONFIG, TRAINING_LOG
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from tests.bench.browse import repeat
from tests.bench.scale.evaluation import dictionaries
from tests.bench.scale.tables import Costs, Table, cpu, peak
from tests.evaluate.report.making import measured
from tests.making import hash_of, make_norm, make_recipe, make_rows, make_tokenizer

TIMES = 3
ALL_PAIRS = 2.2
"""The largest exponent of what compares every latent with every other: nearest neighbours are exact."""


def tables(small: bool) -> list[Table]:
    widths = [256, 1024] if small else [4096, 16_384, 65_536]
    runs = [5, 20] if small else [25, 100, 400]
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_tokenizer().save_pretrained(folder / "tokenizer")
        store = store_of(folder)
        collected, all_pairs = of_features(folder, store, widths)
        found = [Table("latents", widths, collected)]
        found.append(Table("latents, compared in pairs", widths, all_pairs, ALL_PAIRS))
        found.append(Table("latents of a browsed run", widths, of_pages(folder, widths)))
        found.append(Table("browsed runs", runs, of_runs(folder, store, runs)))
        return found


def store_of(folder: Path) -> Store:
    """Two shards, 8,192 held-out rows."""
    recipe = make_recipe(
        context=128,
        shard_sequences=64,
        heldout_every=2,
        excluded_tokens=(),
        tokenizer_hash=hash_of(folder / "tokenizer"),
    )
    with StoreWriter(folder / "store", recipe, make_norm()) as writer:
        for number in range(2):
            writer.append(make_rows(number, recipe))
    return open_store(folder / "store")


def of_features(folder: Path, store: Store, widths: list[int]) -> tuple[Costs, Costs]:
    """Features of 8,192 rows, without the tokens that they promote; and what compares all pairs of latents."""
    found, all_pairs = Costs(), Costs()
    for width in widths:
        run = folder / f"run-{width}"
        dictionaries(store, width, 1)[0].save(run)
        config = FeaturesConfig(
            store=store.directory,
            run=run,
            tokenizer=folder / "tokenizer",
            device="cpu",
            json=False,
            promoted_tokens=False,
        )
        spent = []

        def timed(W_dec: Tensor, n: int, spent: list[float] = spent) -> tuple:
            start = time.process_time()
            near = by_decoder(W_dec, n)
            spent.append(time.process_time() - start)
            return near

        with peak() as most, mock.patch("evaluate.features.samples.by_decoder", timed):
            seconds = cpu(lambda config=config: collect_samples(config))
        found.note("features collected, but for the nearest decoder rows, CPU s", seconds - spent[0])
        found.note("features collected, peak MB", most[0])
        all_pairs.note("nearest decoder rows of all latents, CPU s", spent[0])
        found.note("features collected, MB of the file", (run / SAMPLES / FEATURES).stat().st_size / 1e6)
    return found, all_pairs


def of_pages(folder: Path, widths: list[int]) -> Costs:
    """Pages of a run with so many latents: the narrowest one's features, again and again."""
    found = Costs()
    (folder / f"run-{widths[0]}" / TRAIN_CONFIG).write_text("{}")
    for width in widths:
        results = folder / f"browsed-{width}"
        repeat(folder / f"run-{widths[0]}", results / "run", width)
        client = TestClient(make_app(results), base_url="http://127.0.0.1")
        pages = {
            "page of a feature": f"/feature/run/{width // 3}",
            "table": "/features/run",
            "table, sorted": "/features/run?sort=density&desc=1",
            "search of the text": "/features/run?q=abd",
            "coarse to fine": "/tree/run",
        }
        for name, url in pages.items():
            found.note(f"{name}, CPU s", cpu(lambda url=url, client=client: client.get(url).raise_for_status(), TIMES))
        parquet = results / "run" / SAMPLES / FEATURES
        firsts: dict[str, list[float]] = {"first page of a feature": [], "first search of the text": []}
        for number in range(TIMES):
            os.utime(parquet, (number, number))  # a file that has changed is opened anew
            for name, url in (
                ("first page of a feature", "/feature/run/0"),
                ("first search of the text", "/features/run?q=abc"),
            ):
                firsts[name].append(cpu(lambda url=url, client=client: client.get(url).raise_for_status()))
        for name, seconds in firsts.items():
            found.note(f"{name}, CPU s", min(seconds))
    return found


def of_runs(folder: Path, store: Store, sizes: list[int]) -> Costs:
    """The list of so many measured runs."""
    found = Costs()
    log = "".join(json.dumps({"tokens": n * 100, "fvu": 1 / n}) + "\n" for n in range(1, 200))
    one = folder / "one"
    dictionaries(store, 64, 1)[0].save(one)
    (one / TRAIN_CONFIG).write_text("{}")
    (one / TRAINING_LOG).write_text(log)
    (one / EVALUATION).mkdir()
    (one / EVALUATION / METRICS).write_text(json.dumps(measured("one", 0.25, store)))
    for size in sizes:
        results = folder / f"list-{size}"
        for number in range(size):
            shutil.copytree(one, results / f"run-{number}")
        client = TestClient(make_app(results), base_url="http://127.0.0.1")
        pages = []

        def listed(client: TestClient = client, pages: list = pages) -> None:
            pages.append(client.get("/").raise_for_status())

        found.note("first list, CPU s", min(cpu(lambda listed=listed: (_known.clear(), listed())) for _ in range(TIMES)))
        found.note("list, CPU s", cpu(listed, TIMES))
        found.note("list, KB", len(pages[0].content) / 1e3)
    return found
