"""Measuring and comparing: a run (and the other transcoder) + a store -> the files that people read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from evaluate.baselines import find_baselines, in_folders
from evaluate.compare.config import CompareConfig
from evaluate.compare.measure import measure
from evaluate.compare.progress import ProgressFile
from evaluate.compare.verdict import name_winners
from evaluate.config import EvaluateConfig
from evaluate.estimates import Result, read_result
from evaluate.labels import LABELS
from evaluate.metrics.measurement import Check, Comparison, Measurement, PrefixMeasurement
from evaluate.metrics.results import ROW_METRICS
from evaluate.report.comparison import markdown, summary, write_report
from evaluate.runs import check_fits, check_in_model, open_run
from store.disk.files import refuse_unwritable, write_text
from store.layout import (
    COMPARISON,
    COMPARISON_FOLDER,
    COMPARISON_PROGRESS,
    EVALUATION,
    GOOGLE_METRICS,
    METRICS,
    OTHER_METRICS,
    OURS_METRICS,
    REPORT,
    REPORT_MARKDOWN,
    SUMMARY,
    WEIGHTS,
)
from store.shards.reader import Store

DEFINITIONS = 2
"""Counts the changes of what a figure means. Results of earlier definitions are measured again."""


def what_is_measured() -> list[str]:
    """The key of every figure. Results of code that measured others are measured again."""
    fields = {*Measurement.model_fields, *PrefixMeasurement.model_fields, *Comparison.model_fields}
    return sorted(fields | {label.key for label in LABELS} | ROW_METRICS.keys())


def evaluate_run(config: EvaluateConfig) -> Path:
    """The folder with metrics.json, summary.txt and report.html of a run, measured unless it was before.

    Refused when store and run do not fit, Damaged when the run's files, the shards or earlier results cannot be read.
    """
    run = open_run(config)
    folder = run.folder / EVALUATION
    refuse_unwritable(folder, "folder of results", "RUN")
    key = _key(run.folder, run.store, None)
    if not config.force and _is_done(Measurement, folder / METRICS, key):
        return show(folder)
    [metrics] = measure(config, run.store, [run.transcoder])
    write_json(folder / METRICS, metrics.plus(key=key))
    publish(folder, [metrics], run.store, run.folder)
    return show(folder)


def compare_runs(config: CompareConfig) -> Path:
    """The folder with the comparison at one layer, made unless it was before.

    Refused when store, run or baseline do not fit together, Damaged as in `evaluate_run`.
    """
    config = config.for_layer(next(iter(config.layers)))
    run = open_run(config)
    ours, store = run.transcoder, run.store
    folder = run.folder / COMPARISON_FOLDER
    if config.sequences:
        check_in_model(ours.config, "give --sequences 0")
    config = replace(config, baseline=in_folders(config.baseline, config.l0, store.manifest.recipe.layer, ours))
    refuse_unwritable(folder, "folder of results", "RUN")
    key = _key(run.folder, store, config)
    if not config.force and _is_done(Comparison, folder / COMPARISON, key):
        return show(folder)
    others = find_baselines(config.baseline, config.baseline_name, config.l0, store, ours)
    for other in others:
        check_fits(other, store)
    progress = ProgressFile(folder / COMPARISON_PROGRESS, key)
    if config.force:
        progress.forget()
    measured = measure(config, store, [ours, *others], progress)
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


def read_comparison(folder: Path) -> Comparison:
    """The comparison in a folder. Damaged when it cannot be read."""
    return read_result(Comparison, folder / COMPARISON, f"python -m evaluate compare --run {folder.parent} --force")


def publish(
    folder: Path,
    measured: Sequence[Measurement],
    store: Store,
    run: Path,
    winners: Mapping[str, str] = {},
    checks: Sequence[Check] = (),
) -> None:
    """Writes summary.txt, report.md and report.html.

    Args:
        folder: where they go.
        measured: a column of the tables each.
        store: the store on which they were measured.
        run: the folder with the training log.
        winners: of a comparison, by metric.
        checks: of a comparison.
    """
    write_text(folder / SUMMARY, summary(measured, store, winners))
    write_text(folder / REPORT_MARKDOWN, markdown(measured, store, winners))
    write_report(folder / REPORT, measured, store, run, winners, checks)


def show(folder: Path) -> Path:
    """Prints the table in a folder."""
    print((folder / SUMMARY).read_text())
    return folder


def write_json(path: Path, result: Result) -> None:
    """Writes a result as people and programs read it."""
    write_text(path, json.dumps(result.as_json(), indent=1) + "\n")


def _key(run: Path, store: Store, config: CompareConfig | None) -> str:
    """Changes whenever a result would: the run's weights, the held-out shards, what is measured and compared with."""
    digest = xxhash.xxh3_128((run / WEIGHTS).read_bytes())
    digest.update(DEFINITIONS.to_bytes())
    digest.update(repr(what_is_measured()).encode())
    for side in (store, store.target):
        for shard in [] if side is None else side.manifest.of_split("heldout"):
            digest.update(shard.xxh3_128.encode())
    if config is None:
        return digest.hexdigest()
    asked = (
        config.baseline_name,
        config.l0,
        config.sequences,
        config.frontier,
        config.every_prefix,
        config.probes,
        config.trivial,
    )
    digest.update(repr(asked).encode())
    for folder in config.baseline:
        for path in sorted(p for p in [folder, *folder.glob("*"), *folder.glob("checkpoints/*.pt")] if p.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_done(kind: type[Measurement] | type[Comparison], path: Path, key: str) -> bool:
    """Whether the results at `path` are those of `key`. Damaged when they cannot be read."""
    if not path.exists() or not path.with_name(REPORT).exists():
        return False
    command = "metrics" if kind is Measurement else "compare"
    return read_result(kind, path, f"python -m evaluate {command} --run {path.parent.parent} --force").key == key
