"""Trains the runs of several layers in step: as many layers at once as memory holds, or as were asked for."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack

from store.layers.parse import spell_layers
from train.checks import preflight
from train.config import TrainConfig
from train.layers.memory import Room, groups_that_fit, need_of
from train.loop import train_prepared
from train.parallel import Ranks

log = logging.getLogger(__name__)


def train_layers_together(parts: Sequence[Sequence[TrainConfig]], layers_at_once: int | None) -> None:
    """Trains what is not finished yet of the runs of each layer, by this process alone.

    parts: of each layer the runs that one pass over its store trains.

    ValueError for bad input, before anything is trained; Refused where memory does not hold the layers.
    """
    with ExitStack() as opened:
        prepared = [opened.enter_context(preflight(each, ranks=Ranks())) for each in parts]
        left = [number for number, each in enumerate(prepared) if each.left]
        if not left:
            return
        needs = [need_of(parts[number], prepared[number]) for number in left]
        groups, said = groups_that_fit(needs, layers_at_once, Room.now(prepared[0].device, _sharers()))
        log.info("%s", said)
        for group in groups:
            numbers = [left[position] for position in group]
            if len(groups) > 1:
                log.info("layers %s", spell_layers([parts[number][0].layer for number in numbers]))
            train_prepared([(parts[number], prepared[number]) for number in numbers])


def _sharers() -> int:
    """Processes of torchrun on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
