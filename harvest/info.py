"""A store described for a person: what it is, how much, its statistics, disk, how well batches mix, some text."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from harvest.text import load_tokenizer
from store.cli import StoreOptions, check_at_least, parse
from store.loader.schedule import Mix, Schedule
from store.shards.documents import documents_of
from store.shards.manifest import ShardEntry
from store.shards.reader import Store, open_store


@dataclass(frozen=True, kw_only=True)
class InfoConfig(StoreOptions):
    """Describe a store: what it holds, how much, its statistics and disk, how well batches mix, and some of its text."""

    batch_rows: int = 1024
    """Rows of the batches whose mix is measured."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where the store's model is not at hand."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_rows=2)


def info() -> str:
    config = parse(InfoConfig, "python -m harvest info")
    store = open_store(config.store_directory)
    try:
        tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    except ValueError as error:
        return describe(store, str(error), config.batch_rows)
    return describe(store, lambda tokens: str(tokenizer.decode(tokens)), config.batch_rows)


SAMPLED_BATCHES = 50

TEXT_ROWS = 3


def document_of_rows(store: Store, shard: ShardEntry) -> np.ndarray:
    """The document of each kept row of a shard, numbered from 0 within the shard."""
    documents = documents_of(store.array(shard, "tokens").numpy(), store.manifest.recipe.excluded_tokens)
    index = store.array(shard, "token_index").numpy()[: shard.kept]
    return documents.ravel()[index].astype(np.int32)


def same_document_shares(store: Store, batch_rows: int, seed: int = 0) -> tuple[float, float]:
    """The share of pairs of rows in a batch that come from one document, and that share in a shuffle of all rows.

    Batches are taken from all over an epoch with the default mix. Needs 4 bytes of memory a training row.
    """
    shards = store.manifest.of_split("train")
    documents = [document_of_rows(store, shard) for shard in shards]
    n_rows = sum(map(len, documents))
    rows = min(batch_rows, n_rows)
    ideal = sum(_pairs(np.bincount(own)) for own in documents) / (n_rows * (n_rows - 1))
    widths = [store.manifest.widths[site] for site in ("resid_mid", "mlp_out")]
    item = 2 if store.manifest.recipe.dtype == "bfloat16" else 4
    schedule = Schedule([len(own) for own in documents], seed, Mix.of(len(shards), [item * width for width in widths]))
    starts = np.linspace(0, n_rows - rows, min(SAMPLED_BATCHES, n_rows // rows)).astype(int)
    found = [
        _pairs(np.unique(_served(schedule, documents, start, rows), return_counts=True)[1]) for start in starts.tolist()
    ]
    return float(np.mean(found)) / (rows * (rows - 1)), ideal


def _pairs(counts: np.ndarray) -> int:
    counts = counts.astype(np.int64)
    return int((counts * (counts - 1)).sum())


def _served(schedule: Schedule, documents: list[np.ndarray], start: int, rows: int) -> np.ndarray:
    """A number for the document of each row of a batch."""
    parts = []
    for window in takewhile(lambda window: window.start < start + rows, schedule.windows(start)):
        pieces = zip(window.shard, window.first, window.rows, strict=True)
        held = np.concatenate(
            [documents[shard][first : first + n].astype(np.int64) + (shard << 32) for shard, first, n in pieces]
        )
        assert window.order is not None
        parts.append(held[window.order][max(0, start - window.start) : start + rows - window.start])
    return np.concatenate(parts)


def describe(store: Store, decode: Callable[[list[int]], str] | str, batch_rows: int = 1024) -> str:
    """The description, with a few rows of text: `decode` makes text of tokens, or says why there is none."""
    manifest, recipe = store.manifest, store.manifest.recipe
    n_bytes = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{store.directory}: {recipe.model} layer {recipe.layer}, fingerprint {store.fingerprint}",
        f"  model revision   {recipe.model_revision}, run in {recipe.compute_dtype}",
        f"  text             {recipe.dataset} ({recipe.dataset_revision}), documents 0 to "
        f"{manifest.shards[-1].next_document - 1:,}{', all that there is' if manifest.exhausted else ''}",
        f"  tokens           {manifest.n_tokens:,} in rows of {recipe.context}; excluded: {list(recipe.excluded_tokens)}",
        f"  rows             {manifest.n_rows('train'):,} to train on, {manifest.n_rows('heldout'):,} held out "
        f"(one shard in {recipe.heldout_every})",
        f"  disk             {n_bytes / 1e9:,.2f} GB in {len(manifest.shards)} shards, {recipe.format}, {recipe.dtype}; "
        f"{n_bytes / manifest.n_tokens:,.0f} bytes a token",
        f"  norm             {manifest.norm.kind}, eps {manifest.norm.eps:g}",
    ]
    for name, moments in manifest.statistics.items():
        lines.append(
            f"  {name:16s} width {len(moments.mean)}, root mean squared norm {math.sqrt(moments.mean_squared_norm):,.2f}, "
            f"norm of the mean {math.sqrt(sum(value * value for value in moments.mean)):,.2f}"
        )
    if {"resid_mid", "mlp_out"} <= manifest.widths.keys() and manifest.n_rows("train") > 1:
        found, ideal = same_document_shares(store, batch_rows)
        lines.append(
            f"  shuffle          {found:.3%} of the pairs in a batch of {batch_rows:,} rows share a document; "
            f"{ideal:.3%} would in a shuffle of all rows"
        )
    return "\n".join([*lines, *_text(store, decode)]) + "\n"


def _text(store: Store, decode: Callable[[list[int]], str] | str) -> list[str]:
    if isinstance(decode, str):
        return [f"  no text          {decode}"]
    tokens = store.array(store.manifest.shards[0], "tokens")
    rows = tokens[np.linspace(0, len(tokens) - 1, min(TEXT_ROWS, len(tokens))).astype(int)]
    return [f"  text             {decode(row)!r}" for row in rows.tolist()]
