"""Adds promoted tokens to features that were collected without them, or through another lens."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from evaluate.promoted.tokens import PromotedTokens
from store.disk.files import appearing_whole, write_text
from store.layout import FEATURES, feature_file

LOGITS = pa.list_(pa.struct({"token": pa.string(), "logit": pa.float32()}))
"""The type of the columns `promoted` and `suppressed`."""


def firing(folder: Path) -> np.ndarray:
    """bool, by latent: whether it fires in a finished collection."""
    return pq.read_table(folder / FEATURES, columns=["fired"])["fired"].to_numpy() > 0


def add_promoted(folder: Path, tokens: PromotedTokens, as_json: bool) -> None:
    """Writes the three columns of promoted tokens into features.parquet, and into the JSON files where there are some.

    folder: of a finished collection. Its summary is left as it is: until that is written, the command does this again.
    """
    name = tokens.lens.name
    file = pq.ParquetFile(folder / FEATURES, memory_map=True)
    first = 0
    with appearing_whole(folder / FEATURES) as path:
        writer = None
        for number in tqdm(range(file.num_row_groups), desc="writing", unit="group"):
            table = file.read_row_group(number)
            latents = slice(first, first + len(table))
            first += len(table)
            columns = {
                "promoted": pa.array(tokens.promoted[latents], LOGITS),
                "suppressed": pa.array(tokens.suppressed[latents], LOGITS),
                "lens": pa.array([name] * len(table), pa.string()),
            }
            for column, values in columns.items():
                place = table.schema.get_field_index(column)  # files of earlier versions lack the lens
                table = table.append_column(column, values) if place < 0 else table.set_column(place, column, values)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    for latent in range(first) if as_json else ():
        place = folder / feature_file(latent)
        record = json.loads(place.read_text(encoding="utf-8"))
        record |= {"promoted": tokens.promoted[latent], "suppressed": tokens.suppressed[latent], "lens": name}
        write_text(place, json.dumps(record, ensure_ascii=False))
