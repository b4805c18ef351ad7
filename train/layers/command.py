"""`python -m train` with one layer or several: trains each layer's dictionary, all from one stream of tokens."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from store.disk.suggest import next_line
from store.errors import Refused
from store.layers.parse import spell_layers
from store.layers.words import LAYER
from store.layout import default_run
from store.parents import holds_store
from store.shards.pair import check_same_rows, in_common, open_pair
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from train.advice import summary_line
from train.config import TrainConfig
from train.layers.budget import divided, fall_of, table_of, train_pilots
from train.layers.config import LayersTrainConfig, layers_of
from train.layers.together import train_layers_together
from train.loop import train
from train.nulls import with_nulls
from train.parallel import join

log = logging.getLogger(__name__)


def train_layers(config: LayersTrainConfig) -> Transcoder | str:
    """The transcoder of the only layer; of several, a line for each, the folders of the runs and the next command.

    Each run is bit for bit the run of its layer alone. Under torchrun each process trains every world-th layer, by itself.
    ValueError for bad input, before anything is trained.
    """
    configs = config.configs
    if len(configs) == 1:
        return train(configs[0])
    check_one_harvest(configs)
    if config.total_l0 is not None:
        check_metrics(configs)
    everyone = join(configs[0].device)
    if everyone.rank == 0 and everyone.world > len(configs):
        log.warning("%d processes for %d layers: some have nothing to do", everyone.world, len(configs))
    everyone.wait()  # so that none ends, and takes the others with it, before all have begun
    mine = slice(everyone.rank, None, everyone.world)
    table = ""
    if config.total_l0 is not None:
        pilots = config.pilots
        train_pilots(pilots[mine], config.layers_at_once)
        everyone.wait()
        falls = [fall_of(each) for each in pilots]
        ks = divided(falls, config.total_l0, pilots[0][0].tokens)
        configs = [replace(one, k=k) for one, k in zip(configs, ks, strict=True)]
        table = table_of(falls, ks)
        log.info("%s", table)
    own = configs[mine]
    train_layers_together([with_nulls(one) for one in own], config.layers_at_once)
    last = what_comes_next(config) if everyone.rank == 0 else None
    return "\n\n".join(filter(None, [told(own), table, last])) if own else ""


def check_metrics(configs: Sequence[TrainConfig]) -> None:
    """Refused where the store of a layer does not know what an error costs the language model."""
    for one in configs:
        store = open_pair(one.store_directory, one.target_directory).target_side
        if store.manifest.metric is None or one.target_site not in store.manifest.metric.agreement:
            raise Refused(
                f"total_l0 needs what errors cost the language model, but {store.directory} has no metric of "
                f"{one.target_site}; run `make metric LAYER={store.manifest.recipe.layer}`, or give --k"
            )


def check_one_harvest(configs: Sequence[TrainConfig]) -> None:
    """Refused unless the stores hold the same tokens, row by row: as far as they are there, beside a harvest."""
    stores = [open_store(one.store_directory) for one in configs if holds_store(one.store_directory)]
    for one, other in pairwise(stores):
        if configs[0].follow:
            one, other = in_common([one, other])
        check_same_rows(one, other, "train")


def told(configs: Sequence[TrainConfig]) -> str:
    """A line for each layer, and the folders of the runs."""
    lines = [f"layer {one.layer}: {summary_line(one)}" for one in configs]
    return "\n".join([*lines, *(str(one.run_directory) for one in configs)])


def what_comes_next(config: LayersTrainConfig) -> str | None:
    """The command that measures every layer."""
    layers = spell_layers(layers_of(config))
    run = config.run or default_run(config.model, LAYER, config.architecture)
    return next_line("evaluate", "metrics", model=config.model, layer=layers, store=config.store, run=run)
