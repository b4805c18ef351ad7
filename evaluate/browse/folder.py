"""The runs under a results folder, as the browser shows them: read when a page asks for them."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evaluate.browse.exports import ArrayFigures, Exported, is_exported, read_export
from evaluate.estimates import read_result
from evaluate.features.reader import Features, NotFound, open_features
from evaluate.features.summary import CollectionSummary, read_summary
from evaluate.metrics.measurement import Measurement
from evaluate.notes.file import Note, read_notes
from evaluate.text import Number
from evaluate.training_log import read_log
from store.disk.suggest import command_line
from store.errors import Damaged, Refused
from store.layout import (
    ANALYSIS,
    COLLECTION_SUMMARY,
    COMPARISON_FOLDER,
    CONFIG,
    EVALUATION,
    FEATURES,
    METRICS,
    ORIGIN,
    OURS_METRICS,
    PUSHED,
    REPORT,
    SAMPLES,
    SWEEP_RESULTS,
    TRAIN_CONFIG,
    TRAINING_LOG,
    WEIGHTS,
)
from store.names import hub_name

T = TypeVar("T")

REPORTS = (EVALUATION, COMPARISON_FOLDER, ANALYSIS)
"""Folders of a run that may hold a report."""

FILES = (
    CONFIG,
    TRAIN_CONFIG,
    TRAINING_LOG,
    ORIGIN,
    f"../{SWEEP_RESULTS}",
    f"{EVALUATION}/{METRICS}",
    f"{COMPARISON_FOLDER}/{OURS_METRICS}",
    f"{SAMPLES}/{COLLECTION_SUMMARY}",
    *(f"{kind}/{REPORT}" for kind in REPORTS),
)
"""Files of a run that a page depends on: the run is read again when one of them changes."""


def read_config(path: Path) -> dict:
    """The content of a JSON file, empty when there is none. Damaged when the file holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error}); make it again") from None
    if not isinstance(content, dict):
        raise Damaged(f"{path} cannot be read (it holds no JSON object); make it again")
    return content


def read_metrics(folder: Path, file: str, command: str) -> Measurement | None:
    """The measurement in a file of a run; None when there is none. Damaged when the file holds no measurement.

    folder: the run's.
    file: below the folder.
    command: of `python -m evaluate`, which makes the file again.
    """
    if not (folder / file).exists():
        return None
    return read_result(Measurement, folder / file, command_line("evaluate", command, run=folder, force=True))


