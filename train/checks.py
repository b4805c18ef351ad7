"""The preflight of training: opens the stores, refuses what cannot be trained, and locks the runs, in one visit."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from store.devices import resolve_device, why_float32
from store.disk.files import refuse_unwritable
from store.disk.lock import WriterLock
from store.errors import Refused
from store.layout import COMPARISON_FOLDER, EVALUATION, SAMPLES, TRAIN_LOCK, WEIGHTS
from store.parents import holds_store
from store.shards.manifest import load_manifest
from store.shards.pair import open_pair
from store.shards.reader import Store, check_shards
from store.shards.ring import load_ring
from store.transcoders.transcoder import Transcoder
from train.checkpoint import identity
from train.config import TrainConfig
from train.follow import Following
from train.log import wandb_mode
from train.parallel import Ranks, join
from train.run import already_trained

ONE_STREAM = (
    "model",
    "layer",
    "store_directory",
    "target_directory",
    "source_site",
    "target_site",
    "target_dtype",
    "input_view",
    "tokens",
    "batch_rows",
    "piece_bytes",
    "seed",
    "device",
    "checkpoint_every",
    "checkpoint_minutes",
    "follow",
    "shard_dictionary",
)
"""Options that dictionaries trained together must share."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What the preflight has opened and found. Lists and positions are those of its configs."""

    store: Store
    """With the target's store beside it, where that is another one."""
    following: Following | None
    ranks: Ranks
    device: torch.device
    identities: list[dict]
    """What must agree for two runs to be the same run."""
    finished: dict[int, Transcoder]
    """Runs that are trained already, by position."""
    left: list[int]
    """Positions of the runs to be trained, whose folders are locked."""


@contextmanager
def preflight(
    configs: Sequence[TrainConfig],
    heldout: bool = False,
    checked: bool = False,
    ranks: Ranks | None = None,
) -> Iterator[Prepared]:
    """Everything that training one run or a sweep needs, opened, checked and locked until the end of the block.

    With `heldout` the held-out rows have to be there, and sound, too. `checked` says that all checksums are known to be
    right. `ranks` are the processes that share these runs, if they are not all.
    Nothing is written before all is known to be right.
    Refused for options and stores that do not fit, ValueError for damaged shards and a run that another process trains.
    """
    first = configs[0]
    ranks = ranks or join(first.device, first.shard_dictionary)
    check_one_stream(configs, ranks)
    following = Following(configs, ranks) if first.follow else None
    store = _open(first, following)
    check_store(store, first)
    if heldout and following is None:
        check_heldout(store)
    device = resolve_device(first.device)
    reason = why_float32(device)
    if reason is not None and first.candidates == "auto" and ranks.rank == 0:
        log.info("%s", reason)
    identities = [identity(config, store, device) for config in configs]
    finished: dict[int, Transcoder] = {}
    for position, config in enumerate(configs):
        done = already_trained(config.run_directory, identities[position])
        if done is not None:
            log.info("%s is trained already", config.run_directory)
            finished[position] = done
    left = [position for position in range(len(configs)) if position not in finished]
    if left:
        check_outputs([configs[position] for position in left])
    if first.check and not checked:
        part = slice(ranks.rank, None, ranks.world)
        if left:
            check_shards(store, "train", part, ranks.each)
        if heldout and following is None:
            check_shards(store, "heldout", part, ranks.each)
    ranks.wait()
    with ExitStack() as locks:
        if ranks.rank == 0:
            for position in left:
                locks.enter_context(lock(configs[position].run_directory))
        yield Prepared(store, following, ranks, device, identities, finished, left)


def _open(config: TrainConfig, following: Following | None) -> Store:
    if following is not None:
        return following.open()
    store = open_pair(config.store_directory, config.target_directory)
    refuse_holes(store)
    return store


def lock(folder: Path) -> WriterLock:
    """Makes a run's folder this process's own. ValueError naming the host and pid of another that trains it."""
    folder.mkdir(parents=True, exist_ok=True)
    return WriterLock(folder / TRAIN_LOCK)


