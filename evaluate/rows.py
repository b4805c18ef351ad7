"""Facts of each held-out row that need no transcoder: its token, position, document and variation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from store.loader.batches import Batch, batches
from store.shards.documents import documents_of
from store.shards.manifest import Split, going_on
from store.shards.reader import Store

FIRST_ROWS = 8192
"""Held-out rows used for slow measurements: the first ones on disk."""


def rows_in_order(
    store: Store,
    split: Split,
    rows: int,
    device: torch.device,
    label: str,
    limit: int | None = None,
    sites: tuple[str, str] = ("resid_mid", "mlp_out"),
    quiet: bool = False,
) -> Iterator[Batch]:
    """Every kept row of a split (or the first `limit`) once, raw, as stored, under a progress bar."""
    stop = store.manifest.n_rows(split)
    if limit is not None:
        stop = min(stop, limit)
    with tqdm(total=stop, unit="row", unit_scale=True, desc=label, disable=quiet) as bar:
        for batch in batches(store, split, rows, view="raw", sites=sites, device=device, stop=stop, shuffle=False):
            yield batch
            bar.update(len(batch.source))


OUTLIER = 5.0
"""Rows whose resid_mid norm is above this many times the median norm are outliers (attention sinks, mostly)."""

POSITION_EDGES = (4, 16, 64, 256, 1024)

RANK_EDGES = (11, 101, 1001, 10_001)


@dataclass(frozen=True)
class Places:
    """The token, position and document of each kept row of a split, in the order on disk."""

    token: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    """In the model's context; BOS is at 0."""
    document: Int[Tensor, " rows"]
    """Numbered without gaps from 0."""

    @property
    def digest(self) -> str:
        """Differs when any row, or the order, does."""
        return xxhash.xxh3_128(torch.stack([self.token, self.position, self.document]).numpy().tobytes()).hexdigest()


def places(store: Store, split: Split, limit: int | None = None) -> Places:
    """Token, position and document of every kept row of a split, or of the first `limit`.

    Documents are joined by EOS, and BOS stands only in the first column. A document that goes on in a later shard is one.
    """
    begun = going_on(store.manifest.shards)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    n_documents = 0
    for shard in store.manifest.of_split(split):
        tokens = store.array(shard, "tokens").long()
        within = documents_of(tokens.numpy(), store.manifest.recipe.excluded_tokens)
        first = n_documents - 1 if shard.name in begun else n_documents
        number = torch.from_numpy(within).flatten() + first
        index = store.array(shard, "token_index")[: shard.kept].long()
        found.append((tokens.flatten()[index], index % tokens.shape[1], number[index]))
        n_documents = int(number[-1]) + 1
    token, position, document = (torch.cat(parts)[:limit] for parts in zip(*found, strict=True))
    return Places(token, position, torch.unique(document, return_inverse=True)[1])


@dataclass(frozen=True)
class RowStatistics:
    """What every transcoder's figures are measured against; float64, by row."""

    places: Places
    inlier: Bool[Tensor, " rows"]
    variation: Float[Tensor, " rows"]
    """|y - ybar|^2, ybar the mean of each dimension over all these rows."""
    variation_inliers: Float[Tensor, " rows"]
    """The same for rows that are not outliers, scaled so that the sum is exactly that about the inliers' own mean."""
    scalar_variation: Float[Tensor, " rows"]
    """The squares about one mean over all entries: the denominator of older FVUs."""
    by_dimension: Float[Tensor, " d_out"]
    """Sum of (y - ybar)^2 over rows, by dimension."""
    squares: float
    """Sum of y^2 over all rows and dimensions."""


def bands(values: Int[Tensor, " rows"], edges: tuple[int, ...]) -> dict[str, Bool[Tensor, " rows"]]:
    """Rows by the band in which a whole number lies: `1-3`, `4-15`, ...; empty bands are left out."""
    starts = [1, *edges]
    found = {}
    for start, stop in zip(starts, [*edges, None], strict=True):
        inside = (values >= start) & (values < stop) if stop else values >= start
        if inside.any():
            found[f"{start}-{stop - 1}" if stop else f"{start}+"] = inside
    return found


def token_rank(token: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Rank of each row's token by how often it occurs in these rows; 1 is the commonest."""
    counts = torch.bincount(token)
    rank = torch.empty_like(counts)
    rank[counts.argsort(descending=True, stable=True)] = torch.arange(1, len(counts) + 1)
    return rank[token]
