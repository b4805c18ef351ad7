"""The second stage of a map: what each latent of one layer adds to each of a later one, summed over tokens; the strongest.

A contribution factorises: a_i(t) / scale(t) times the virtual weight W_dec_i . W_enc_j. So the sum over tokens is the
virtual weight times a sum of activations, which comes from the tokens at which both are active. Every sum is exact, in
float64; no matrix of all pairs exists, only a block of targets at a time.
"""

from dataclasses import dataclass, fields

import numpy as np
import scipy.sparse
import torch
from tqdm import tqdm

from evaluate.circuit.firings import LayerFirings
from evaluate.circuit.layers import CircuitLayer
from store.sparse.kernels import compiled, in_parallel

BLOCK = 256
"""Target latents whose sums are in memory at once."""


@dataclass(frozen=True)
class PairEdges:
    """Edges between two layers, an entry each."""

    source: np.ndarray
    """int32: latent of the earlier layer."""
    target: np.ndarray
    """int32: latent of the later layer."""
    total: np.ndarray
    """float64: sum of the contribution over tokens at which the target is active."""
    weighted: np.ndarray
    """float64: the same, each token weighted by the target's activation."""
    count: np.ndarray
    """int64: tokens at which both are active."""
    weight: np.ndarray
    """float32: the virtual weight."""
    everywhere: np.ndarray
    """float64: sum of the contribution over all tokens."""

    def take(self, index: np.ndarray) -> "PairEdges":
        return PairEdges(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: list["PairEdges"]) -> "PairEdges":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@compiled
def co_activations(
    first, last, base, starts, rows, values, scale, source_starts, sources, activations, sums, weighted, count
):
    """Adds up, for targets `first` to `last`, over the rows at which each is active, every source's activation there.

    base: the target of the first row of sums, weighted and count.
    starts, rows, values: by target, the rows at which it is active, and its activations.
    scale: by row, of the target layer's view.
    source_starts, sources, activations: by row, the active sources and their activations.
    sums, weighted, count: [targets, sources], zero before; weighted by the target's activation; rows.
    """
    for target in range(first, last):
        place = target - base
        for entry in range(starts[target], starts[target + 1]):
            row = rows[entry]
            for k in range(source_starts[row], source_starts[row + 1]):
                source = sources[k]
                scaled = np.float64(activations[k]) * scale[row]
                sums[place, source] += scaled
                weighted[place, source] += scaled * values[entry]
                count[place, source] += 1


def strongest(edges: PairEdges, by: np.ndarray, keep: int) -> np.ndarray:
    """int64 [kept]: which edges are among the `keep` strongest of their latent, sorted by latent, the strongest first.

    by: the latent of each edge that its edges are kept for.
    """
    order = np.lexsort((edges.source, edges.target, -np.abs(edges.total), by))
    return order[rank_within(by[order]) < keep]


def rank_within(groups: np.ndarray) -> np.ndarray:
    """The number of each entry within its run of equal groups, from 0."""
    begins = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    lengths = np.diff(np.r_[begins, len(groups)])
    return np.arange(len(groups)) - np.repeat(begins, lengths)


class StrongestOut:
    """The strongest edges out of each source, from blocks of targets that are added one after the other."""

    def __init__(self, sources: int, keep: int) -> None:
        self.keep = keep
        self.parts: list[PairEdges] = []
        self.held = 0
        self.floor = np.zeros(sources)
        """An edge out of a source must be larger than this to be among the strongest known so far."""

    def candidates(self, size: np.ndarray) -> np.ndarray:
        """bool: which of the sizes [targets, sources] may be among the strongest of their source."""
        if self.parts:
            return size > self.floor
        largest = torch.from_numpy(size).topk(min(self.keep, len(size)), dim=0).values[-1].numpy()
        return (size >= largest) & (size > 0)

    def add(self, edges: PairEdges) -> None:
        self.parts.append(edges)
        self.held += len(edges.source)
        if len(self.parts) == 1 or self.held > 3 * self.keep * len(self.floor):
            self.take()

    def take(self) -> PairEdges:
        """The strongest so far; all others are forgotten."""
        joined = PairEdges.joined(self.parts)
        kept = joined.take(strongest(joined, joined.source, self.keep))
        last = kept.take(np.flatnonzero(rank_within(kept.source) == self.keep - 1))
        self.floor[last.source] = np.abs(last.total)
        self.parts = [kept]
        self.held = len(kept.source)
        return kept