def check_one_stream(configs: Sequence[TrainConfig], ranks: Ranks) -> None:
    """Refused unless one stream of batches serves all configs, and the processes can share its rows or the latents."""
    for name in ONE_STREAM:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values)))
            raise Refused(f"a sweep reads one stream, but {name} would be {listed}; give one, or train them one by one")
    folders = [config.run_directory for config in configs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise Refused(f"two runs of this sweep would lie in {twice}; leave out the value that is given twice")
    if configs[0].batch_rows % ranks.rows.world:
        raise Refused(
            f"batch_rows {configs[0].batch_rows} cannot be shared evenly by {ranks.rows.world} processes; give a multiple"
        )
    smallest = min(last - first for config in configs for first, last in pairwise((0, *config.prefixes)))
    if smallest < ranks.latents.world:
        raise Refused(
            f"the smallest group of prefix_sizes has {smallest} latents, but --shard-dictionary gives each of "
            f"{ranks.latents.world} processes at least one of every group; make it larger, or use fewer processes"
        )


def check_store(store: Store, config: TrainConfig) -> None:
    """Refused unless the store is of the model and layer that the run is named after, and has its sites."""
    _check_side(store, config.model, config.layer, "layer", "source_site", config.source_site)
    if store.target is None:
        _check_side(store, config.model, config.layer, "layer", "target_site", config.target_site)
    else:
        assert config.target_layer is not None
        _check_side(store.target, config.model, config.target_layer, "target-layer", "target_site", config.target_site)
    if config.decoder_start == "mlp":
        _check_mlp(store, config)
    computed = store.target_side.recomputes(config.target_site) or store.recomputes(config.source_site)
    if config.target_dtype != "float32" and not computed:
        raise Refused(
            f"target_dtype is {config.target_dtype}, but {store.target_side.directory} holds its targets, and computes "
            "none; leave it out"
        )


def _check_mlp(store: Store, config: TrainConfig) -> None:
    """Refused unless the store keeps the MLP that the run stands for, and is finished."""
    if config.follow:
        raise Refused("decoder_start mlp needs rows of a finished store, which follow lacks; leave one out")
    if store.mlp is None:
        raise Refused(
            f"decoder_start is mlp, but {store.directory} does not keep it; add it with "
            "`python -m harvest --keep-mlp` and the options of the harvest, or leave decoder_start out"
        )
    sites = (config.source_site, config.target_site)
    if store.target is not None or sites != (store.mlp.norm.reads, "mlp_out"):
        raise Refused(
            f"decoder_start is mlp, which reads {store.mlp.norm.reads} and predicts mlp_out of one layer, but the run goes "
            f"from {sites[0]} to {sites[1]}{'' if store.target is None else ' of another layer'}; leave decoder_start out"
        )


def _check_side(store: Store, model: str, layer: int, layer_option: str, site_option: str, site: str) -> None:
    recipe = store.manifest.recipe
    if (recipe.model, recipe.layer) != (model, layer):
        raise Refused(
            f"{store.directory} holds {recipe.model} layer {recipe.layer} (fingerprint {store.fingerprint}), but the run "
            f"is for {model} layer {layer}; give the store's --model and --{layer_option}, or another store"
        )
    if site not in store.manifest.widths:
        sites = ", ".join(store.manifest.widths)
        raise Refused(f"{site_option} is {site!r}, but {store.directory} holds {sites}; choose one of them")


def check_heldout(store: Store) -> None:
    """Refused when a store has no held-out rows: the runs of a sweep could not be compared."""
    if not store.manifest.n_rows("heldout"):
        raise Refused(f"{store.directory} has no held-out rows to compare on; harvest more TOKENS, or train one by one")


def check_outputs(configs: Sequence[TrainConfig]) -> None:
    """Refused where a run could not be written, where WANDB_MODE is misspelt, and where figures of other weights lie."""
    wandb_mode()
    for config in configs:
        folder = config.run_directory
        refuse_unwritable(folder, "run", "RUN")
        if holds_store(folder):
            raise Refused(f"{folder} is an activation store, among whose files a run does not belong; give another RUN")
        for results in (SAMPLES, EVALUATION, COMPARISON_FOLDER):
            if (folder / results).exists() and not (folder / WEIGHTS).exists():
                raise Refused(
                    f"{folder / results} holds results of weights that are gone, and would be shown with the new ones; "
                    "delete it, or give another RUN"
                )


def refuse_holes(store: Store) -> None:
    """Refused when a ring has deleted training shards."""
    n_shards = len(store.manifest.of_split("train"))
    ring = load_ring(store.directory)
    if ring is not None and n_shards < len(load_manifest(store.directory).of_split("train")):
        raise Refused(
            f"{store.directory} is a ring that keeps {ring.keep_shards} training shards and deletes the others; "
            "train on it with --follow, while it is harvested"
        )
