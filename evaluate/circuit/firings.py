"""The first stage of a map: the held-out rows -> files of active latents, and sums of the parts by latent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from safetensors import safe_open
from tqdm import tqdm

from evaluate.circuit.layers import CircuitLayer
from evaluate.circuit.parts import LayerRows, biases_into, parts_into, read_everywhere, rows_in_step, split
from store.disk.files import write_tensors
from store.shards.manifest import ShardEntry

CHUNK_ROWS = 32_768
"""Most rows of a file: what a killed command may have to read again."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one shard whose firings lie in one file."""

    shard: ShardEntry
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.shard.name.partition('.')[0]}-{self.start}.safetensors"


def chunks_of(shards: Sequence[ShardEntry], limit: int | None) -> list[Chunk]:
    """The kept rows of some shards, or the first `limit` of them, cut into chunks."""
    left = sum(shard.kept for shard in shards) if limit is None else limit
    chunks = []
    for shard in shards:
        stop = min(shard.kept, left)
        chunks += [Chunk(shard, start, min(start + CHUNK_ROWS, stop)) for start in range(0, stop, CHUNK_ROWS)]
        left -= stop
    return chunks


def read_chunks(layers: Sequence[CircuitLayer], chunks: Sequence[Chunk], folder: Path, rows: int) -> None:
    """Writes the file of each chunk that has none yet, under a progress bar."""
    total = sum(chunk.stop - chunk.start for chunk in chunks)
    with tqdm(total=total, unit="token", unit_scale=True, desc="reading") as bar:
        for chunk in chunks:
            if (folder / chunk.file).exists():
                bar.update(chunk.stop - chunk.start)
            else:
                write_tensors(folder / chunk.file, chunk_arrays(layers, chunk, rows, bar))


def chunk_arrays(layers: Sequence[CircuitLayer], chunk: Chunk, rows: int, bar: tqdm) -> dict[str, torch.Tensor]:
    """The arrays of a chunk's file.

    N.value, N.latent, N.row: the active latents of layer N, rows counted from the chunk's first.
    N.scale: of each row.
    N.parts: sums over a latent's firings, in the order of `parts_into`.
    N.everywhere: the same over all rows.
    gap: the largest difference of an activation from the sum of its parts, over the sum of their sizes.
    """
    device = layers[0].reader.encoder.device
    found: list[list[HostRows]] = [[] for _ in layers]
    sums = [np.zeros((len(parts_into(layers, m)), layer.transcoder.config.d_sae)) for m, layer in enumerate(layers)]
    everywhere = [
        torch.zeros(len(its_sums) - 1, layers[0].transcoder.config.d_out, dtype=torch.float64) for its_sums in sums
    ]
    biases = [biases_into(layers, target) for target in range(len(layers))]
    gap = 0.0
    done = 0
    for batch in rows_in_step(layers, chunk.shard, chunk.start, chunk.stop, rows, device):
        for target, read in enumerate(batch):
            found[target].append(HostRows.of(read, done))
            parts = split(layers, batch, target, biases[target])
            latent = read.entries.latent.cpu().numpy()
            values = [part.cpu().double().numpy() for part in parts.values()]
            for its_sums, value in zip(sums[target], values, strict=True):
                its_sums += np.bincount(latent, weights=value, minlength=len(its_sums))
            everywhere[target] += read_everywhere(layers, batch, target).cpu()
            gap = max(gap, largest_gap(read.entries.value.cpu().double().numpy(), values))
        done += len(batch[0].scale)
        bar.update(len(batch[0].scale))
    arrays = {"gap": torch.tensor([gap], dtype=torch.float64)}
    for layer, its_rows, its_sums, vectors in zip(layers, found, sums, everywhere, strict=True):
        for name in ("value", "latent", "row", "scale"):
            arrays[f"{layer.layer}.{name}"] = torch.cat([getattr(part, name) for part in its_rows])
        arrays[f"{layer.layer}.parts"] = torch.from_numpy(its_sums)
        from_vectors = vectors @ layer.reader.encoder.cpu().double().T
        arrays[f"{layer.layer}.everywhere"] = torch.cat([from_vectors, done * layer.reader.bias.cpu().double()[None]])
    return arrays


@dataclass(frozen=True)
class HostRows:
    """What is kept of one layer at some rows."""

    value: torch.Tensor
    latent: torch.Tensor
    row: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, read: LayerRows, first_row: int) -> "HostRows":
        entries = read.entries
        return cls(
            value=entries.value.cpu(),
            latent=entries.latent.int().cpu(),
            row=(entries.row + first_row).int().cpu(),
            scale=read.scale.cpu(),
        )


def largest_gap(activation: np.ndarray, parts: Sequence[np.ndarray]) -> float:
    """The largest |activation - sum of parts| / sum of |parts|; 0 without activations."""
    if not len(activation):
        return 0.0
    sizes = sum(np.abs(part) for part in parts)
    return float(np.max(np.abs(activation - sum(parts)) / sizes))


@dataclass(frozen=True)
class LayerSums:
    """One layer's sums over all rows of a map, by latent."""

    fired: np.ndarray
    """int64 [d_sae]: rows on which each latent is active."""
    activation: np.ndarray
    """float64 [d_sae]: of its activations."""
    parts: np.ndarray
    """float64 [parts, d_sae]: of the parts of its pre-activation where it is active, as `parts_into` lists them."""
    everywhere: np.ndarray
    """float64 [parts, d_sae]: of the same over all rows."""
    rows: int


@dataclass(frozen=True)
class LayerFirings:
    """Every firing of one layer on all rows of a map."""

    latents: scipy.sparse.csr_array
    """[rows, d_sae], float32."""
    scale: np.ndarray
    """float32 [rows]."""
    sums: LayerSums


def load_firings(layer: CircuitLayer, chunks: Sequence[Chunk], folder: Path) -> LayerFirings:
    """The firings of a layer from the files of all chunks."""
    values: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    parts = []
    everywhere = []
    n_rows = 0
    for chunk in chunks:
        with safe_open(folder / chunk.file, "numpy") as file:
            values.append(file.get_tensor(f"{layer.layer}.value"))
            latents.append(file.get_tensor(f"{layer.layer}.latent"))
            rows.append(file.get_tensor(f"{layer.layer}.row") + n_rows)
            scales.append(file.get_tensor(f"{layer.layer}.scale"))
            parts.append(file.get_tensor(f"{layer.layer}.parts"))
            everywhere.append(file.get_tensor(f"{layer.layer}.everywhere"))
        n_rows += len(scales[-1])
    places = (np.concatenate(rows), np.concatenate(latents))
    shape = (n_rows, layer.transcoder.config.d_sae)
    matrix = scipy.sparse.csr_array((np.concatenate(values), places), shape=shape)
    sums = LayerSums(
        fired=np.bincount(matrix.indices, minlength=shape[1]),
        activation=np.bincount(matrix.indices, weights=matrix.data, minlength=shape[1]),
        parts=np.sum(parts, axis=0),
        everywhere=np.sum(everywhere, axis=0),
        rows=n_rows,
    )
    return LayerFirings(matrix, np.concatenate(scales), sums)


def gap_in(chunks: Sequence[Chunk], folder: Path) -> float:
    """The largest gap of all chunks."""
    gaps = []
    for chunk in chunks:
        with safe_open(folder / chunk.file, "numpy") as file:
            gaps.append(float(file.get_tensor("gap")[0]))
    return max(gaps)
