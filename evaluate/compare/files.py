"""The files that measuring leaves in a run's folder, and whether those of an earlier call still hold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import xxhash

from evaluate.compare.config import CompareConfig
from evaluate.estimates import Result, read_result
from evaluate.labels import LABELS
from evaluate.metrics.measurement import Check, Comparison, Measurement, PrefixMeasurement
from evaluate.metrics.results import ROW_METRICS, WITH_METRIC
from evaluate.report.comparison import markdown, summary, write_report
from store.disk.files import hash_file, write_text
from store.disk.suggest import command_line
from store.layout import COMPARISON, CONFIG, REPORT, REPORT_MARKDOWN, SUMMARY, WEIGHTS
from store.shards.reader import Store

DEFINITIONS = 4
"""Counts the changes of what a figure means. Results of earlier definitions are measured again."""


def what_is_measured() -> list[str]:
    """The key of every figure. Results of code that measured others are measured again."""
    fields = {*Measurement.model_fields, *PrefixMeasurement.model_fields, *Comparison.model_fields}
    return sorted(fields | {label.key for label in LABELS} | ROW_METRICS.keys() | WITH_METRIC.keys())


def files_of_transcoder(folder: Path) -> list[Path]:
    """The files that make a baseline: of a run of ours its weights and their configuration, not what commands and readers
    leave beside them later; of another layout all."""
    if (folder / WEIGHTS).exists():
        return [folder / CONFIG, folder / WEIGHTS]
    return sorted(path for path in [folder, *folder.glob("*"), *folder.glob("checkpoints/*.pt")] if path.is_file())


def key_of(run: Path, store: Store, config: CompareConfig | None, beside: Sequence[Path] = ()) -> str:
    """Changes whenever a result would: the run's weights, the held-out shards, what is measured and compared with.

    beside: other files that the result depends on.
    """
    digest = xxhash.xxh3_128((run / WEIGHTS).read_bytes())
    digest.update(DEFINITIONS.to_bytes())
    digest.update(repr(what_is_measured()).encode())
    for side in (store, store.target):
        for shard in [] if side is None else side.manifest.of_split("heldout"):
            digest.update(shard.xxh3_128.encode())
        if side is not None and side.manifest.metric is not None:
            digest.update(side.manifest.metric.xxh3_128.encode())
        if side is not None and side.manifest.mlp is not None:
            digest.update(side.manifest.mlp.xxh3_128.encode())
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
        for path in files_of_transcoder(folder):
            digest.update(path.read_bytes())
    for path in beside:
        digest.update(f"{path.parent}".encode())
        hash_file(digest, path)
    return digest.hexdigest()


def is_done(kind: type[Measurement] | type[Comparison], path: Path, key: str) -> bool:
    """Whether the results at `path` are those of `key`. Damaged when they cannot be read."""
    if not path.exists() or not path.with_name(REPORT).exists():
        return False
    command = "metrics" if kind is Measurement else "compare"
    return read_result(kind, path, command_line("evaluate", command, run=path.parent.parent, force=True)).key == key


def read_comparison(folder: Path) -> Comparison:
    """The comparison in a folder. Damaged when it cannot be read."""
    return read_result(Comparison, folder / COMPARISON, command_line("evaluate", "compare", run=folder.parent, force=True))


def publish(
    folder: Path,
    measured: Sequence[Measurement],
    store: Store,
    run: Path,
    winners: Mapping[str, str] = {},
    checks: Sequence[Check] = (),
    said: str = "",
) -> None:
    """Writes summary.txt, report.md and report.html.

    Args:
        folder: where they go.
        measured: a column of the tables each.
        store: the store on which they were measured.
        run: the folder with the training log.
        winners: of a comparison, by metric.
        checks: of a comparison.
        said: the last lines of summary.txt, where there are any.
    """
    write_text(folder / SUMMARY, summary(measured, store, winners) + (f"{said}\n" if said else ""))
    write_text(folder / REPORT_MARKDOWN, markdown(measured, store, winners))
    write_report(folder / REPORT, measured, store, run, winners, checks)


def show(folder: Path) -> Path:
    """Prints the table in a folder."""
    print((folder / SUMMARY).read_text())
    return folder


def write_json(path: Path, result: Result) -> None:
    """Writes a result as people and programs read it."""
    write_text(path, json.dumps(result.as_json(), indent=1) + "\n")
