"""Collects features in one pass over a split: counts, histograms and contexts of every latent, exact and resumable."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from evaluate.features.config import FeaturesConfig
from evaluate.features.contexts import Contexts, best_of_documents, sampling_key
from evaluate.features.firings import Firings, firings_of
from evaluate.lens import Lens
from store.devices import resolve_device
from store.disk.files import hash_file, write_tensors
from store.errors import Damaged
from store.layout import COLLECTION_STATE, WEIGHTS
from store.shards.manifest import ShardEntry
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

SAVE_SECONDS = 120.0
"""Seconds between two saves of an unfinished collection."""

BINS = 160
"""Bins of the histogram. Bin b begins at 2^(b / 4 - 12) and is a quarter of an octave wide; the outer bins are open."""

BINS_AN_OCTAVE = 4

LOWEST_OCTAVE = -12

MOST_PAIRS = 50_000_000
"""(latent, token) pairs counted at most; with more, each latent keeps its pairs with the largest sums of activations."""

TOKENS_KEPT = 64
"""Tokens kept of each latent when there are too many pairs."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """The counts and contexts gathered so far. `plus` makes a new one, so an interrupt never leaves half a shard in it."""

    key: str
    """Digest of weights, shards and options: a saved collection with another key is not continued."""
    shards: int
    """Shards of the split that have been added."""
    rows: int
    """Rows of these shards."""
    fired: np.ndarray
    """int64: rows on which it is active, by latent."""
    total: np.ndarray
    """float64: sum of activations, by latent."""
    histogram: np.ndarray
    """int32 [d_sae, BINS]: counts of activations."""
    token_pair: np.ndarray
    """int64, sorted: latent * vocabulary + token, of every pair that occurred."""
    token_count: np.ndarray
    """int64: rows on which the pair occurred."""
    token_total: np.ndarray
    """float64: sum of activations on these rows."""
    pruned: bool
    """Whether pairs were dropped because there were too many."""
    paired_row: np.ndarray
    """int32: the row of every firing in the first rows, from which co-activation is counted."""
    paired_latent: np.ndarray
    """int32: the latent of each of these firings."""
    paired_rows: int
    """How many these first rows are."""
    top: Contexts = field(default_factory=Contexts.empty)
    """The strongest contexts of each latent, one a document."""
    sample: Contexts = field(default_factory=Contexts.empty)
    """Firings of each latent, drawn at random."""

    @classmethod
    def begin(cls, key: str, d_sae: int) -> "Collection":
        """A collection of no shards."""
        return cls(
            key=key,
            shards=0,
            rows=0,
            fired=np.zeros(d_sae, np.int64),
            total=np.zeros(d_sae),
            histogram=np.zeros((d_sae, BINS), np.int32),
            token_pair=np.zeros(0, np.int64),
            token_count=np.zeros(0, np.int64),
            token_total=np.zeros(0),
            pruned=False,
            paired_row=np.zeros(0, np.int32),
            paired_latent=np.zeros(0, np.int32),
            paired_rows=0,
        )

    def plus(self, firings: Firings, config: FeaturesConfig, vocabulary: int) -> "Collection":
        """This collection with one more shard."""
        d_sae = len(self.fired)
        pair, count, total = count_tokens(self, firings, vocabulary)
        too_many = len(pair) > MOST_PAIRS
        if too_many:
            pair, count, total = most_active(pair, count, total, vocabulary)
        value = firings.value.astype(np.float64)
        bins = np.bincount(firings.latent.astype(np.int64) * BINS + bin_of(firings.value), minlength=d_sae * BINS)
        strongest = best_of_documents(firings)
        everything = np.arange(len(value))
        random_key = sampling_key(firings, self.shards)
        row, latent, rows = paired(self, firings, config.coactivation_rows)
        return dataclasses.replace(
            self,
            shards=self.shards + 1,
            rows=self.rows + firings.rows,
            fired=self.fired + np.bincount(firings.latent, minlength=d_sae),
            total=self.total + np.bincount(firings.latent, value, d_sae),
            histogram=self.histogram + bins.reshape(d_sae, BINS).astype(np.int32),
            token_pair=pair,
            token_count=count,
            token_total=total,
            pruned=self.pruned or too_many,
            paired_row=row,
            paired_latent=latent,
            paired_rows=rows,
            top=self.top.merged(firings, self.shards, strongest, value[strongest], config.contexts),
            sample=self.sample.merged(firings, self.shards, everything, random_key, config.samples),
        )

    def save(self, path: Path) -> None:
        """Writes the collection to a safetensors file, from which `load` continues."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {f"top.{name}": array for name, array in vars(self.top).items()}
        arrays |= {f"sample.{name}": array for name, array in vars(self.sample).items()}
        metadata = {name: str(int(getattr(self, name))) for name in NUMBERS}
        metadata["key"] = self.key
        write_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, metadata)

    @classmethod
    def load(cls, path: Path, key: str) -> "Collection | None":
        """The collection of an interrupted command; None when there is none, or when it has another key.

        Damaged when the file cannot be read.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata()
                if metadata["key"] != key:
                    return None
                numbers = {name: int(metadata[name]) for name in NUMBERS}
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
                top = read_contexts(file, "top")
                sample = read_contexts(file, "sample")
        except SafetensorError as error:
            raise Damaged(f"{path} cannot be read ({error}); delete it, and the collection begins anew") from None
        numbers["pruned"] = bool(numbers["pruned"])
        return cls(key=key, **numbers, **arrays, top=top, sample=sample)  # type: ignore[arg-type]


NUMBERS = ("shards", "rows", "paired_rows", "pruned")
"""Fields that are saved as metadata."""

ARRAYS = ("fired", "total", "histogram", "token_pair", "token_count", "token_total", "paired_row", "paired_latent")


def read_contexts(file: safe_open, kind: str) -> Contexts:
    """The `top` or `sample` contexts of a saved collection."""
    return Contexts(**{field.name: file.get_tensor(f"{kind}.{field.name}") for field in dataclasses.fields(Contexts)})


def bin_of(value: np.ndarray) -> np.ndarray:
    """The bin of each activation."""
    return np.clip((np.floor(np.log2(value) * BINS_AN_OCTAVE) - LOWEST_OCTAVE * BINS_AN_OCTAVE), 0, BINS - 1).astype(int)


def bin_edge(index: np.ndarray) -> np.ndarray:
    """The activation at which a bin begins."""
    return 2.0 ** (index / BINS_AN_OCTAVE + LOWEST_OCTAVE)


def count_tokens(so_far: Collection, firings: Firings, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """token_pair, token_count and token_total after one more shard."""
    token = firings.tokens.ravel()[firings.position]
    key = np.concatenate([so_far.token_pair, firings.latent.astype(np.int64) * vocabulary + token])
    count = np.concatenate([so_far.token_count, np.ones(len(token), np.int64)])
    total = np.concatenate([so_far.token_total, firings.value.astype(np.float64)])
    if not len(key):
        return key, count, total
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(key)) + 1])
    return key[starts], np.add.reduceat(count[order], starts), np.add.reduceat(total[order], starts)


def most_active(
    key: np.ndarray, count: np.ndarray, total: np.ndarray, vocabulary: int, limit: int = TOKENS_KEPT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs cut to the `limit` tokens of each latent with its largest sums of activations, still sorted.

    key: latent * vocabulary + token, sorted.
    count, total: rows and sum of activations of each pair.
    vocabulary: factor of the key.
    limit: tokens kept of each latent.
    """
    latent = key // vocabulary
    order = np.lexsort((-total, latent))
    rank = np.arange(len(key)) - np.searchsorted(latent, latent[order])
    best = np.sort(order[rank < limit])
    return key[best], count[best], total[best]


