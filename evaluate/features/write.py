"""Writes collected features: one Parquet file of all latents, one JSON file for each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluate.features.collect import Collection, bin_edge, most_active
from evaluate.features.contexts import SIDE, Contexts
from evaluate.features.neighbours import Related
from harvest.text import token_texts
from store.disk.files import appearing_whole
from store.layout import COLLECTION_SUMMARY, FEATURES
from store.shards.documents import documents_of
from store.shards.manifest import Split
from store.shards.reader import Store

QUANTILES = 5

TOP_TOKENS = 10

CHUNK = 64
"""Latents in a row group: what a page about one latent reads."""

_relation = pa.list_(pa.struct({"feature": pa.int32(), "score": pa.float32(), "both": pa.int32()}))

_logits = pa.list_(pa.struct({"token": pa.string(), "logit": pa.float32()}))

_context = pa.struct({
    "quantile": pa.int8(), "activation": pa.float32(), "shard": pa.int32(), "sequence": pa.int32(), "token": pa.int32(),
    "document": pa.int32(), "start": pa.int32(), "tokens": pa.list_(pa.string()), "activations": pa.list_(pa.float32()),
})  # fmt: skip

SCHEMA = pa.schema({
    "feature": pa.int32(), "prefix": pa.int32(), "fired": pa.int64(), "density": pa.float64(),
    "mean_activation": pa.float64(), "max_activation": pa.float64(), "max_cosine": pa.float32(), "top_token": pa.string(),
    "example": pa.struct({"before": pa.string(), "token": pa.string(), "after": pa.string()}),
    "histogram": pa.struct({"edges": pa.list_(pa.float64()), "counts": pa.list_(pa.int64())}),
    "top_tokens": pa.list_(pa.struct({
        "token": pa.string(), "id": pa.int32(), "count": pa.int64(), "occurrences": pa.int64(), "mean": pa.float64()})),
    "near_decoder": _relation, "near_coactive": _relation, "finer": _relation, "promoted": _logits, "suppressed": _logits,
    "contexts": pa.list_(_context), "text": pa.string(),
})  # fmt: skip


class Text:
    """The tokens of a split, by shard of it, as ids and as words."""

    def __init__(self, store: Store, split: Split, tokenizer: PreTrainedTokenizerBase) -> None:
        shards = store.manifest.of_split(split)
        self.tokens = [store.array(shard, "tokens").numpy() for shard in shards]
        self.number = [store.manifest.shards.index(shard) for shard in shards]
        self.context = store.manifest.recipe.context
        excluded = store.manifest.recipe.excluded_tokens
        self.document = [documents_of(tokens, excluded).ravel() for tokens in self.tokens]
        counts = np.bincount(np.concatenate([tokens.ravel() for tokens in self.tokens]))
        ids = np.flatnonzero(counts)
        self.word = np.full(len(counts), "", dtype=object)
        self.word[ids] = token_texts(tokenizer, ids.tolist())
        self.occurrences = counts


@dataclass(frozen=True)
class Relations:
    decoder: Related
    coactive: Related
    finer: Related
    promoted: list[list[dict]]
    suppressed: list[list[dict]]
    max_cosine: np.ndarray
    """By latent, the largest |cosine| with another's decoder row: its redundancy."""


def write_samples(
    folder: Path, collection: Collection, relations: Relations, text: Text, prefix_sizes: Sequence[int], as_json: bool
) -> None:
    """Writes features.parquet and, if asked for, feature_NNNNN.json, a few latents at a time; stale files go first."""
    d_sae = prefix_sizes[-1]
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("feature_*.json"), folder / COLLECTION_SUMMARY):
        stale.unlink(missing_ok=True)
    pairs = top_tokens(collection, text)
    with appearing_whole(folder / FEATURES) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in tqdm(range(0, d_sae, CHUNK), desc="writing", unit="latent", unit_scale=CHUNK):
            latents = np.arange(start, min(start + CHUNK, d_sae))
            shown = ContextTable.of(collection, latents, text)
            plain = [
                plain_record(collection, relations, pairs, prefix_sizes, int(latent)) | {"example": shown.example(index)}
                for index, latent in enumerate(latents)
            ]
            writer.write_table(chunk_table(plain, shown))
            if as_json:
                write_json(folder, plain, shown)


