"""Measuring and comparing: a run (and the other transcoder) + a store -> the files that people read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from evaluate.baselines import find_baselines, in_folders
from evaluate.compare.config import CompareConfig
from evaluate.compare.measure import measure
from evaluate.compare.verdict import name_winners
from evaluate.config import EvaluateConfig
from evaluate.report.comparison import markdown, summary, write_report
from evaluate.runs import check_fits, open_run
from store.disk.files import write_text
from store.layout import (
    COMPARISON,
    COMPARISON_FOLDER,
    EVALUATION,
    GOOGLE_METRICS,
    METRICS,
    OURS_METRICS,
    REPORT,
    REPORT_MARKDOWN,
    SUMMARY,
    WEIGHTS,
)
from store.shards.reader import Store


def evaluate_run(config: EvaluateConfig) -> Path:
    """The folder with metrics.json, summary.txt and report.html of a run. ValueError when store and run do not fit."""
    folder = config.run_directory / EVALUATION
    run = open_run(config)
    ours, store = run.transcoder, run.store
    key = _key(config.run_directory, store, None)
    if not config.force and _is_done(folder / METRICS, key):
        return show(folder)
    [metrics] = measure(config, store, [ours])
    write_json(folder / METRICS, metrics | {"key": key})
    publish(folder, [metrics], store, config.run_directory, {})
    return show(folder)


def compare_runs(config: CompareConfig) -> Path:
    """The folder with the comparison (with one over all layers, where there are several).

    ValueError when store, run or baseline do not fit together.
    """
    if len(config.layers) > 1:
        from evaluate.compare.layers import report_over_layers

        return report_over_layers(config)
    config = config.for_layer(next(iter(config.layers)))
    folder = config.run_directory / COMPARISON_FOLDER
    run = open_run(config)
    ours, store = run.transcoder, run.store
    if store.target is not None and config.sequences:
        raise ValueError(
            f"{ours.config.name} predicts layer {ours.config.target_layer} from layer {ours.config.layer}: what that "
            "costs the language model is not measured; give --sequences 0"
        )
    config = replace(config, baseline=in_folders(config.baseline, config.l0, store.manifest.recipe.layer, ours))
    key = _key(config.run_directory, store, config)
    if not config.force and _is_done(folder / COMPARISON, key):
        return show(folder)
    others = find_baselines(config.baseline, config.baseline_name, config.l0, store, ours)
    for other in others:
        check_fits(other, store)
    measured = measure(config, store, [ours, *others])
    comparison = name_winners(measured, store) | {"key": key}
    write_json(folder / OURS_METRICS, measured[0])
    write_json(folder / GOOGLE_METRICS, measured[1])
    write_json(folder / COMPARISON, comparison)
    publish(folder, measured, store, config.run_directory, comparison)
    return show(folder)


def publish(folder: Path, measured: Sequence[dict], store: Store, run: Path, comparison: dict) -> None:
    """Writes summary.txt, report.md and report.html."""
    winners = comparison.get("winners", {})
    write_text(folder / SUMMARY, summary(measured, store, winners))
    write_text(folder / REPORT_MARKDOWN, markdown(measured, store, winners))
    write_report(folder / REPORT, measured, store, run, comparison)


def show(folder: Path) -> Path:
    """Prints the table in a folder."""
    print((folder / SUMMARY).read_text())
    return folder


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def _key(run: Path, store: Store, config: CompareConfig | None) -> str:
    """Changes whenever a result would: the run's weights, the held-out shards, and what it is compared with."""
    digest = xxhash.xxh3_128((run / WEIGHTS).read_bytes())
    for side in (store, store.target):
        for shard in [] if side is None else side.manifest.of_split("heldout"):
            digest.update(shard.xxh3_128.encode())
    if config is not None:
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
    for folder in config.baseline if config is not None else ():
        for path in sorted(p for p in [folder, *folder.glob("*"), *folder.glob("checkpoints/*.pt")] if p.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_done(path: Path, key: str) -> bool:
    return path.exists() and path.with_name(REPORT).exists() and json.loads(path.read_text()).get("key") == key