def paired(so_far: Collection, firings: Firings, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """paired_row, paired_latent and paired_rows after one more shard; no more than the first `limit` rows are taken."""
    room = max(0, limit - so_far.paired_rows)
    if room == 0:
        return so_far.paired_row, so_far.paired_latent, so_far.paired_rows
    row = np.cumsum(firings.measured)[firings.position] - 1
    taken = row < room
    rows = np.concatenate([so_far.paired_row, (row[taken] + so_far.paired_rows).astype(np.int32)])
    latents = np.concatenate([so_far.paired_latent, firings.latent[taken]])
    return rows, latents, so_far.paired_rows + min(room, firings.rows)


def key_of(
    run: Path,
    store: Store,
    shards: list[ShardEntry],
    config: FeaturesConfig,
    seeds: Sequence[Path] = (),
    lens: Lens | None = None,
) -> str:
    """Digest of what a collection depends on.

    run: the folder of the weights.
    store: holds the shards.
    shards: of the split.
    config: says how much is kept.
    seeds: the runs of other seeds, in which latents are looked for.
    lens: of promoted tokens, for the key that earlier versions gave a collection with them; now it does not depend on them.
    """
    digest = xxhash.xxh3_128(
        f"{config.contexts} {config.samples} {config.neighbours} {config.coactivation_rows} "
        f"{lens is not None}{lens.digest if lens else ''}".encode()
    )
    for folder in (run, *seeds):
        hash_file(digest, folder / WEIGHTS)
    for shard in shards:
        digest.update(shard.xxh3_128.encode())
    return digest.hexdigest()


def collect(transcoder: Transcoder, store: Store, config: FeaturesConfig, key: str, vocabulary: int) -> Collection:
    """One pass over the split. It continues the collection that an interrupted command left beside the results.

    transcoder: whose latents are collected.
    store: holds the split.
    config: the options.
    key: digest of the inputs, from `key_of`.
    vocabulary: larger than every token id.
    """
    shards = store.manifest.of_split(config.split)
    path = config.folder / COLLECTION_STATE
    collection = Collection.load(path, key)
    if collection is None:
        collection = Collection.begin(key, transcoder.config.d_sae)
    else:
        log.info("continuing after %d of %d shards", collection.shards, len(shards))
    config.folder.mkdir(parents=True, exist_ok=True)
    forward = Forward(transcoder.to(resolve_device(config.device)))
    saved = time.monotonic()
    total = sum(shard.kept for shard in shards)
    try:
        with tqdm(total=total, initial=collection.rows, unit="row", unit_scale=True, desc="features") as bar:
            for shard in shards[collection.shards :]:
                firings = firings_of(store, shard, forward, config.batch_rows, bar)
                collection = collection.plus(firings, config, vocabulary)
                if time.monotonic() - saved > SAVE_SECONDS:
                    collection.save(path)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        collection.save(path)
        raise
    return collection