def plain_record(
    collection: Collection, relations: Relations, pairs: dict[int, list[dict]], prefix_sizes: Sequence[int], latent: int
) -> dict:
    """Everything about a latent but its contexts."""
    fired = int(collection.fired[latent])
    bins = np.flatnonzero(collection.histogram[latent])
    span = np.arange(bins[0], bins[-1] + 2) if len(bins) else np.zeros(0, int)
    tokens = pairs.get(latent, [])
    first = np.searchsorted(collection.top.latent, latent)
    largest = float(collection.top.value[first]) if fired else 0.0
    return {
        "feature": latent, "prefix": next(size for size in prefix_sizes if size > latent),
        "fired": fired, "density": fired / max(collection.rows, 1),
        "mean_activation": float(collection.total[latent]) / max(fired, 1), "max_activation": largest,
        "max_cosine": float(relations.max_cosine[latent]), "top_token": tokens[0]["token"] if tokens else "",
        "histogram": {"edges": bin_edge(span).tolist(), "counts": collection.histogram[latent, span[:-1]].tolist()},
        "top_tokens": tokens,
        "near_decoder": related(relations.decoder, latent), "near_coactive": related(relations.coactive, latent),
        "finer": related(relations.finer, latent),
        "promoted": relations.promoted[latent] if relations.promoted else [],
        "suppressed": relations.suppressed[latent] if relations.suppressed else [],
    }  # fmt: skip


def related(relation: Related, latent: int) -> list[dict]:
    both = np.zeros_like(relation.other) if relation.both is None else relation.both
    parts = zip(relation.other[latent].tolist(), relation.score[latent].tolist(), both[latent].tolist(), strict=True)
    return [{"feature": other, "score": score, "both": n} for other, score, n in parts if other >= 0]


