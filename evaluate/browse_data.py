"""What the browser shows: the runs under a results folder and their features, read when asked for, never written."""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evaluate.config import PARQUET, SUMMARY
from store.command import CONFIG, WEIGHTS

REPORTS = ("evaluation", "comparison", "analysis")
FILES = (
    CONFIG, "train_config.json", "training_log.jsonl", "evaluation/metrics.json", "comparison/ours_metrics.json",
    f"activation_samples/{SUMMARY}", *(f"{kind}/report.html" for kind in REPORTS),
)  # fmt: skip
SCALARS = (
    "feature", "prefix", "fired", "density", "mean_activation", "max_activation", "max_cosine", "top_token", "example",
)  # fmt: skip
SORTS = ("feature", "prefix", "density", "mean_activation", "max_activation", "max_cosine", "top_token")


class Damaged(ValueError):
    """A file of a run that cannot be read."""


class NotFound(LookupError):
    """What was asked for does not exist."""


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
class Run:
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
        return self.summary is not None and (self.folder / "activation_samples" / PARQUET).exists()

    @property
    def reports(self) -> list[str]:
        return [kind for kind in REPORTS if (self.folder / kind / "report.html").exists()]

    def features(self) -> "Features":
        """NotFound before they are collected, Damaged when the samples cannot be read."""
        path = self.folder / "activation_samples" / PARQUET
        if not path.exists():
            raise NotFound(f"{self.name} has no features yet; collect them with make features RUN={self.folder}")
        return open_features(path, path.stat().st_mtime_ns)


def run_folders(results: Path) -> dict[str, Path]:
    """Every folder that holds a run, finished or not, by its name: the only names that a URL can ask for."""
    found = {}
    for folder, inside, files in os.walk(results):
        inside[:] = sorted(name for name in inside if name not in (*REPORTS, "activation_samples"))
        if WEIGHTS in files or "train_config.json" in files:
            place = Path(folder).relative_to(results)
            found[str(place) if place.parts else results.resolve().name] = Path(folder)  # "." is no name in a URL
    return found


def find_runs(results: Path) -> dict[str, Run]:
    """Every run under a folder."""
    return {name: open_run(name, folder) for name, folder in run_folders(results).items()}


def open_run(name: str, folder: Path) -> Run:
    """The run as it is now; read again only when a file of it has changed."""
    changed = tuple((folder / file).stat().st_mtime_ns if (folder / file).exists() else 0 for file in FILES)
    return read_run(name, folder, changed)


@functools.lru_cache(maxsize=256)
def read_run(name: str, folder: Path, changed: tuple[int, ...]) -> Run:
    problems: list[str] = []

    def read(name: str) -> dict | None:
        try:
            return read_json(folder / name)
        except Damaged as damaged:
            problems.append(str(damaged))
            return None

    config = read(CONFIG) or read("train_config.json") or {}
    metrics = read("evaluation/metrics.json") or read("comparison/ours_metrics.json")
    log, path = [], folder / "training_log.jsonl"
    if path.exists():
        try:
            log = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{path} cannot be read ({error})")
    return Run(
        name=name, folder=folder, config=config,
        metrics=metrics, log=log,
        summary=read(f"activation_samples/{SUMMARY}"), problems=tuple(problems),
    )  # fmt: skip


@functools.lru_cache(maxsize=8)
def open_features(path: Path, changed: int) -> "Features":
    """The features in a file, kept open while it does not change."""
    try:
        return Features(path)
    except (OSError, pa.ArrowException, KeyError) as error:
        again = f"make features RUN={path.parent.parent} ARGS=--force"
        raise Damaged(f"{path} cannot be read ({' '.join(str(error).split())}); make it again with {again}") from None


def _pattern(words: str) -> pc.MatchSubstringOptions:
    return pc.MatchSubstringOptions(words, ignore_case=True)


class Features:
    """features.parquet: the plain columns in memory, contexts read a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.file = pq.ParquetFile(path, memory_map=True)
        table = self.file.read(columns=list(SCALARS))
        self.example = table["example"].combine_chunks()
        self.columns = {name: table[name].to_numpy() for name in SCALARS if name != "example"}
        strongest = pc.call_function("struct_field", [self.example], pc.StructFieldOptions(["token"]))
        self.fires_on = (strongest, table["top_token"].combine_chunks())
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(groups)])
        self.search = functools.lru_cache(maxsize=32)(self._search)
        self.order = functools.lru_cache(maxsize=32)(self._order)

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def brief(self, latent: int) -> dict:
        """A latent's plain columns."""
        return {name: column[latent].item() if hasattr(column[latent], "item") else column[latent]
                for name, column in self.columns.items()} | {"example": self.example[latent].as_py()}  # fmt: skip

    def records(self, latents: Sequence[int], columns: Sequence[str] | None = None) -> list[dict]:
        """Whole rows (or some columns of them). Damaged when the file cannot be read there."""
        try:
            return [self._record(int(latent), columns) for latent in latents]
        except (OSError, pa.ArrowException) as error:
            raise Damaged(f"the samples of a feature cannot be read ({error}); make them again") from None

    def _record(self, latent: int, columns: Sequence[str] | None) -> dict:
        group = int(np.searchsorted(self.starts, latent, side="right")) - 1
        table = self.file.read_row_group(group, columns=list(columns) if columns else None)
        return table.slice(latent - int(self.starts[group]), 1).to_pylist()[0]

    def _search(self, words: str) -> np.ndarray:
        """How often each latent's contexts have this text, upper and lower case alike, and more where it is in the
        strongest or the top token; most of all where it is the latent's number."""
        parts = []
        for group in range(self.file.num_row_groups):
            text = self.file.read_row_group(group, columns=["text"])["text"]
            parts.append(pc.call_function("count_substring", [text], _pattern(words)).to_numpy())
        count = np.concatenate(parts)
        for tokens in self.fires_on:
            fires_on = pc.call_function("match_substring", [tokens], _pattern(words)).to_numpy(zero_copy_only=False)
            count = np.where(fires_on, count + count.max(initial=0), count)
        return np.where(self.columns["feature"].astype(str) == words, 1 + count.max(initial=0), count)

    def _order(self, by: str, descending: bool) -> np.ndarray:
        """Every latent, sorted by a column; ties in the order of the dictionary."""
        if by == "top_token":
            ranked = np.unique(self.columns["top_token"].astype(str), return_inverse=True)[1]
        else:
            ranked = self.columns[by]
        return np.argsort(-ranked if descending else ranked, kind="stable")

    def select(self, words: str = "", prefix: int = 0, by: str = "feature", descending: bool = False) -> np.ndarray:
        """The latents that fit, in order; `match` puts those that fire on the words first, then by how often they show."""
        mask = np.ones(len(self), bool)
        order = np.argsort(-self.search(words), kind="stable") if by == "match" else self.order(by, descending)
        if words:
            mask &= self.search(words) > 0
        if prefix:
            mask &= self.columns["prefix"] == prefix
        return order[mask[order]]
