"""`python -m train` with one layer or several: trains each layer's dictionary, all from one stream of tokens."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

from store.layers.parse import spell_layers
from store.parents import holds_store
from store.shards.pair import check_same_rows, in_common
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from train.advice import summary_line
from train.checks import preflight
from train.config import TrainConfig
from train.layers.config import LayersTrainConfig
from train.layers.memory import Room, groups_that_fit, need_of
from train.loop import train, train_prepared, with_nulls
from train.parallel import Ranks, join

log = logging.getLogger(__name__)


def train_layers(config: LayersTrainConfig) -> Transcoder | str:
    """The transcoder of the only layer; of several, a line for each and the folders of the runs.

    Each run is bit for bit the run of its layer alone. Under torchrun each process trains every world-th layer, by itself.
    ValueError for bad input, before anything is trained.
    """
    configs = config.configs
    if len(configs) == 1:
        return train(configs[0])
    check_one_harvest(configs)
    everyone = join(configs[0].device)
    own = [with_nulls(one) for one in configs[everyone.rank :: everyone.world]]
    if everyone.rank == 0 and everyone.world > len(configs):
        log.warning("%d processes for %d layers: some have nothing to do", everyone.world, len(configs))
    everyone.wait()  # so that none ends, and takes the others with it, before all have begun
    if not own:
        return ""
    with ExitStack() as opened:
        prepared = [opened.enter_context(preflight(each, ranks=Ranks())) for each in own]
        left = [number for number, each in enumerate(prepared) if each.left]
        if left:
            needs = [need_of(own[number], prepared[number]) for number in left]
            groups, said = groups_that_fit(needs, config.layers_at_once, Room.now(prepared[0].device, _sharers()))
            log.info("%s", said)
            for group in groups:
                numbers = [left[position] for position in group]
                if len(groups) > 1:
                    log.info("layers %s", spell_layers([own[number][0].layer for number in numbers]))
                train_prepared([(own[number], prepared[number]) for number in numbers])
    return told([each[0] for each in own])


def _sharers() -> int:
    """Processes of torchrun on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