def pair_edges(
    source: CircuitLayer, target: CircuitLayer, wrote: LayerFirings, read: LayerFirings, keep: int, bar: tqdm
) -> tuple[PairEdges, PairEdges, np.ndarray]:
    """The strongest edges into each target, those out of each source, and the sum of all contributions to each target.

    wrote, read: the firings of source and target.
    keep: edges for each latent.
    bar: is advanced by target latents.
    """
    by_target = scipy.sparse.csc_array(read.latents)
    activity = wrote.latents.T @ read.scale.astype(np.float64)
    d_sae = target.transcoder.config.d_sae
    reads: list[PairEdges] = []
    writes = StrongestOut(source.transcoder.config.d_sae, keep)
    total = np.zeros(d_sae)
    for first in range(0, d_sae, BLOCK):
        last = min(first + BLOCK, d_sae)
        block = block_sums(source, target, wrote, by_target, read, (first, last))
        total[first:last] = block.total.sum(1)
        size = np.abs(block.total)
        least = torch.from_numpy(size).topk(min(keep, size.shape[1]), dim=1).values[:, -1:].numpy()
        into = block.edges((size >= least) & (size > 0), activity)
        reads.append(into.take(strongest(into, into.target, keep)))
        writes.add(block.edges(writes.candidates(size), activity))
        bar.update(last - first)
    return PairEdges.joined(reads), writes.take(), total


@dataclass(frozen=True)
class BlockSums:
    """The sums of a block of targets, [targets, sources]."""

    first: int
    """The first target."""
    total: np.ndarray
    weighted: np.ndarray
    """Without the virtual weight."""
    count: np.ndarray
    virtual: np.ndarray

    def edges(self, chosen: np.ndarray, activity: np.ndarray) -> PairEdges:
        """The chosen ones; a contribution of exactly 0 is no edge.

        chosen: bool [targets, sources].
        activity: by source, the sum of its activations over all tokens, as the targets' layer scales them.
        """
        at = np.nonzero(chosen)
        place, latent = at
        return PairEdges(
            source=latent.astype(np.int32),
            target=(place + self.first).astype(np.int32),
            total=self.total[at],
            weighted=self.weighted[at] * self.virtual[at],
            count=self.count[at].astype(np.int64),
            weight=self.virtual[at],
            everywhere=activity[latent] * self.virtual[at],
        )


def block_sums(
    source: CircuitLayer,
    target: CircuitLayer,
    wrote: LayerFirings,
    by_target: scipy.sparse.csc_array,
    read: LayerFirings,
    block: tuple[int, int],
) -> BlockSums:
    """The sums of targets `block[0]` to `block[1]`.

    source, target: the two layers.
    wrote, read: their firings.
    by_target: those of the target, by latent.
    block: of targets.
    """
    first, last = block
    shape = (last - first, source.transcoder.config.d_sae)
    sums = np.zeros(shape)
    weighted = np.zeros(shape)
    count = np.zeros(shape, np.int32)

    def add(start: int, stop: int) -> None:
        co_activations(
            first + start,
            first + stop,
            first,
            by_target.indptr,
            by_target.indices,
            by_target.data,
            read.scale,
            wrote.latents.indptr,
            wrote.latents.indices,
            wrote.latents.data,
            sums,
            weighted,
            count,
        )

    in_parallel(add, last - first)
    virtual = (target.reader.encoder[first:last] @ source.transcoder.W_dec.T).cpu().numpy()
    return BlockSums(first, sums * virtual, weighted, count, virtual)