def read_swept(folder: Path) -> dict:
    """A run's figures in the summary of its sweep; empty for a run of no sweep. Damaged when the summary holds no list."""
    path = folder.parent / SWEEP_RESULTS
    if not path.exists():
        return {}
    try:
        each = json.loads(path.read_text(encoding="utf-8"))
        return next((figures for figures in each if figures["run"] == folder.name), {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({error}); give the same sweep again") from None


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. A missing file is None or empty, and a damaged file is in `problems`; neither is an exception."""

    name: str
    """Path of the folder below the results folder, as in URLs."""
    folder: Path
    config: dict
    """config.json, or train_config.json of an unfinished run."""
    training: dict
    """train_config.json; empty for a transcoder that was not trained here."""
    measured: Measurement | None
    """By `evaluate metrics`, or else by `evaluate compare`."""
    swept: dict
    """Its figures in the summary of the sweep that it belongs to; empty otherwise."""
    origin: dict
    """origin.json: the store that it was trained on; empty for runs of earlier versions."""
    log: list[dict[str, Any]]
    """Lines of the training log."""
    summary: CollectionSummary | None
    """Of its features."""
    problems: tuple[str, ...]
    """Messages about damaged files."""
    layout: str = ""
    """Of a transcoder in another project's files, which has weights alone; empty for a run."""
    arrays: tuple[ArrayFigures, ...] = ()
    """What its weights are like."""

    @property
    def title(self) -> str:
        """Its name in config.json, or else its folder."""
        return self.config.get("name") or self.name

    @property
    def figures(self) -> dict[str, Number]:
        """The run's metrics by key; before they are measured, the numbers of its configuration."""
        if self.measured:
            return self.measured.figures()
        if self.swept:
            return {key: value for key, value in self.swept.items() if isinstance(value, int | float)}
        return {key: value for key, value in self.config.items() if isinstance(value, int | float)}

    @property
    def trained_with(self) -> str:
        """What tells apart the runs of a sweep or over seeds: `lr 0.008, 200,000 rows, seed 0`; empty if unknown."""
        forms = {"lr": "lr {:g}", "tokens": "{:,} rows", "seed": "seed {}"}
        numbers = {key: value for key, value in self.training.items() if isinstance(value, int | float)}
        return ", ".join(form.format(numbers[key]) for key, form in forms.items() if key in numbers)

    @property
    def data(self) -> str:
        """The data set and the beginning of the store's fingerprint; empty where nothing says it."""
        recipe = self.origin.get("store", {}).get("recipe", {})
        dataset = recipe.get("dataset") or (self.summary.dataset if self.summary else "")
        fingerprint = self.config.get("store_fingerprint") or (self.summary.store_fingerprint if self.summary else "")
        return " ".join(filter(None, (dataset, (fingerprint or "")[:6])))

    @property
    def notes(self) -> Mapping[int, Note]:
        """By latent, its star, name and note; empty where the file is damaged, as `problem_of_notes` says."""
        return {} if self.problem_of_notes else read_notes(self.folder)

    @property
    def problem_of_notes(self) -> str:
        """What is wrong with the file of the notes; empty where nothing is."""
        try:
            read_notes(self.folder)
        except Damaged as damaged:
            return str(damaged)
        return ""

    @property
    def has_features(self) -> bool:
        return self.summary is not None and (self.folder / SAMPLES / FEATURES).exists()

    @property
    def has_weights(self) -> bool:
        """Whether commands can work on it: weights are not there before its training ends, and not fetched from the hub."""
        return (self.folder / WEIGHTS).exists()

    @property
    def is_unfinished(self) -> bool:
        """Whether its training has begun and not ended."""
        return bool(self.training) and self.training is self.config

    @property
    def is_compared(self) -> bool:
        return COMPARISON_FOLDER in self.reports

    @property
    def reports(self) -> list[str]:
        """The folders that hold a report."""
        return [kind for kind in REPORTS if (self.folder / kind / REPORT).exists()]

    def features(self) -> Features:
        """The collected features. NotFound before they are collected, Damaged when the samples cannot be read."""
        path = self.folder / SAMPLES / FEATURES
        if not path.exists():
            raise NotFound(f"{self.name} has no features yet; collect them with make features RUN={self.folder}")
        return open_features(path, path.stat().st_mtime_ns)


def run_folders(results: Path) -> dict[str, Path]:
    """Every folder that holds a run, finished or not, by its name: the only names that a URL can ask for.

    Where there is no run at all, every folder with a transcoder in another project's layout.
    """
    runs: dict[str, Path] = {}
    others: list[tuple[str, Path, list[str]]] = []
    for folder, inside, files in os.walk(results):
        inside[:] = sorted(name for name in inside if name not in (*REPORTS, SAMPLES, PUSHED))
        path = Path(folder).relative_to(results)
        name = str(path) if path.parts else root_name(results)  # "." is no name in a URL
        if WEIGHTS in files or TRAIN_CONFIG in files:
            runs[name] = Path(folder)
        else:
            others.append((name, Path(folder), files))
    return runs or {name: folder for name, folder, files in others if is_exported(folder, files)}


def root_name(results: Path) -> str:
    """What a run is called that lies in the results folder itself: the folder's name, or user/repo@commit of the hub's."""
    return (hub_name(results) or results.resolve().name).removeprefix("hf://")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not, or one of the hub's without its weights."""
    return (folder / WEIGHTS).exists() or (folder / TRAIN_CONFIG).exists()


def find_runs(results: Path) -> dict[str, RunFolder]:
    """Every run under a folder, by name."""
    return {name: open_folder(name, folder) for name, folder in run_folders(results).items()}


def open_named_run(results: Path, name: str) -> RunFolder:
    """The run of this name. NotFound unless a scan of the results folder finds it."""
    folders = run_folders(results)
    if name not in folders:
        raise NotFound(f"there is no run {name!r} under {results}")
    return open_folder(name, folders[name])


_known: dict[tuple[str, Path], tuple[tuple[int, ...], RunFolder]] = {}
"""Every run that was read, with the times of change of its files: as many as there are, each once."""


def open_folder(name: str, folder: Path) -> RunFolder:
    """The run as it is now; read again only when one of its files has changed."""
    paths = [folder / file for file in FILES] if is_run(folder) else sorted(folder.iterdir())
    changed = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)
    known = _known.get((name, folder))
    if known is None or known[0] != changed:
        known = _known[name, folder] = (changed, read_run(name, folder))
    return known[1]


def read_run(name: str, folder: Path) -> RunFolder:
    """The run in a folder, or the transcoder in another project's layout."""
    problems: list[str] = []

    def read(what: Callable[[], T], otherwise: T) -> T:
        try:
            return what()
        except (Damaged, Refused) as error:
            problems.append(str(error))
            return otherwise

    if not is_run(folder):
        found = read(lambda: read_export(folder), Exported("unknown", {}, ()))
        return RunFolder(
            name=name,
            folder=folder,
            config=found.config,
            training={},
            measured=None,
            swept={},
            origin={},
            log=[],
            summary=None,
            problems=tuple(problems),
            layout=found.layout,
            arrays=found.arrays,
        )
    training = read(lambda: read_config(folder / TRAIN_CONFIG), {})
    config = read(lambda: read_config(folder / CONFIG), {}) or training
    evaluated = read(lambda: read_metrics(folder, f"{EVALUATION}/{METRICS}", "metrics"), None)
    compared = read(lambda: read_metrics(folder, f"{COMPARISON_FOLDER}/{OURS_METRICS}", "compare"), None)
    return RunFolder(
        name=name,
        folder=folder,
        config=config,
        training=training,
        measured=evaluated or compared,
        swept=read(lambda: read_swept(folder), {}),
        origin=read(lambda: read_config(folder / ORIGIN), {}),
        log=read(lambda: read_log(folder), []),
        summary=read(lambda: read_summary(folder / SAMPLES), None),
        problems=tuple(problems),
    )
