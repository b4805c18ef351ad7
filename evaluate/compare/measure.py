"""Everything that is measured of some transcoders on one store, at their own L0 and at an equal one."""

import logging
from collections.abc import Sequence

from evaluate.compare.beside import Beside
from evaluate.compare.checks import checks_of, remarks_on
from evaluate.compare.config import CompareConfig
from evaluate.compare.progress import ProgressFile
from evaluate.compare.sectioned import SectionedComparison
from evaluate.compare.sections import add_latents, identity, results_of
from evaluate.config import EvaluateConfig
from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.measurement import Measurement
from evaluate.metrics.results import ByDocument
from store.devices import resolve_device
from store.loader.repeats import find_repeats
from store.shards.reader import Store, check_shards
from store.transcoders.transcoder import Transcoder

log = logging.getLogger(__name__)


def measure(
    config: EvaluateConfig,
    store: Store,
    transcoders: Sequence[Transcoder],
    progress: ProgressFile | None = None,
    beside: Beside | None = None,
) -> list[Measurement]:
    """The measurement of every transcoder on the held-out rows.

    With a CompareConfig and two or more transcoders: the second result also has `matched` (its paired difference from the
    first at equal L0). Both have `frontier`, the cost in the language model, and `seeds` where `beside` holds other seeds.
    The results of nulls (`null`) and of trivial predictors (`trivial`) follow. Sections are saved to `progress` as they
    finish, and taken from there.
    """
    device = resolve_device(config.device)
    if isinstance(config, CompareConfig) and len(transcoders) > 1:
        results = SectionedComparison(config, store, transcoders, device, progress, beside or Beside()).measured()
    else:
        if config.check:
            check_shards(store, "heldout")
        accumulators, facts = measure_rows(transcoders, store, "heldout", config.batch_rows, device)
        results = results_of(accumulators, facts, store, ByDocument.of(accumulators, facts))
        for index, transcoder in enumerate(transcoders):
            result = results[index].plus(identity(transcoder))
            results[index] = add_latents(result, transcoder, store, device)
    repeated = find_repeats(store).repeated
    if repeated:
        results = [result.plus(n_repeated_documents=repeated) for result in results]
    for index in range(len(transcoders)):
        warnings = tuple(check.detail for check in checks_of(results[index], store) if not check.holds)
        warnings += tuple(remarks_on(results[index], store))
        results[index] = results[index].plus(warnings=warnings)
        for warning in warnings:
            log.warning("%s", warning)
    return results
