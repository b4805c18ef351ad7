"""Collected features as both tools want them: contexts in groups, without tokens that were not measured."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from evaluate.features.reader import Features, open_features
from evaluate.features.summary import CollectionSummary, read_summary
from store.errors import Damaged, Refused
from store.layout import FEATURES, SAMPLES

COLUMNS = ("feature", "density", "max_activation", "histogram", "promoted", "suppressed", "contexts")
"""What the files of other tools are made of."""

GROUPS = (0, 5, 4, 3, 2, 1)
"""`quantile` of contexts, in the order shown: the strongest first, then the samples from strong to weak."""


@dataclass(frozen=True)
class Collected:
    """A run whose features are collected."""

    run: Path
    summary: CollectionSummary
    features: Features

    def records(self) -> Iterator[dict[str, Any]]:
        """The record of every latent, in order, with COLUMNS alone. Damaged where the file cannot be read."""
        file = self.features.file
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=list(COLUMNS))
            except (OSError, pa.ArrowException) as error:
                again = f"make features RUN={self.run} ARGS=--force"
                raise Damaged(f"{self.features.path} cannot be read ({error}); make it again with {again}") from None
            yield from table.to_pylist()


def open_collected(run: Path) -> Collected:
    """The collected features of a run. Refused, naming the command that collects them, where there are none."""
    path = run / SAMPLES / FEATURES
    summary = read_summary(run / SAMPLES)
    if summary is None or not path.exists():
        raise Refused(f"{run} has no collected features; collect them with make features RUN={run}")
    return Collected(run, summary, open_features(path, path.stat().st_mtime_ns))


def groups_of(record: dict[str, Any]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The contexts of a latent by group, without empty groups."""
    for quantile in GROUPS:
        contexts = [context for context in record["contexts"] if context["quantile"] == quantile]
        if contexts:
            yield quantile, contexts


def activations_of(context: dict[str, Any]) -> list[float]:
    """Activations of a context's tokens to five digits; 0 on tokens that are not measured, such as BOS."""
    return [0.0 if value is None or math.isnan(value) else float(f"{value:.5g}") for value in context["activations"]]
