"""`python -m evaluate compare-set`: what it costs the model to replace the MLPs of several layers at once."""

import logging
from collections.abc import Sequence
from pathlib import Path

import xxhash

from evaluate.compare.files import show, write_json
from evaluate.runs import OpenRun
from evaluate.sets.choices import variants_of
from evaluate.sets.config import CompareSetConfig
from evaluate.sets.layers import (
    Side,
    digest_of,
    linear_maps,
    open_baseline,
    open_set,
    refuse_without_training_rows,
    replacements_of,
)
from evaluate.sets.measure import SetRun, measure
from evaluate.sets.report import publish
from evaluate.sets.result import DEFINITIONS, FORMAT_VERSION, FROZEN, RECOMPUTED, SetResult, SetSide, read_set
from evaluate.sets.table import SetTable
from harvest.model.loading import model_that_made
from store.devices import resolve_device
from store.disk.files import refuse_unwritable
from store.disk.unfinished import unfinished_folder
from store.layout import REPORT, SET_RESULT, UNFINISHED
from store.shards.reader import check_shards

log = logging.getLogger(__name__)

DEFINED = 1
"""Counts the changes of what a figure means. Results of earlier definitions are measured again."""


def compare_set(config: CompareSetConfig) -> Path:
    """The folder with the result of a set, measured unless it was before.

    Refused as `open_set` and `open_baseline` do, and when the model is not the stores' any more. Busy while another
    process measures it.
    """
    device = resolve_device(config.device)
    runs = open_set(config)
    ours = Side("ours", "ours", {run.transcoder.config.layer: run.transcoder for run in runs})
    baseline = open_baseline(config, runs)
    folder = config.folder
    refuse_unwritable(folder, "folder of results", "--name")
    key = key_of(config, runs, [ours] if baseline is None else [ours, baseline])
    before = None if config.force else read_set(folder)
    if before is not None and before.key == key and (folder / REPORT).exists():
        return show(folder)
    first = runs[0].store
    if config.linear:
        refuse_without_training_rows(runs)
    model = model_that_made(first.manifest.recipe, device, "harvest the layers and train them again")
    if config.check:
        check_shards(first, "heldout")
    with unfinished_folder(folder / UNFINISHED, key, config.force) as work:
        sides = [ours]
        if config.linear:
            sides.append(linear_maps(runs, work, device))
        if baseline is not None:
            sides.append(baseline)
        layers = list(ours.transcoders)
        ways = [False, True] if config.frozen else [False]
        replacements = [replacements_of(side, runs, device, config.batch_rows) for side in sides]
        variants = variants_of(layers, len(sides), ways)
        log.info("layers %s: the model runs %d times on each sequence", ", ".join(map(str, layers)), len(variants) + 2)
        run = SetRun(first, replacements, layers, variants, config.sequences, work)
        table, n_sequences = measure(run, model)
        result = result_of(runs, sides, table, ways, n_sequences, model.n_layers).plus(key=key)
        publish(folder, result)
        write_json(folder / SET_RESULT, result)  # last: it says that the others are its own
    return show(folder)


def key_of(config: CompareSetConfig, runs: Sequence[OpenRun], sides: Sequence[Side]) -> str:
    """Changes whenever the result would: with the weights, the shards and the options."""
    digest = xxhash.xxh3_128(repr((DEFINED, config.sequences, config.linear, config.frozen)).encode())
    for side in sides:
        digest.update(f"{side.kind} {side.name}".encode())
        for layer, transcoder in side.transcoders.items():
            digest.update(f"{layer}".encode())
            digest.update(digest_of(transcoder))
    for run in runs:
        digest.update(run.store.fingerprint.encode())
        for shard in run.store.manifest.shards if config.linear else run.store.manifest.of_split("heldout"):
            digest.update(shard.xxh3_128.encode())
    return digest.hexdigest()


def result_of(
    runs: Sequence[OpenRun],
    sides: Sequence[Side],
    table: SetTable,
    ways: Sequence[bool],
    n_sequences: int,
    n_layers: int,
) -> SetResult:
    """All figures, still without a key.

    runs: of the layers.
    sides: the kinds of replacement, ours first.
    table: their sums by document.
    ways: whether attention was frozen, each way that was measured.
    n_sequences: that were run.
    n_layers: of the model.
    """
    recipe = runs[0].store.manifest.recipe
    layers = [run.transcoder.config.layer for run in runs]
    found = []
    for index, side in enumerate(sides):
        attention = {FROZEN if way else RECOMPUTED: table.attention(index, layers, way, n_layers) for way in ways}
        found.append(SetSide(side=side.kind, name=side.name, members=side.members, attention=attention))
    return SetResult(
        format_version=FORMAT_VERSION,
        model=recipe.model,
        dataset=recipe.dataset,
        split="heldout",
        layers=tuple(layers),
        n_layers=n_layers,
        sequences=n_sequences,
        n_predictions=table.n_predictions,
        n_documents=len(table.sums),
        ce_clean=table.ce_clean,
        sides=tuple(found),
        definitions=DEFINITIONS,
        key="",
    )
