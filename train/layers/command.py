"""`python -m train` with one layer or several: trains each layer's dictionary, all from one stream of tokens."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

from evaluate.text import text_table
from evaluate.training_log import read_log
from store.errors import Refused
from store.layers.parse import spell_layers
from store.parents import holds_store
from store.shards.pair import check_same_rows, in_common, open_pair
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from train.advice import summary_line
from train.checks import preflight
from train.config import TrainConfig
from train.layers.budget import DECISIONS, Budget, empty_decisions
from train.layers.config import LayersTrainConfig, layers_of
from train.layers.memory import Room, groups_that_fit, need_of
from train.loop import nobody, train, train_prepared
from train.nulls import with_nulls
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
    total = config.total_l0
    if total is not None:
        check_metrics(configs)
    everyone = join(configs[0].device)
    if total is not None and everyone.world > 1:
        raise Refused(
            f"total_l0 is {total}, but {everyone.world} processes share the layers out; train them in one process"
        )
    own = [with_nulls(one) for one in configs[everyone.rank :: everyone.world]]
    if everyone.rank == 0 and everyone.world > len(configs):
        log.warning("%d processes for %d layers: some have nothing to do", everyone.world, len(configs))
    everyone.wait()  # so that none ends, and takes the others with it, before all have begun
    if not own:
        return ""
    layers = layers_of(config)
    watch = nobody if total is None else partial(Budget, layers=layers, total=total)
    decisions = {} if total is None else {DECISIONS: empty_decisions(configs[0], len(layers))}
    with ExitStack() as opened:
        prepared = [opened.enter_context(preflight(each, ranks=Ranks(), more=config.identity)) for each in own]
        left = [number for number, each in enumerate(prepared) if each.left]
        if left:
            needs = [need_of(own[number], prepared[number]) for number in left]
            room = Room.now(prepared[0].device, _sharers())
            groups, said = groups_that_fit(needs, config.layers_at_once, room, all_at_once=total is not None)
            log.info("%s", said)
            for group in groups:
                numbers = [left[position] for position in group]
                if len(groups) > 1:
                    log.info("layers %s", spell_layers([own[number][0].layer for number in numbers]))
                train_prepared([(own[number], prepared[number]) for number in numbers], watch, decisions)
    text = told([each[0] for each in own])
    return text if total is None else f"{text}\n\n{budget_table(configs, total)}"


def check_metrics(configs: Sequence[TrainConfig]) -> None:
    """Refused where the store of a layer does not know what an error costs the language model."""
    for one in configs:
        store = open_pair(one.store_directory, one.target_directory).target_side
        if store.manifest.metric is None or one.target_site not in store.manifest.metric.agreement:
            raise Refused(
                f"total_l0 needs what errors cost the language model, but {store.directory} has no metric of "
                f"{one.target_site}; run `make metric LAYER={store.manifest.recipe.layer}`, or give --k"
            )


def budget_table(configs: Sequence[TrainConfig], total: int) -> str:
    """k of each layer, and what one more latent saved when it was last measured, from the runs' logs."""
    rows = []
    for one in configs:
        last = read_log(one.run_directory)[-1]
        saving = "-" if last["saving"] is None else f"{last['saving']:.3g}"
        rows.append([str(one.layer), str(last["k"]), f"{last['k'] / total:.1%}", saving])
    rows.append(["all", str(total), "", ""])
    return "\n".join(text_table(rows, ["layer", "k", "share", "KL saved by one more"]))


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
