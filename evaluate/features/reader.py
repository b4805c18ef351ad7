"""Reads features.parquet: the plain columns in memory, contexts a row group at a time. Imports no torch."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.errors import Damaged

SCALARS = (
    "feature",
    "prefix",
    "fired",
    "density",
    "mean_activation",
    "max_activation",
    "max_cosine",
    "stability",
    "top_token",
    "example",
)
"""Columns that are kept in memory."""

STABILITY = "stability"
"""The column that is empty where no other seed was trained."""

SORTS = ("feature", "prefix", "density", "mean_activation", "max_activation", "max_cosine", "stability", "top_token")


class NotFound(LookupError):
    """The run, feature or page that was asked for does not exist."""


@functools.lru_cache(maxsize=8)
def open_features(path: Path, changed: int) -> "Features":
    """The features in a file, kept open while it does not change."""
    try:
        return Features(path)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> Damaged:
    again = f"make features RUN={path.parent.parent} ARGS=--force"
    return Damaged(f"{path} cannot be read ({' '.join(str(error).split())}); make it again with {again}")


def _pattern(words: str) -> pc.MatchSubstringOptions:
    return pc.MatchSubstringOptions(words, ignore_case=True)


def _hold(tokens: pa.Array, words: str) -> np.ndarray:
    """Which tokens hold the words."""
    return pc.call_function("match_substring", [tokens], _pattern(words)).to_numpy(zero_copy_only=False)


class Features:
    """features.parquet: the plain columns in memory, contexts read a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = pq.ParquetFile(path, memory_map=True)
        old = STABILITY not in self.file.schema_arrow.names
        table = self.file.read(columns=[name for name in SCALARS if not old or name != STABILITY])
        if old:
            table = table.append_column(STABILITY, pa.nulls(len(table), pa.float32()))
        self.example = table["example"].combine_chunks()
        self.columns = {name: table[name].to_numpy() for name in SCALARS if name != "example"}
        strongest = pc.call_function("struct_field", [self.example], pc.StructFieldOptions(["token"]))
        self.fires_on = (strongest, table["top_token"].combine_chunks())
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(groups)])
        self.search = functools.lru_cache(maxsize=32)(self._search)
        self.order = functools.lru_cache(maxsize=32)(self._order)

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    @property
    def has_stability(self) -> bool:
        """Whether other seeds were trained, in which the latents were looked for."""
        return not bool(np.isnan(self.columns[STABILITY]).all())

    def check(self, latent: int) -> None:
        """NotFound when there is no such latent."""
        if not 0 <= latent < len(self):
            raise NotFound(f"there is no feature {latent}: this dictionary has 0 to {len(self) - 1}")

    def brief(self, latent: int) -> dict:
        """A latent's plain columns."""
        row = {}
        for name, column in self.columns.items():
            value = column[latent]
            row[name] = value.item() if isinstance(value, np.generic) else value
        row["example"] = self.example[latent].as_py()
        return row

    def records(self, latents: Sequence[int], columns: Sequence[str] | None = None) -> list[dict]:
        """Whole rows (or some columns of them). Damaged when the file cannot be read there."""
        try:
            return [self._record(int(latent), columns) for latent in latents]
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.path, error) from None

    def _record(self, latent: int, columns: Sequence[str] | None) -> dict:
        group = int(np.searchsorted(self.starts, latent, side="right")) - 1
        table = self.file.read_row_group(group, columns=list(columns) if columns else None)
        return table.slice(latent - int(self.starts[group]), 1).to_pylist()[0]

    def _search(self, words: str) -> np.ndarray:
        """A score of each latent: how often its contexts hold the text, upper and lower case alike. The score is larger
        when the strongest token or the top token holds it, and largest when the text is the latent's number."""
        parts = []
        for group in range(self.file.num_row_groups):
            text = self.file.read_row_group(group, columns=["text"])["text"]
            parts.append(pc.call_function("count_substring", [text], _pattern(words)).to_numpy())
        count = np.concatenate(parts)
        for tokens in self.fires_on:
            count = np.where(_hold(tokens, words), count + count.max(initial=0), count)
        return np.where(self.columns["feature"].astype(str) == words, 1 + count.max(initial=0), count)

    def fires(self, words: str) -> np.ndarray:
        """Which latents fire on the text: their strongest token or their top token holds it, or it is their number."""
        found = self.columns["feature"].astype(str) == words
        for tokens in self.fires_on:
            found = found | _hold(tokens, words)
        return found

    def _order(self, by: str, descending: bool) -> np.ndarray:
        """All latents, sorted by a column; equal ones in the order of the dictionary."""
        if by == "top_token":
            ranked = np.unique(self.columns["top_token"].astype(str), return_inverse=True)[1]
        else:
            ranked = self.columns[by]
        return np.argsort(-ranked if descending else ranked, kind="stable")

    def select(
        self,
        words: str = "",
        prefix: int = 0,
        by: str = "feature",
        descending: bool = False,
        stable: float = 0.0,
        also: Sequence[int] = (),
        among: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The latents whose contexts hold the words, in order.

        words: text to search for; empty for all latents.
        prefix: only latents that this prefix adds; 0 for all.
        by: a column of SORTS, or `match`: latents that fire on the words first, then by how often their contexts hold them.
        descending: whether the largest come first.
        stable: least share of the other seeds' runs in which a latent recurs; 0 for all latents.
        also: latents that the words find in another way; by `match` they come before the rest.
        among: only these; None for all.
        """
        mask = np.ones(len(self), bool)
        score = self.search(words) if words else np.zeros(len(self))
        if len(also):
            score = score.copy()
            score[list(also)] += 1 + score.max()
        order = np.argsort(-score, kind="stable") if by == "match" else self.order(by, descending)
        if words:
            mask &= score > 0
        if prefix:
            mask &= self.columns["prefix"] == prefix
        if stable:
            mask &= self.columns[STABILITY] >= stable
        if among is not None:
            mask &= np.isin(np.arange(len(self)), among)
        return order[mask[order]]
