"""Everything that is measured of some transcoders on one store, at their own L0 and at an equal one.

The language model and the probes are imported where they are wanted: that takes seconds, and most measurements do not.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from evaluate.compare.checks import checks_of, fvu_by_view
from evaluate.compare.config import CompareConfig
from evaluate.compare.passes import ComparisonPasses
from evaluate.compare.sections import identity, results_of, with_prefixes
from evaluate.config import EvaluateConfig
from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.measurement import (
    Measurement,
)
from evaluate.metrics.results import ByDocument
from evaluate.metrics.semantics import semantics
from store.devices import resolve_device
from store.shards.reader import Store, check_shards
from store.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel

log = logging.getLogger(__name__)


def measure(config: EvaluateConfig, store: Store, transcoders: Sequence[Transcoder]) -> list[Measurement]:
    """The measurement of every transcoder on the held-out rows.

    With a CompareConfig and two or more transcoders: the second result also has `matched` (its paired difference from the
    first at equal L0); both have `frontier` and the cost in the language model; results of the trivial predictors follow,
    marked `trivial`.
    """
    device = resolve_device(config.device)
    if isinstance(config, CompareConfig) and len(transcoders) > 1:
        model = open_language_model(store, device) if config.sequences else None
        if config.check:
            check_shards(store, "heldout")
        results = ComparisonPasses(config, store, transcoders, device, model).measured()
    else:
        if config.check:
            check_shards(store, "heldout")
        accumulators, facts = measure_rows(transcoders, store, "heldout", config.batch_rows, device)
        results = results_of(accumulators, facts, store, ByDocument.of(accumulators, facts))
    for index, transcoder in enumerate(transcoders):
        views = fvu_by_view(transcoder, store, device)
        result = results[index].plus(identity(transcoder), fvu_by_view=views)
        result = with_prefixes(result, semantics(transcoder, store, device))
        warnings = tuple(check.detail for check in checks_of(result, store) if not check.holds)
        results[index] = result.plus(warnings=warnings)
        for warning in warnings:
            log.warning("%s", warning)
    return results


def open_language_model(store: Store, device: torch.device) -> "LanguageModel":
    """The model of a store, opened before anything is measured, so that one that cannot be had is told at once."""
    from evaluate.model.splice import open_model

    return open_model(store, device)
