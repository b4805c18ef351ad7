"""Metric and lens of finished stores: estimated where they are lacking, and recorded in each manifest."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack

import torch

from harvest.metric.estimate import SEQUENCES, Estimate
from harvest.model.language_model import LanguageModel
from harvest.model.loading import model_that_made
from harvest.store_config import MetricConfig
from store.devices import of_kind, resolve_device
from store.disk.lock import WRITER_LOCK, lock_of
from store.disk.suggest import command_line
from store.lens.site_lens import damage_of_lens, save_lens
from store.shards.manifest import AGREEMENT, load_manifest, save_manifest
from store.shards.metric import check_sums, damage_of_metric, save_metric
from store.shards.pair import check_same_rows
from store.shards.reader import Store, open_store

log = logging.getLogger(__name__)


def add_metric(config: MetricConfig) -> str:
    """A line for every store. Refused where they were not harvested together, Busy where another process writes one."""
    opened = [open_store(directory) for directory in config.directories.values()]
    stores = {store.manifest.recipe.layer: store for store in opened}
    first = stores[min(stores)]
    for store in stores.values():
        check_same_rows(first, store, "train")
    metric = config.force or any(map(lacks_metric, stores.values()))
    lens = config.force or any(map(lacks_lens, stores.values()))
    if not (metric or lens):
        log.info("metric and lens are there already; --force estimates them again")
    else:
        device = resolve_device(config.device)
        with ExitStack() as stack:
            for store in stores.values():
                stack.callback(lock_of(store.directory / WRITER_LOCK).release)
            log.info("loading the language model")
            highest = stores[max(stores)].manifest.recipe
            model = model_that_made(highest, device, "train with --target-view raw")
            estimate(stores, model, config.sequences, config.seed, metric=metric, lens=lens)
    return "\n".join(described(open_store(store.directory)) for store in stores.values())


def lacks_metric(store: Store) -> bool:
    """Whether a store has no sound metric."""
    return store.manifest.metric is None or damage_of_metric(store.directory, store.manifest) is not None


def lacks_lens(store: Store) -> bool:
    """Whether a store has no sound lens."""
    return store.manifest.lens is None or damage_of_lens(store.directory, store.manifest) is not None


@torch.no_grad()
def estimate(
    stores: Mapping[int, Store],
    model: LanguageModel,
    sequences: int | None,
    seed: int = 0,
    *,
    metric: bool = True,
    lens: bool = True,
) -> None:
    """Estimates metric and lens of stores of one harvest, locked by the caller, and records them in their manifests.

    Args:
        stores: by layer.
        model: that made them.
        sequences: as many, or all that there are; SEQUENCES where None.
        seed: of all that is drawn.
        metric, lens: whether each is estimated; the other is left as it is.
    """
    wanted = sequences or of_kind(SEQUENCES, model.device)
    under_way = Estimate(model, stores, wanted, seed, metric, lens)
    n = len(under_way.drawn.tokens)
    if n < wanted:
        log.warning("the store has %d training sequences, and the metric is estimated from these", n)
    found = under_way.run()
    for layer, store in stores.items():
        metrics = {site: sums for (of_layer, site), sums in found.metric.items() if of_layer == layer}
        if metrics:
            manifest = load_manifest(store.directory)  # an open store lacks the shards that a ring has deleted
            save_manifest(store.directory, save_metric(store.directory, manifest, metrics, n, seed))
    for layer, store in stores.items():  # afterwards, so that a lens that is refused takes no metric with it
        lenses = {site: sums for (of_layer, site), sums in found.lens.items() if of_layer == layer}
        for site, sums in lenses.items():
            check_sums(sums, sums.products.shape[-1], f"the lens of {site} at layer {layer}")
        if lenses:
            manifest = load_manifest(store.directory)
            save_manifest(store.directory, save_lens(store.directory, manifest, lenses, n, under_way.passes, seed))
    under_way.forget()
    worst = min((sums.agreement for sums in found.metric.values()), default=1.0)
    if worst < AGREEMENT:
        layers = ",".join(map(str, stores))
        first = stores[min(stores)].directory
        place = first if len(stores) == 1 else first.parent
        again = command_line("harvest", "metric", layer=layers, store=place, force=True, sequences=4 * n)
        log.warning(
            "the metric is rough: its halves agree to a cosine of %.2f, below %.1f; more sequences make it better: %s%s",
            worst,
            AGREEMENT,
            "harvest more tokens, and then " if n < wanted else "",
            again,
        )


def described(store: Store) -> str:
    """Metric and lens of a store, for people: a line each."""
    lines = []
    for name, info in (("metric", store.manifest.metric), ("lens", store.manifest.lens)):
        assert info is not None
        drawn = f"{info.sequences:,} sequences, {info.rows:,} rows"
        lines.append(f"{store.directory}: {name} from {drawn}; its halves agree to {info.agreement_in_words}")
    return "\n".join(lines)
