"""Costs of measuring transcoders, by held-out rows, by their width and by how many there are."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.redundancy import redundancy_by_prefix
from evaluate.metrics.results import ByDocument, measurement_of
from store.counts import ceil_div
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from store.transcoders.transcoder import Transcoder
from tests.bench.scale.tables import Costs, Table, cpu, peak
from tests.making import make_norm, make_recipe, make_rows
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")
SHARD_ROWS = 64 * 128
ROWS = 1024
"""Of a batch."""
L0 = 32
TIMES = 2
D_OUT = 64
"""Width of the decoder rows that are compared."""


def tables(small: bool) -> list[Table]:
    rows = [8192, 16_384] if small else [32_768, 131_072, 524_288]
    widths = [256, 1024] if small else [16_384, 32_768, 65_536]  # the last two above what cosines compare with all
    subjects = [1, 4] if small else [1, 4, 16]
    found = {"held-out rows": (rows, Costs()), "latents": (widths, Costs()), "transcoders": (subjects, Costs())}
    with TemporaryDirectory() as name, mock.patch("store.loader.schedule.WINDOW_BYTES", 2**20):
        # windows as large as usual would hold all of so small a store
        store = store_of(Path(name), max(*rows, SHARD_ROWS))
        few = dictionaries(store, 256, 2)
        for n_rows in rows:
            measure(few, store, n_rows, found["held-out rows"][1])
        for width in widths:
            measure(dictionaries(store, width, 1), store, SHARD_ROWS, found["latents"][1])
            W_dec = torch.randn(width, D_OUT)
            found["latents"][1].note(
                "cosines of decoder rows, CPU s", cpu(lambda W=W_dec: redundancy_by_prefix(W, (len(W),)))
            )
        for n in subjects:
            measure(dictionaries(store, 1024, n), store, SHARD_ROWS, found["transcoders"][1])
    return [Table(heading, sizes, costs) for heading, (sizes, costs) in found.items()]


def store_of(folder: Path, rows: int) -> Store:
    """A store of which every second shard is held out, with at least so many held-out tokens."""
    recipe = make_recipe(context=128, shard_sequences=64, heldout_every=2, excluded_tokens=())
    with StoreWriter(folder / "store", recipe, make_norm()) as writer:
        for number in range(2 * ceil_div(rows, SHARD_ROWS)):
            writer.append(make_rows(number, recipe))
    return open_store(folder / "store")


def with_l0(transcoder: Transcoder, store: Store) -> Transcoder:
    """With the one threshold at which L0 latents of a row are active, on average."""
    shard = store.manifest.shards[0]
    x = transcoder.view(store.array(shard, "resid_mid")[:256].float(), store.norm)
    pre = torch.addmm(transcoder.b_enc, x, transcoder.W_enc)
    threshold = float(pre.flatten().topk(L0 * len(x)).values[-1])
    return replace(transcoder, threshold=torch.full_like(transcoder.b_enc, threshold))


def dictionaries(store: Store, d_sae: int, n: int) -> list[Transcoder]:
    """Random transcoders, no two with one encoder."""
    sizes = tuple(d_sae * part // 8 for part in (1, 2, 4, 6, 8))
    made = []
    for number in range(n):
        one = make_transcoder(d_in=12, d_out=10, d_sae=d_sae, prefix_sizes=sizes, name=str(number))
        made.append(with_l0(replace(one, W_enc=one.W_enc.roll(number, 0)), store))
    return made


@torch.no_grad()
def measure(transcoders: Sequence[Transcoder], store: Store, rows: int, found: Costs) -> None:
    """Sums over rows, and the measurements that they give."""
    measure_rows(transcoders, store, "heldout", ROWS, CPU, limit=ROWS, quiet=True)
    gc.collect()
    with peak() as most:
        results = []
        seconds = cpu(
            lambda: results.append(measure_rows(transcoders, store, "heldout", ROWS, CPU, limit=rows, quiet=True))
        )
    found.note("rows measured, CPU s", seconds)
    found.note("rows measured, peak MB", most[0])
    [(accumulators, facts)] = results

    def measurements() -> None:
        table = ByDocument.of(accumulators, facts)
        for index, each in enumerate(accumulators):
            measurement_of(each, facts, store, "heldout", table, index)

    with peak() as most:
        found.note("results, CPU s", cpu(measurements, TIMES))
    found.note("results, peak MB", most[0])
