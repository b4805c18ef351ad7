"""Batches side by side: on a CPU several threads, each with a model and cores of its own, are faster than one on all cores.

Operators of one batch wait for each other, and for Python between them; those of two batches need not.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

import torch

from harvest.config import HarvestConfig
from harvest.model.batch import within_memory
from harvest.model.language_model import LanguageModel
from harvest.text.tokens import PackedShard

Result = TypeVar("Result")

MOST = 4
"""Each lane holds the activations of a batch."""


def lanes_on(device: torch.device) -> int:
    """How many batches run side by side."""
    return min(MOST, torch.get_num_threads()) if device.type == "cpu" else 1


class Lanes:
    """Models over the same weights: one, or on a CPU as many as its cores, up to MOST."""

    def __init__(self, model: LanguageModel) -> None:
        self.threads = torch.get_num_threads()
        self.n = lanes_on(model.device)
        self.models = [model, *(model.twin() for _ in range(self.n - 1))]

    def run(
        self, work: Callable[[LanguageModel, int], Result], starts: Iterable[int], progress: Callable[[Result], object]
    ) -> None:
        """`progress(work(model, start))` for every start, in order; an error or Ctrl-C lets no further work begin."""
        if self.n == 1:
            for start in starts:
                progress(work(self.models[0], start))
            return
        free: SimpleQueue[LanguageModel] = SimpleQueue()
        for model in self.models:
            free.put(model)

        stopped = Event()

        def one(start: int) -> Result:
            if stopped.is_set():
                raise CancelledError
            model = free.get()
            try:
                return work(model, start)
            except BaseException:
                stopped.set()
                raise
            finally:
                free.put(model)

        pool = ThreadPoolExecutor(self.n, "lane", torch.set_num_threads, (self.threads // self.n,))
        try:
            for done in pool.map(one, starts):
                progress(done)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)


def lanes_of(model: LanguageModel, config: HarvestConfig, packed: PackedShard) -> Lanes:
    """Lanes of the model, without the bridge where the shard's first batch has the same bits. Refused where memory does not
    hold a batch."""
    with within_memory(config.sequences_at_once):
        return Lanes(model.without_bridge(packed.tokens[: config.sequences_at_once], config.layers))
