"""A store described for a person: what it is, how much, its statistics, disk, how well batches mix, some text."""

import math
from collections.abc import Callable
from itertools import takewhile

import numpy as np

from harvest.model.tokenizer import load_tokenizer
from harvest.store_config import InfoConfig
from store.counts import counted, gigabytes
from store.loader.repeats import document_tokens, find_repeats
from store.loader.schedule import Mix, Schedule
from store.mlp.proof import MOST_FVU
from store.shards.documents import documents_of
from store.shards.manifest import Manifest, ShardEntry
from store.shards.reader import Store, open_store

SAMPLED_BATCHES = 50
"""Batches in which pairs of rows are counted."""
REPEAT_TOKENS = 20
"""Tokens that are shown of a document on both sides of the split."""
TEXT_ROWS = 3
"""Rows of tokens that are shown as text."""


def info(config: InfoConfig) -> str:
    """The description of a store; without text where its tokenizer cannot be loaded."""
    store = open_store(config.store_directory)
    try:
        tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    except ValueError as error:
        return describe(store, str(error), config.batch_rows)
    return describe(store, lambda tokens: str(tokenizer.decode(tokens)), config.batch_rows)


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
    ideal = sum(_pairs(np.bincount(of_shard)) for of_shard in documents) / (n_rows * (n_rows - 1))

    item = store.manifest.recipe.torch_dtype.itemsize
    row_bytes = [item * store.manifest.widths[site] for site in ("resid_mid", "mlp_out")]
    schedule = Schedule([len(of_shard) for of_shard in documents], seed, Mix.of(len(shards), row_bytes))

    rows = min(batch_rows, n_rows)
    starts = np.linspace(0, n_rows - rows, min(SAMPLED_BATCHES, n_rows // rows)).astype(int)
    pairs = []
    for start in starts.tolist():
        _, counts = np.unique(_served(schedule, documents, start, rows), return_counts=True)
        pairs.append(_pairs(counts))
    return float(np.mean(pairs)) / (rows * (rows - 1)), ideal


def _pairs(counts: np.ndarray) -> int:
    """Ordered pairs of different rows of one document, from the number of rows of each document."""
    counts = counts.astype(np.int64)
    return int((counts * (counts - 1)).sum())


def _served(schedule: Schedule, documents: list[np.ndarray], start: int, rows: int) -> np.ndarray:
    """A number for the document of each row of a batch."""
    parts = []
    for window in takewhile(lambda window: window.start < start + rows, schedule.windows(start)):
        pieces = []
        for shard, first, n in zip(window.shard, window.first, window.rows, strict=True):
            pieces.append(documents[shard][first : first + n].astype(np.int64) + (shard << 32))
        assert window.order is not None
        held = np.concatenate(pieces)[window.order]
        parts.append(held[max(0, start - window.start) : start + rows - window.start])
    return np.concatenate(parts)


def describe(store: Store, decode: Callable[[list[int]], str] | str, batch_rows: int = 1024) -> str:
    """The description, with a few rows of text: `decode` makes text of tokens, or says why there is none."""
    manifest = store.manifest
    recipe = store.manifest.recipe
    n_bytes = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{store.directory}: {recipe.model} layer {recipe.layer}, fingerprint {store.fingerprint}",
        f"  model revision   {recipe.model_revision}, run in {recipe.compute_dtype}",
        f"  text             {recipe.dataset} ({recipe.dataset_revision}), documents 0 to "
        f"{manifest.shards[-1].next_document - 1:,}{', all that there is' if manifest.exhausted else ''}",
        *_left_out(manifest),
        f"  tokens           {manifest.n_tokens:,} in rows of {recipe.context}; excluded: {_excluded(store, decode)}",
        f"  rows             {manifest.n_rows('train'):,} to train on, {manifest.n_rows('heldout'):,} held out "
        f"({len(manifest.of_split('heldout'))} of {len(manifest.shards)} shards)",
        f"  disk             {gigabytes(n_bytes)} in {counted(len(manifest.shards), 'shard')}, {recipe.format}, "
        f"{recipe.dtype}; {n_bytes / manifest.n_tokens:,.0f} bytes a token",
        f"  norm             {manifest.norm.kind}, eps {manifest.norm.eps:g}",
    ]
    lines += _targets(store)
    for name, estimate in (("metric", manifest.metric), ("lens", manifest.lens)):
        if estimate is not None:
            halves = estimate.agreement_in_words
            lines.append(f"  {name:16s} from {estimate.sequences:,} sequences; cosine of its two halves: {halves}")
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
    return "\n".join([*lines, *_repeats(store, decode), *_text(store, decode)]) + "\n"


def _targets(store: Store) -> list[str]:
    """How targets are kept, where the store holds its MLP: the MLP, and how near its rows come to the true ones."""
    info = store.manifest.mlp
    if info is None:
        return []
    after = "" if info.post_norm is None else f", {info.post_norm.kind} after it"
    lines = [f"  MLP              {info.kind}, {info.activation}{after}; {info.bytes / 1e6:,.1f} MB"]
    proven = [shard.recomputed_fvu for shard in store.manifest.shards if shard.recomputed_fvu is not None]
    if proven:
        lines.append(
            f"  targets          recomputed; FVU against true rows {np.mean(proven):.2g}, {max(proven):.2g} in the worst "
            f"shard (limit {MOST_FVU:g})"
        )
    return lines


def _left_out(manifest: Manifest) -> list[str]:
    """A line for each kind of record or row that was left out, where some were."""
    lines = []
    bad = sum(shard.bad_records or 0 for shard in manifest.shards)
    if bad:
        lines.append(f"  bad records      {bad:,} held no text and were left out")
    recipe = manifest.recipe
    if recipe.drop_repeats:
        repeats = sum(shard.repeats or 0 for shard in manifest.shards)
        lines.append(f"  repeats          {repeats:,} documents that equal an earlier one were left out")
    if recipe.exclude_first is not None:
        lines.append(f"  left out         the first {recipe.exclude_first} tokens of each row")
    if recipe.exclude_template:
        lines.append("  left out         the tokens of the chat template")
    if recipe.exclude_norm is not None:
        far = sum(shard.excluded_by_norm or 0 for shard in manifest.shards)
        lines.append(f"  left out         {far:,} rows above {recipe.exclude_norm:g} median norms of {recipe.norm_site}")
    return lines


def _excluded(store: Store, decode: Callable[[list[int]], str] | str) -> str:
    """The tokens whose rows are not kept, by number, with their texts where these can be had."""
    numbers = store.manifest.recipe.excluded_tokens
    if isinstance(decode, str):
        return ", ".join(map(str, numbers)) or "none"
    return ", ".join(f"{number} {decode([number])!r}" for number in numbers) or "none"


def _repeats(store: Store, decode: Callable[[list[int]], str] | str) -> list[str]:
    """How many documents lie on both sides of the split, and how the first of them begin."""
    found = find_repeats(store)
    lines = [f"  both sides       {found.repeated:,} of {found.heldout:,} held-out documents are training documents too"]
    for name, number in found.places:
        tokens = document_tokens(store, name, number)[:REPEAT_TOKENS]
        begins = "" if isinstance(decode, str) else f": {decode(tokens)!r}"
        lines.append(f"                   document {number} of {name}{begins}")
    return lines


def _text(store: Store, decode: Callable[[list[int]], str] | str) -> list[str]:
    if isinstance(decode, str):
        return [f"  no text          {decode}"]
    tokens = store.array(store.manifest.shards[0], "tokens")
    rows = tokens[np.linspace(0, len(tokens) - 1, min(TEXT_ROWS, len(tokens))).astype(int)]
    return [f"  text             {decode(row)!r}" for row in rows.tolist()]
