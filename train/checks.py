"""What is refused before anything is trained."""

from collections.abc import Sequence
from itertools import pairwise

from store.disk.files import refuse_unwritable
from store.shards.manifest import load_manifest
from store.shards.reader import Store
from store.shards.ring import load_ring
from train.config import TrainConfig
from train.log import wandb_mode
from train.parallel import Ranks

ONE_STREAM = (
    "model", "layer", "store_directory", "target_directory", "source_site", "target_site", "input_view", "tokens",
    "batch_rows", "seed", "device", "checkpoint_every", "follow", "shard_dictionary",
)  # fmt: skip
"""What dictionaries trained together must share."""


def check_one_stream(configs: Sequence[TrainConfig], ranks: Ranks) -> None:
    """ValueError unless one stream of batches serves all configs, and the processes can share it or the latents out."""
    for name in ONE_STREAM:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values)))
            raise ValueError(f"a sweep reads one stream, but {name} would be {listed}; give one, or train them one by one")
    folders = [config.run_directory for config in configs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise ValueError(f"two runs of this sweep would lie in {twice}; leave out the value that is given twice")
    if configs[0].batch_rows % ranks.rows.world:
        raise ValueError(f"batch_rows {configs[0].batch_rows} cannot be shared evenly by {ranks.world} processes")
    smallest = min(last - first for config in configs for first, last in pairwise((0, *config.prefixes)))
    if smallest < ranks.latents.world:
        raise ValueError(
            f"the smallest group of prefix_sizes has {smallest} latents, but --shard-dictionary gives each of "
            f"{ranks.world} processes at least one of every group; make it larger, or use fewer processes"
        )


def check_store(store: Store, config: TrainConfig) -> None:
    """ValueError unless the store is of the model and layer that the run is named after, and has its sites."""
    target_layer = config.layer if config.target_layer is None else config.target_layer
    for side, name, layer in ((store, "source_site", config.layer), (store.target_side, "target_site", target_layer)):
        recipe, option = side.manifest.recipe, "layer" if side is store else "target-layer"
        if (recipe.model, recipe.layer) != (config.model, layer):
            raise ValueError(
                f"{side.directory} holds {recipe.model} layer {recipe.layer} (fingerprint {side.fingerprint}), but the run "
                f"is for {config.model} layer {layer}; give the store's --model and --{option}, or another store"
            )
        if getattr(config, name) not in side.manifest.widths:
            sites = ", ".join(side.manifest.widths)
            raise ValueError(f"{name} is {getattr(config, name)!r}, but {side.directory} holds {sites}; choose one of them")


def check_outputs(configs: Sequence[TrainConfig]) -> None:
    """ValueError where a run could not be written, or WANDB_MODE is misspelt."""
    wandb_mode()
    for config in configs:
        refuse_unwritable(config.run_directory, "run", "RUN")


def refuse_holes(store: Store) -> None:
    """ValueError when a ring has deleted training shards."""
    n_shards, ring = len(store.manifest.of_split("train")), load_ring(store.directory)
    if ring is not None and n_shards < len(load_manifest(store.directory).of_split("train")):
        raise ValueError(
            f"{store.directory} is a ring that keeps {ring.keep_shards} training shards and deletes the others; "
            "train on it with --follow, while it is harvested"
        )
