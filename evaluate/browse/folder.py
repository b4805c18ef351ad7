"""What the browser shows: the runs under a results folder and their features, read when asked for, never written."""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from evaluate.estimates import check_result
from evaluate.features.reader import Features, NotFound, open_features
from evaluate.labels import shown_in
from evaluate.metrics.measurement import Measurement
from store.errors import Damaged
from store.layout import (
    ANALYSIS,
    COLLECTION_SUMMARY,
    COMPARISON_FOLDER,
    CONFIG,
    EVALUATION,
    FEATURES,
    METRICS,
    OURS_METRICS,
    REPORT,
    SAMPLES,
    TRAIN_CONFIG,
    TRAINING_LOG,
    WEIGHTS,
)

REPORTS = (EVALUATION, COMPARISON_FOLDER, ANALYSIS)

FILES = (
    CONFIG, TRAIN_CONFIG, TRAINING_LOG, f"{EVALUATION}/{METRICS}", f"{COMPARISON_FOLDER}/{OURS_METRICS}",
    f"{SAMPLES}/{COLLECTION_SUMMARY}", *(f"{kind}/{REPORT}" for kind in REPORTS),
)  # fmt: skip


def read_json(path: Path) -> dict | None:
    """The file's content, None when there is none. Damaged when it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error}); make it again") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path} cannot be read (it holds no JSON object); make it again")
    return found


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. Whatever is missing or damaged in it is None or in `problems`, never an exception."""

    name: str
    """The folder, from the results folder on: what stands in URLs."""
    folder: Path
    config: dict
    metrics: dict | None
    log: list[dict]
    summary: dict | None
    problems: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.config.get("name") or self.name

    @property
    def has_features(self) -> bool:
        return self.summary is not None and (self.folder / SAMPLES / FEATURES).exists()

    @property
    def is_compared(self) -> bool:
        return COMPARISON_FOLDER in self.reports

    @property
    def reports(self) -> list[str]:
        return [kind for kind in REPORTS if (self.folder / kind / REPORT).exists()]

    def features(self) -> "Features":
        """NotFound before they are collected, Damaged when the samples cannot be read."""
        path = self.folder / SAMPLES / FEATURES
        if not path.exists():
            raise NotFound(f"{self.name} has no features yet; collect them with make features RUN={self.folder}")
        return open_features(path, path.stat().st_mtime_ns)


def run_folders(results: Path) -> dict[str, Path]:
    """Every folder that holds a run, finished or not, by its name: the only names that a URL can ask for."""
    found = {}
    for folder, inside, files in os.walk(results):
        inside[:] = sorted(name for name in inside if name not in (*REPORTS, SAMPLES))
        if WEIGHTS in files or TRAIN_CONFIG in files:
            place = Path(folder).relative_to(results)
            found[str(place) if place.parts else results.resolve().name] = Path(folder)  # "." is no name in a URL
    return found


def find_runs(results: Path) -> dict[str, RunFolder]:
    """Every run under a folder."""
    return {name: open_run(name, folder) for name, folder in run_folders(results).items()}


def open_run(name: str, folder: Path) -> RunFolder:
    """The run as it is now; read again only when a file of it has changed."""
    changed = tuple((folder / file).stat().st_mtime_ns if (folder / file).exists() else 0 for file in FILES)
    return read_run(name, folder, changed)


@functools.lru_cache(maxsize=256)
def read_run(name: str, folder: Path, changed: tuple[int, ...]) -> RunFolder:
    problems: list[str] = []

    def read(name: str) -> dict | None:
        try:
            return read_json(folder / name)
        except Damaged as damaged:
            problems.append(str(damaged))
            return None

    def measured(name: str, command: str) -> dict | None:
        """A file of metrics, checked; metrics that are shown are plain numbers."""
        values = read(name)
        if values is None:
            return None
        made_by = f"python -m evaluate {command} --run {folder} --force"
        try:
            found = check_result(Measurement, values, folder / name, made_by)
        except Damaged as damaged:
            problems.append(str(damaged))
            return None
        keys = [label.key for label in (*shown_in("runs"), *shown_in("run")) if found.has(label.key)]
        return found.as_json() | {key: found.value(key) for key in keys}

    config = read(CONFIG) or read(TRAIN_CONFIG) or {}
    metrics = measured(f"{EVALUATION}/{METRICS}", "metrics") or measured(f"{COMPARISON_FOLDER}/{OURS_METRICS}", "compare")
    log, path = [], folder / TRAINING_LOG
    if path.exists():
        try:
            log = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{path} cannot be read ({error})")
    return RunFolder(
        name=name, folder=folder, config=config,
        metrics=metrics, log=log,
        summary=read(f"{SAMPLES}/{COLLECTION_SUMMARY}"), problems=tuple(problems),
    )  # fmt: skip
