"""A run against other transcoders, at one layer."""

from dataclasses import replace
from pathlib import Path

from evaluate.baselines import find_baselines, in_folders
from evaluate.compare.beside import BesideFolders
from evaluate.compare.config import CompareConfig
from evaluate.compare.files import is_done, key_of, publish, show, write_json
from evaluate.compare.measure import measure
from evaluate.compare.progress import ProgressFile
from evaluate.compare.verdict import name_winners
from evaluate.metrics.measurement import Comparison, Measurement
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
    publish(folder, measured, store, run.folder, comparison.winners, comparison.checks)
    progress.forget()
    return show(folder)


def is_googles(measured: Measurement) -> bool:
    """Whether a transcoder comes from one of Google's repositories, or a copy of one."""
    return "gemma-scope" in measured.source or measured.name.startswith("Google ")
