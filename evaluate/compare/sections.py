"""The sections of a measurement that every transcoder gets: its rows, its identity, figures by prefix, probes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from evaluate.estimates import Result
from evaluate.metrics.accumulate import Accumulator
from evaluate.metrics.measurement import (
    Identity,
    Measurement,
    PrefixMeasurement,
)
from evaluate.metrics.results import ByDocument, measurement_of
from evaluate.metrics.worst import worst_rows
from evaluate.rows import RowStatistics
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel


def results_of(
    accumulators: Sequence[Accumulator], facts: RowStatistics, store: Store, table: ByDocument
) -> list[Measurement]:
    """The figures of each with intervals, and the rows that it reconstructs worst."""
    return [
        measurement_of(a, facts, store, "heldout", table, index).plus(worst_rows=worst_rows(a, facts, store))
        for index, a in enumerate(accumulators)
    ]


def with_prefixes(result: Measurement, found: Mapping[str, Result]) -> Measurement:
    """The result with figures by prefix, of which those of the last prefix are also its own."""
    by_prefix = by_prefix_with(result, found)
    return result.plus(list(found.values())[-1], per_prefix=by_prefix)


def by_prefix_with(result: Measurement, found: Mapping[str, Result]) -> dict[str, PrefixMeasurement]:
    """A result's figures by prefix, and those that were found now."""
    return {size: one.plus(found[size]) if size in found else one for size, one in result.per_prefix.items()}


def identity(transcoder: Transcoder) -> Identity:
    """Which transcoder it is."""
    config = transcoder.config
    return Identity(
        name=config.name,
        source=config.source,
        architecture=config.architecture,
        view=config.view,
        trained_on=config.store_fingerprint,
    )


def bos_of(store: Store) -> int:
    """The token with which every row of a store begins."""
    return int(store.array(store.manifest.shards[0], "tokens")[0, 0])


def add_probes(
    results: list[Measurement], transcoders: Sequence[Transcoder], store: Store, model: "LanguageModel | None"
) -> None:
    """Adds absorption, splitting, sparse probing and perturbation, by prefix too; with the model also Chanin's absorption.

    Args:
        results: of the transcoders, in the same order; what follows them is left alone.
        transcoders: what is probed.
        store: the store that gives the words.
        model: reads words in a spelling prompt.
    """
    from evaluate.metrics.probes import Fitted, probe_all
    from evaluate.metrics.tasks import fit_and_test
    from harvest.model.tokenizer import load_tokenizer

    fit_on, test = fit_and_test(store, load_tokenizer(store.manifest.recipe).convert_ids_to_tokens)
    prompted = None
    if model:
        from evaluate.model.spelling import in_prompts

        prompted = in_prompts(model, test, bos_of(store))
    fitted: Fitted = {}
    for index, transcoder in enumerate(tqdm(transcoders, desc="probes", unit="transcoder")):
        letters, properties = {}, {}
        for size in transcoder.config.prefix_sizes:
            found = probe_all(transcoder.prefix(size), store.norm, fit_on, test, fitted, prompted)
            letters[str(size)], properties[str(size)] = found
        results[index] = with_prefixes(with_prefixes(results[index], letters), properties)
