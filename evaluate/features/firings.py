"""Firings: the cached rows of a shard -> its active latents, in the order of the text."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from store.shards.documents import documents_between
from store.shards.manifest import ShardEntry
from store.shards.reader import Store
from store.transcoders.forward import Forward


@dataclass(frozen=True)
class Firings:
    """A shard's active latents, ordered by (latent, position); a position is a flat index into the shard's tokens."""

    value: np.ndarray
    """float32 [n], above the latent's threshold."""
    latent: np.ndarray
    """int32 [n]."""
    position: np.ndarray
    """int32 [n]."""
    tokens: np.ndarray
    """int32 [sequences, context]."""
    measured: np.ndarray
    """bool, by position: False on excluded tokens."""

    @property
    def rows(self) -> int:
        """Kept rows of the shard."""
        return int(self.measured.sum())

    @cached_property
    def document(self) -> np.ndarray:
        """By position, the document's number within the shard."""
        return documents_between(~self.measured.reshape(self.tokens.shape)).ravel()


@torch.no_grad()
def firings_of(store: Store, shard: ShardEntry, forward: Forward, rows: int, bar: tqdm) -> Firings:
    """The active latents of every kept row of a shard.

    store: holds the shard.
    shard: its entry in the manifest.
    forward: the transcoder, on its device.
    rows: rows in a step.
    bar: is advanced by rows.
    """
    transcoder = forward.transcoder
    device = transcoder.W_dec.device
    tokens = store.array(shard, "tokens").numpy()
    token_index = store.array(shard, "token_index")[: shard.kept].long()
    position, order = token_index.sort()  # rows lie shuffled in the shard
    source = store.array(shard, transcoder.config.source_site)
    norm = store.norm.to(device)
    values = []
    latents = []
    positions = []
    for start in range(0, shard.kept, rows):
        chosen = order[start : start + rows]
        entries = forward.entries(transcoder.view(source[chosen].to(device), norm))
        values.append(entries.value.cpu().numpy())
        latents.append(entries.latent.cpu().numpy())
        positions.append(position[start + entries.row.cpu()].numpy())
        bar.update(len(chosen))
    latent = np.concatenate(latents)
    order_by_latent = stable_order(latent, transcoder.config.d_sae)
    measured = np.zeros(tokens.size, dtype=bool)
    measured[token_index.numpy()] = True
    return Firings(
        value=np.concatenate(values)[order_by_latent],
        latent=latent[order_by_latent].astype(np.int32),
        position=np.concatenate(positions)[order_by_latent].astype(np.int32),
        tokens=tokens,
        measured=measured,
    )


def stable_order(latent: np.ndarray, d_sae: int) -> np.ndarray:
    """The stable order by latent. numpy sorts 16-bit numbers in linear time."""
    return np.argsort(latent.astype(np.uint16) if d_sae <= 1 << 16 else latent, kind="stable")
