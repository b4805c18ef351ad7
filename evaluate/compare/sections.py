"""The sections of a measurement that every transcoder gets: its rows, its identity, figures by prefix, probes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from evaluate.compare.checks import fvu_by_view
from evaluate.derivatives.jacobian import jacobian_agreement
from evaluate.estimates import Result
from evaluate.metrics.accumulate import Accumulator, sites_of
from evaluate.metrics.measurement import (
    Identity,
    Measurement,
    PrefixMeasurement,
)
from evaluate.metrics.results import ByDocument, measurement_of
from evaluate.metrics.semantics import semantics
from evaluate.metrics.stability import stability
from evaluate.metrics.usefulness import usefulness
from evaluate.metrics.worst import worst_rows
from evaluate.rows import RowStatistics
from store.errors import Refused
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harvest.model.language_model import LanguageModel


def results_of(
    accumulators: Sequence[Accumulator], facts: RowStatistics, store: Store, table: ByDocument
) -> list[Measurement]:
    """The figures of each with intervals, and the rows that it reconstructs worst."""
    return [
        measurement_of(a, facts, store, "heldout", table, index).plus(
            worst_rows=worst_rows(a.worst, float(a.whole("sse").sum()), store)
        )
        for index, a in enumerate(accumulators)
    ]


def with_prefixes(result: Measurement, found: Mapping[str, Result]) -> Measurement:
    """Adds figures to every prefix. The last prefix's figures also become the whole's."""
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


def add_latents(
    result: Measurement, transcoder: Transcoder, store: Store, device: torch.device, seeds: Sequence[Transcoder] = ()
) -> Measurement:
    """The result with FVU by view, the share of firings that are useful and, by prefix too, what single latents stand for,
    how well derivatives match the MLP's, and how far latents recur in the runs of other seeds."""
    result = result.plus(fvu_by_view=fvu_by_view(transcoder, store, device))
    result = with_prefixes(result, semantics(transcoder, store, device))
    agreement = jacobian_agreement(transcoder, store, device)
    if agreement:
        result = with_prefixes(result, agreement)
    found = usefulness(transcoder, store, device)
    if found is not None:
        result = result.plus(useful_share=found.share)
    return with_prefixes(result, stability(transcoder.to(device), [seed.to(device) for seed in seeds])) if seeds else result


def bos_of(store: Store) -> int:
    """The token with which every row of a store begins."""
    return int(store.array(store.manifest.shards[0], "tokens")[0, 0])


def probes_tokenizer(store: Store) -> "PreTrainedTokenizerBase":
    """The tokenizer that gives the probes their words. Refused where it cannot be had, before anything is measured."""
    from harvest.model.tokenizer import load_tokenizer

    try:
        return load_tokenizer(store.manifest.recipe)
    except Refused as error:
        reason, _, _ = str(error).partition("; give")
        raise Refused(f"{reason}; leave the probes out with --no-probes") from None


def add_probes(
    results: list[Measurement],
    transcoders: Sequence[Transcoder],
    store: Store,
    tokenizer: "PreTrainedTokenizerBase",
    model: "LanguageModel | None",
) -> dict[str, str]:
    """Adds absorption, splitting, sparse probing and perturbation, by prefix too; with the model also Chanin's absorption.

    Args:
        results: of the transcoders, in the same order; what follows them is left alone.
        transcoders: what is probed.
        store: the store that gives the words.
        tokenizer: gives tokens their text.
        model: reads words in a spelling prompt.

    Returns:
        Why, by section, where one could not be measured.
    """
    from evaluate.metrics.probes import Fitted, first_letters
    from evaluate.metrics.property_probes import few_of, properties
    from evaluate.metrics.tasks import fit_and_test

    sites = sites_of(transcoders)
    fit_on, test = fit_and_test(store, tokenizer.convert_ids_to_tokens, sites)
    missing: dict[str, str] = {}
    prompted = None
    if model:
        from evaluate.model.spelling import in_prompts

        try:
            prompted = in_prompts(model, test, bos_of(store), sites)
        except Refused as error:
            missing["spelling"] = str(error)
    fitted: Fitted = {}
    total = sum(len(transcoder.config.prefix_sizes) for transcoder in transcoders)
    with tqdm(total=total, desc="probes", unit="prefix") as bar:
        for index, transcoder in enumerate(transcoders):
            letters = {}
            kinds = {}
            for size in transcoder.config.prefix_sizes:
                forward = Forward(transcoder.prefix(size))
                if "first_letters" not in missing:
                    try:
                        letters[str(size)] = first_letters(forward, store.norm, fit_on, test, fitted, prompted)
                    except Refused as error:
                        missing["first_letters"] = str(error)
                if "properties" not in missing:
                    try:
                        kinds[str(size)] = properties(forward, store.norm, few_of(fit_on), test, fitted)
                    except Refused as error:
                        missing["properties"] = str(error)
                bar.update()
            for found in (letters, kinds):
                if found:
                    results[index] = with_prefixes(results[index], found)
    return missing
