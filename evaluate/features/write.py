"""Writes collected features: one Parquet file of all latents, and one JSON file for each."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from evaluate.features.collect import Collection
from evaluate.features.context_table import ContextTable
from evaluate.features.records import FeatureRecord, Relations, record_of, top_tokens_of
from evaluate.features.split_text import SplitText
from evaluate.promoted.add import LOGITS
from store.disk.files import appearing_whole
from store.layout import COLLECTION_SUMMARY, FEATURE_FILES, FEATURES, feature_file

CHUNK = 64
"""Latents in a row group: what a page about one latent reads."""

DIGITS = 5
"""Significant digits of activations in the JSON files."""

_relation = pa.list_(pa.struct({"feature": pa.int32(), "score": pa.float32(), "both": pa.int32()}))

_context = pa.struct({
    "quantile": pa.int8(), "activation": pa.float32(), "shard": pa.int32(), "sequence": pa.int32(), "token": pa.int32(),
    "document": pa.int32(), "start": pa.int32(), "tokens": pa.list_(pa.string()), "activations": pa.list_(pa.float32()),
})  # fmt: skip

SCHEMA = pa.schema({
    "feature": pa.int32(), "prefix": pa.int32(), "fired": pa.int64(), "density": pa.float64(),
    "mean_activation": pa.float64(), "max_activation": pa.float64(),
    "max_cosine": pa.float32(), "stability": pa.float32(), "useful": pa.float32(), "top_token": pa.string(),
    "example": pa.struct({"before": pa.string(), "token": pa.string(), "after": pa.string()}),
    "histogram": pa.struct({"edges": pa.list_(pa.float64()), "counts": pa.list_(pa.int64())}),
    "top_tokens": pa.list_(pa.struct({
        "token": pa.string(), "id": pa.int32(), "count": pa.int64(), "occurrences": pa.int64(), "mean": pa.float64()})),
    "near_decoder": _relation, "near_coactive": _relation, "finer": _relation, "promoted": LOGITS, "suppressed": LOGITS,
    "lens": pa.string(),
    "contexts": pa.list_(_context), "text": pa.string(),
})  # fmt: skip


def write_samples(
    folder: Path,
    collection: Collection,
    relations: Relations,
    text: SplitText,
    prefix_sizes: Sequence[int],
    as_json: bool,
) -> None:
    """Writes features.parquet, and feature_NNNNN.json if asked for, a few latents at a time. Stale files go first.

    folder: the run's folder of samples.
    collection: counts and contexts of all latents.
    relations: neighbours and promoted tokens of all latents.
    text: the split that was collected.
    prefix_sizes: cumulative; the last is the width of the dictionary.
    as_json: whether to write the JSON files.
    """
    d_sae = prefix_sizes[-1]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob(FEATURE_FILES), folder / COLLECTION_SUMMARY):
        stale.unlink(missing_ok=True)
    top_tokens = top_tokens_of(collection, text)
    with appearing_whole(folder / FEATURES) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in tqdm(range(0, d_sae, CHUNK), desc="writing", unit="latent", unit_scale=CHUNK):
            latents = np.arange(start, min(start + CHUNK, d_sae))
            contexts = ContextTable.of(collection, latents, text)
            records = []
            for index, latent in enumerate(latents.tolist()):
                tokens = top_tokens.get(latent, [])
                example = contexts.example(index)
                records.append(record_of(collection, relations, tokens, prefix_sizes, latent, example))
            writer.write_table(chunk_table(records, contexts))
            if as_json:
                write_json(folder, records, contexts)


def chunk_table(records: Sequence[FeatureRecord], contexts: ContextTable) -> pa.Table:
    """Rows of features.parquet."""
    of_context = pa.array(contexts.of_context, pa.int32())
    lists = {
        "tokens": pa.ListArray.from_arrays(of_context, pa.array(contexts.words, pa.string())),
        "activations": pa.ListArray.from_arrays(of_context, pa.array(contexts.activations, from_pandas=True)),
    }
    columns = []
    for field in _context:
        column = lists.get(field.name)
        columns.append(pa.array(contexts.fields[field.name], field.type) if column is None else column)
    structs = pa.StructArray.from_arrays(columns, fields=list(_context))
    of_latent = pa.ListArray.from_arrays(pa.array(contexts.of_latent, pa.int32()), structs)
    plain = pa.schema([field for field in SCHEMA if field.name not in ("contexts", "text")])
    table = pa.Table.from_pylist([vars(record) for record in records], schema=plain)
    texts = pa.array(searched_texts(contexts), pa.string())
    return table.append_column("contexts", of_latent).append_column("text", texts)


def searched_texts(contexts: ContextTable) -> list[str]:
    """The text of each latent's contexts, a line a context."""
    lines = ["".join(contexts.words[low:high]) for low, high in pairwise(contexts.of_context)]
    return ["\n".join(lines[low:high]) for low, high in pairwise(contexts.of_latent)]


def write_json(folder: Path, records: Sequence[FeatureRecord], contexts: ContextTable) -> None:
    """A JSON file for each latent, with activations to five digits, and null on tokens that are not measured."""
    rounded = round_digits(contexts.activations).astype(object)
    rounded[np.isnan(contexts.activations)] = None
    activations = rounded.tolist()
    words = contexts.words.tolist()
    fields = {name: array.tolist() for name, array in contexts.fields.items()}
    fields["activation"] = round_digits(contexts.fields["activation"]).tolist()
    offsets = contexts.of_context.tolist()
    for record, (first, last) in zip(records, pairwise(contexts.of_latent.tolist()), strict=True):
        shown = []
        for index in range(first, last):
            context = {name: values[index] for name, values in fields.items()}
            context["tokens"] = words[offsets[index] : offsets[index + 1]]
            context["activations"] = activations[offsets[index] : offsets[index + 1]]
            shown.append(context)
        content = json.dumps(vars(record) | {"contexts": shown}, ensure_ascii=False)
        with (folder / feature_file(record.feature)).open("w", encoding="utf-8") as file:
            file.write(content)


def round_digits(values: np.ndarray, digits: int = DIGITS) -> np.ndarray:
    """float64 rounded to significant digits; zeros and NaN stay."""
    wide = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(wide))))
        return np.where(np.isfinite(scale), np.round(wide * scale) / scale, wide)
