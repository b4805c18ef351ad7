"""Facts of held-out rows that need no transcoder: their tokens, positions, documents and variation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
import xxhash
from jaxtyping import Float, Int
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

MEDIAN_ROWS = 2**20
"""Rows whose norms give the median that outliers are measured by; of more rows, every n-th."""

DOCUMENT_SUMS = 2**15
"""Sums that are kept by document, so that memory does not grow with rows. Of more documents, those whose numbers are equal
modulo this share one: the bootstrap then draws groups of documents, which are as independent as documents are."""


@dataclass(frozen=True)
class Places:
    """The token, position and document of some kept rows of a split, in the order on disk."""

    token: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    """In the model's context; BOS is at 0."""
    document: Int[Tensor, " rows"]
    """Numbered without gaps from 0."""

    def __len__(self) -> int:
        return len(self.token)

    def cut(self, rows: slice) -> "Places":
        """Some of these rows."""
        return Places(self.token[rows], self.position[rows], self.document[rows])

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> "Places":
        """The rows of all parts, in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def places(store: Store, split: Split, limit: int | None = None) -> Places:
    """Token, position and document of every kept row of a split, or of the first `limit`; 24 bytes a row."""
    return Places.joined(list(places_by_shard(store, split, limit)))


def places_by_shard(store: Store, split: Split, limit: int | None = None) -> Iterator[Places]:
    """The same, one shard after the other.

    Documents are joined by EOS, and BOS stands only in the first column. A document that goes on in a later shard is one.
    """
    begun = going_on(store.manifest.shards)
    n_raw = 0  # documents so far, those without a kept row too
    n_documents = 0
    last = -1
    for shard in store.manifest.of_split(split):
        if limit is not None and limit <= 0:
            return
        tokens = store.array(shard, "tokens").long()
        within = documents_of(tokens.numpy(), store.manifest.recipe.excluded_tokens)
        raw = torch.from_numpy(within).flatten() + (n_raw - 1 if shard.name in begun else n_raw)
        n_raw = int(raw[-1]) + 1
        index = store.array(shard, "token_index")[: shard.kept].long()[:limit]
        known, document = torch.unique(raw[index], return_inverse=True)
        if len(known):
            first = n_documents - int(known[0] == last)
            n_documents = first + len(known)
            last = int(known[-1])
            yield Places(tokens.flatten()[index], index % tokens.shape[1], document + first)
        if limit is not None:
            limit -= len(index)


class PlacesInOrder:
    """Places shard by shard, handed out in pieces of any length."""

    def __init__(self, parts: Iterator[Places]) -> None:
        self._parts = parts
        self._rest: list[Places] = []

    def take(self, rows: int) -> Places:
        """The places of the next rows."""
        while sum(map(len, self._rest)) < rows:
            self._rest.append(next(self._parts))
        all_of_them = Places.joined(self._rest)
        self._rest = [all_of_them.cut(slice(rows, None))]
        return all_of_them.cut(slice(rows))


@dataclass(frozen=True)
class Groups:
    """The sums that a row is part of: those of its document, of its position and of its token's rank.

    Bands that hold no row are kept here, and left out of results.
    """

    n_rows: int
    n_documents: int
    rank: Int[Tensor, " vocabulary"]
    """Of each token by how often it occurs in these rows; 1 is the commonest."""
    digest: str
    """Differs when any row, or the order, does."""

    @classmethod
    def of(cls, store: Store, split: Split, limit: int | None = None) -> "Groups":
        """The groups of the rows of a split, or of the first `limit`; reads the tokens, and no activations."""
        counts = torch.zeros(0, dtype=torch.int64)
        digest = xxhash.xxh3_128()
        n_documents = 0
        n_rows = 0
        for part in places_by_shard(store, split, limit):
            here = torch.bincount(part.token, minlength=len(counts))
            here[: len(counts)] += counts
            counts = here
            n_documents = int(part.document.max()) + 1
            n_rows += len(part)
        for field in fields(Places):
            for part in places_by_shard(store, split, limit):
                digest.update(getattr(part, field.name).numpy().tobytes())
        return cls(n_rows, n_documents, ranks_of(counts), digest.hexdigest())

    @property
    def documents(self) -> int:
        """Sums by document, or by group of documents; they come first."""
        return min(self.n_documents, DOCUMENT_SUMS)

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """The names of the bands by kind, in the order of their sums; the first of each kind is of rows in none."""
        return {"position": band_names(POSITION_EDGES), "token_rank": band_names(RANK_EDGES)}

    def first_of(self, kind: str) -> int:
        """Where the sums of a kind's bands begin, counted from the end of those by document."""
        kinds = list(self.bands)
        return sum(len(self.bands[each]) for each in kinds[: kinds.index(kind)])

    def __len__(self) -> int:
        return self.documents + sum(map(len, self.bands.values()))

    def index(self, rows: Places) -> Int[Tensor, "3 rows"]:
        """The sums that each row is added to."""
        position = torch.bucketize(rows.position, torch.tensor((1, *POSITION_EDGES)), right=True)
        rank = torch.bucketize(self.rank[rows.token], torch.tensor((1, *RANK_EDGES)), right=True)
        first = self.documents
        bands = [first + self.first_of("position") + position, first + self.first_of("token_rank") + rank]
        return torch.stack([rows.document % first, *bands])

    def add(self, sums: Tensor, rows: Places, values: Float[Tensor, "rows ..."]) -> None:
        """Adds the values of some rows to their sums, row after row."""
        for group in self.index(rows):
            sums.index_add_(0, group, values)


def band_names(edges: tuple[int, ...]) -> tuple[str, ...]:
    """The band of numbers below 1, which has no name, then `1-3`, `4-15`, ..., `1024+`."""
    starts = (1, *edges)
    return ("", *(f"{start}-{stop - 1}" for start, stop in pairwise(starts)), f"{starts[-1]}+")


def ranks_of(counts: Int[Tensor, " vocabulary"]) -> Int[Tensor, " vocabulary"]:
    """Rank of each token by how often it occurs; 1 is the commonest."""
    rank = torch.empty_like(counts)
    rank[counts.argsort(descending=True, stable=True)] = torch.arange(1, len(counts) + 1)
    return rank


@dataclass(frozen=True)
class RowStatistics:
    """What every transcoder's figures are measured against; float64 sums by document."""

    groups: Groups
    rows: Float[Tensor, " documents"]
    inliers: Float[Tensor, " documents"]
    """Rows that are no outliers."""
    variation: Float[Tensor, " documents"]
    """|y - ybar|^2, ybar the mean of each dimension over all these rows."""
    variation_inliers: Float[Tensor, " documents"]
    """The same for rows that are not outliers, scaled so that the sum is exactly that about the inliers' own mean."""
    scalar_variation: Float[Tensor, " documents"]
    """The squares about one mean over all entries: the denominator of older FVUs."""
    band_rows: Float[Tensor, " bands"]
    band_variation: Float[Tensor, " bands"]
    by_dimension: Float[Tensor, " d_out"]
    """Sum of (y - ybar)^2 over rows, by dimension."""
    squares: float
    """Sum of y^2 over all rows and dimensions."""