def top_tokens(collection: Collection, text: Text) -> dict[int, list[dict]]:
    """The tokens on which each latent is most active in all, so that faint firings on frequent tokens count for little."""
    vocabulary = len(text.word)
    key, count, total = most_active(
        collection.token_pair, collection.token_count, collection.token_total, vocabulary, TOP_TOKENS
    )
    order = np.lexsort((-total, key // vocabulary))
    found: dict[int, list[dict]] = {}
    for pair, n, activation in zip(key[order].tolist(), count[order].tolist(), total[order].tolist(), strict=True):
        latent, token = divmod(pair, vocabulary)
        item = {"token": text.word[token], "id": token, "count": n, "occurrences": int(text.occurrences[token])}
        found.setdefault(latent, []).append(item | {"mean": activation / n})
    return found


@dataclass(frozen=True)
class ContextTable:
    """The contexts of some latents as flat arrays: a latent's contexts, and a context's tokens, lie between offsets."""

    of_latent: np.ndarray
    fields: dict[str, np.ndarray]
    of_context: np.ndarray
    words: np.ndarray
    activations: np.ndarray

    @classmethod
    def of(cls, collection: Collection, latents: np.ndarray, text: Text) -> "ContextTable":
        """The strongest contexts of each latent, then its samples from the highest quantile to the lowest."""
        tops, samples = (part(kept, latents) for kept in (collection.top, collection.sample))
        quantile = np.concatenate([np.zeros(len(tops.latent), int), quantiles(samples)])
        both = Contexts(*(np.concatenate([vars(tops)[name], vars(samples)[name]]) for name in vars(tops)))
        order = np.lexsort((-both.value, quantile > 0, both.latent))
        both = Contexts(*(array[order] for array in vars(both).values()))
        sequence, token = both.position // text.context, both.position % text.context
        start = np.maximum(token - SIDE, 0)
        stop = np.minimum(token + SIDE + 1, text.context)
        offsets = np.concatenate([[0], np.cumsum(stop - start)])
        words = np.empty(offsets[-1], dtype=object)
        activations = np.empty(offsets[-1], np.float32)
        first = start - token + SIDE
        for index, (low, high) in enumerate(pairwise(offsets)):
            ids = text.tokens[both.shard[index]][sequence[index], start[index] : stop[index]]
            words[low:high] = text.word[ids]
            activations[low:high] = both.window[index, first[index] : first[index] + high - low]
        places = zip(both.shard.tolist(), both.position.tolist(), strict=True)
        fields = {
            "quantile": quantile[order], "activation": both.value, "shard": np.array(text.number, int)[both.shard],
            "sequence": sequence, "token": token,
            "document": np.array([text.document[shard][place] for shard, place in places], int), "start": start,
        }  # fmt: skip
        return cls(np.searchsorted(both.latent, np.append(latents, latents[-1] + 1)), fields, offsets, words, activations)

    def example(self, index: int) -> dict[str, str]:
        """A few words about the strongest firing of one of the latents."""
        context = self.of_latent[index]
        if context == self.of_latent[index + 1]:
            return {"before": "", "token": "", "after": ""}
        low, high = self.of_context[context : context + 2]
        middle = low + self.fields["token"][context] - self.fields["start"][context]
        words = [
            "".join(self.words[a:b]) for a, b in pairwise([max(low, middle - 8), middle, middle + 1, min(high, middle + 6)])
        ]
        return dict(zip(("before", "token", "after"), words, strict=True))


def part(contexts: Contexts, latents: np.ndarray) -> Contexts:
    """The contexts of a run of latents."""
    low, high = np.searchsorted(contexts.latent, [latents[0], latents[-1] + 1])
    return Contexts(*(array[low:high] for array in vars(contexts).values()))


def quantiles(samples: Contexts) -> np.ndarray:
    """1 (weakest) to QUANTILES: five groups of each latent's samples, as equal as can be."""
    order = np.lexsort((samples.value, samples.latent))
    ranked = samples.latent[order]
    low, high = (np.searchsorted(ranked, ranked, side=side) for side in ("left", "right"))
    out = np.empty(len(order), int)
    out[order] = (np.arange(len(order)) - low) * QUANTILES // (high - low) + 1
    return out


def chunk_table(plain: list[dict], shown: ContextTable) -> pa.Table:
    """Rows of features.parquet."""
    lists = {
        "tokens": pa.ListArray.from_arrays(pa.array(shown.of_context, pa.int32()), pa.array(shown.words, pa.string())),
        "activations": pa.ListArray.from_arrays(
            pa.array(shown.of_context, pa.int32()), pa.array(shown.activations, from_pandas=True)
        ),
    }
    columns = [lists[f.name] if f.name in lists else pa.array(shown.fields[f.name], f.type) for f in _context]
    contexts = pa.ListArray.from_arrays(
        pa.array(shown.of_latent, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(_context))
    )
    table = pa.Table.from_pylist(plain, schema=pa.schema([f for f in SCHEMA if f.name not in ("contexts", "text")]))
    pieces = ["".join(shown.words[low:high]) for low, high in pairwise(shown.of_context)]
    text = ["\n".join(pieces[low:high]) for low, high in pairwise(shown.of_latent)]
    return table.append_column("contexts", contexts).append_column("text", pa.array(text, pa.string()))


def write_json(folder: Path, plain: list[dict], shown: ContextTable) -> None:
    """The same, a file a latent; activations to five digits, null on tokens that are not measured."""
    rounded = round_digits(shown.activations).astype(object)
    rounded[np.isnan(shown.activations)] = None
    rounded = rounded.tolist()
    words = shown.words.tolist()
    fields = {name: array.tolist() for name, array in shown.fields.items()}
    fields["activation"] = round_digits(shown.fields["activation"]).tolist()
    offsets = shown.of_context.tolist()
    for record, (low, high) in zip(plain, pairwise(shown.of_latent.tolist()), strict=True):
        contexts = [
            {name: values[i] for name, values in fields.items()}
            | {"tokens": words[offsets[i] : offsets[i + 1]], "activations": rounded[offsets[i] : offsets[i + 1]]}
            for i in range(low, high)
        ]
        text = json.dumps(record | {"contexts": contexts}, ensure_ascii=False)
        path = folder / f"feature_{record['feature']:05d}.json"
        with path.open("w", encoding="utf-8") as file:
            file.write(text)


def round_digits(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """float64 rounded to significant digits; zeros and NaN stay."""
    wide = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(wide))))
        return np.where(np.isfinite(scale), np.round(wide * scale) / scale, wide)
