"""Reads a map for the browser: the edges of a latent, and what its pre-activation is made of. Imports no torch."""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.circuit.summary import CircuitSummary, weights_hash
from evaluate.text import Number
from store.errors import Damaged
from store.layout import CIRCUIT_LATENTS, CIRCUIT_SUMMARY, EDGES, WEIGHTS

Latent = tuple[int, int]
"""Layer and number."""

KINDS = ("features", "error", "skip", "decoder_bias", "encoder_bias", "rest")


def open_circuit(folder: Path, summary: CircuitSummary) -> "Circuit":
    """The map in a folder, kept open while it does not change. Damaged when a file of it cannot be read."""
    return _open(folder, (folder / CIRCUIT_SUMMARY).stat().st_mtime_ns, summary.key)


@functools.lru_cache(maxsize=4)
def _open(folder: Path, changed: int, key: str) -> "Circuit":
    try:
        return Circuit(folder)
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = " ".join(str(error).split())
        raise Damaged(f"{folder} holds a map that cannot be read ({reason}); make it again with make circuit") from None


class Circuit:
    """The edges and the parts of all latents, in memory."""

    def __init__(self, folder: Path) -> None:
        self.edges = _columns(folder / EDGES)
        self.latents = _columns(folder / CIRCUIT_LATENTS)
        self.into = _Index(self.edges, "target_layer", "target", "reads")
        self.out = _Index(self.edges, "source_layer", "source", "writes")
        self.of_latent = _Index(self.latents, "layer", "latent", None)

    def reads(self, latent: Latent) -> list[dict]:
        """The strongest edges into a latent, the strongest first."""
        return [self._edge(row) for row in self.into.rows(latent)]

    def writes(self, latent: Latent) -> list[dict]:
        """The strongest edges out of a latent, the strongest first."""
        return [self._edge(row) for row in self.out.rows(latent)]

    def parts(self, latent: Latent) -> dict[str, Number]:
        """A latent's row of latents.parquet; empty for a latent that is not in the map."""
        rows = self.of_latent.rows(latent)
        return {name: values[rows[0]].item() for name, values in self.latents.items()} if rows else {}

    def _edge(self, row: int) -> dict:
        edge = {name: values[row].item() for name, values in self.edges.items()}
        edge["from"] = (edge["source_layer"], edge["source"])
        edge["to"] = (edge["target_layer"], edge["target"])
        return edge


def shares(parts: dict[str, Number]) -> dict[str, float]:
    """Each part's share of the rise of a latent's pre-activation above its mean over all tokens; empty where it never
    fires. They sum to 1."""
    if not parts.get("fired"):
        return {}
    rise = {kind: parts[kind] - parts[f"{kind}_everywhere"] for kind in KINDS}
    whole = sum(rise.values()) or 1.0
    return {kind: value / whole for kind, value in rise.items()}


def changed_weights(run: Path, recorded: str) -> bool:
    """Whether a run's weights are no longer those that a map was made from; also where they are gone."""
    try:
        found = (run / WEIGHTS).stat()
    except OSError:
        return True
    return _hash(run, found.st_mtime_ns, found.st_size) != recorded


@functools.lru_cache(maxsize=256)
def _hash(run: Path, changed: int, size: int) -> str:
    return weights_hash(run)


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet file; null is -1 among whole numbers and NaN among others."""
    table = pq.read_table(path)
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_integer(column.type):
            column = column.fill_null(-1)
        columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


class _Index:
    """The rows of each latent, by a rank where there is one; rows whose rank is negative are left out."""

    def __init__(self, columns: dict[str, np.ndarray], layer: str, latent: str, rank: str | None) -> None:
        key = columns[layer].astype(np.int64) << 32 | columns[latent]
        ranks = np.zeros(len(key), np.int32) if rank is None else columns[rank]
        chosen = np.flatnonzero(ranks >= 0)
        self.order = chosen[np.lexsort((ranks[chosen], key[chosen]))]
        self.keys = key[self.order]

    def rows(self, latent: Latent) -> list[int]:
        key = latent[0] << 32 | latent[1]
        first, last = np.searchsorted(self.keys, [key, key + 1])
        return self.order[first:last].tolist()
