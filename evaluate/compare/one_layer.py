"""A run against other transcoders, at one layer."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluate.baselines import find_baselines, in_folders
from evaluate.compare.beside import BesideFolders
from evaluate.compare.config import CompareConfig
from evaluate.compare.files import is_done, key_of, publish, read_comparison, show, write_json
from evaluate.compare.measure import measure
from evaluate.compare.progress import ProgressFile
from evaluate.compare.verdict import name_winners
from evaluate.metrics.measurement import Comparison, Measurement
from evaluate.report.verdict import sentences
from evaluate.runs import check_fits, check_in_model, open_run
from evaluate.training_log import read_log
from store.disk.files import refuse_unwritable
from store.layout import (
    COMPARISON,
    COMPARISON_FOLDER,
    COMPARISON_PROGRESS,
    GOOGLE_METRICS,
    OTHER_METRICS,
    OURS_METRICS,
)

GOOGLES = re.compile(r"gemma-scope-(\d+b|2-\d)")
"""In the names of Google's repositories, such as gemma-scope-2b-pt-transcoders and gemma-scope-2-270m-pt."""
log = logging.getLogger(__name__)


def compare_runs(config: CompareConfig) -> Path:
    """The folder with the comparison at one layer, made unless it was before.

    Refused when store, run or baseline do not fit together, Damaged as in `evaluate_run`.
    """
    config = config.for_layer(next(iter(config.layers)))
    run = open_run(config)
    ours = run.transcoder
    store = run.store
    folder = run.folder / COMPARISON_FOLDER
    if config.sequences:
        check_in_model(ours.config, "give --sequences 0")
    config = replace(config, baseline=in_folders(config.baseline, config.l0, store.manifest.recipe.layer, ours))
    refuse_unwritable(folder, "folder of results", "RUN")
    read_log(run.folder)  # Damaged now, not when the report is drawn after all was measured
    beside = BesideFolders.of(config)
    key = key_of(run.folder, store, config, beside.files)
    if not config.force and is_done(Comparison, folder / COMPARISON, key):
        return show(folder)
    others = find_baselines(config.baseline, config.baseline_name, config.l0, store, ours)
    for other in others:
        check_fits(other, store)
    warn_of_replaced(folder, [other.config.name for other in others])
    progress = ProgressFile(folder / COMPARISON_PROGRESS, key)
    if config.force:
        progress.forget()
    measured = measure(config, store, [ours, *others], progress, beside.open(store))
    comparison = name_winners(measured, store)
    write_json(folder / OURS_METRICS, comparison.ours)
    write_json(folder / OTHER_METRICS, comparison.other)
    if is_googles(comparison.other):
        write_json(folder / GOOGLE_METRICS, comparison.other)
    else:
        (folder / GOOGLE_METRICS).unlink(missing_ok=True)
    write_json(folder / COMPARISON, comparison.plus(key=key))
    said = "\n".join(["in words:", *sentences(measured, comparison.winners)])
    publish(folder, measured, store, run.folder, comparison.winners, comparison.checks, said)
    progress.forget()
    return show(folder)


def warn_of_replaced(folder: Path, names: Sequence[str]) -> None:
    """Says which comparison the folder holds that one with other transcoders will replace."""
    if not (folder / COMPARISON).exists():
        return
    found = read_comparison(folder)
    before = [each.name for each in (found.other, *found.others)]
    if before != [*names]:
        told = ", ".join(before)
        log.warning("%s holds a comparison with %s: this one replaces it; copy the folder first to keep it", folder, told)


def is_googles(measured: Measurement) -> bool:
    """Whether a transcoder comes from one of Google's repositories, or a copy of one; our exports to its layouts do not."""
    return bool(GOOGLES.search(measured.source)) or measured.name.startswith("Google ")
