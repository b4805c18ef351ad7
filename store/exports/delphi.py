"""delphi's cache of latents, from the held-out rows of a store: its explainers and scorers then need no transcoder.

As delphi reads it: `latents/HOOKPOINT/START_END.safetensors`, END included, each with `locations` (sequence, position,
latent - START), `activations` in float16, and the tokens of all sequences; `config.json` beside them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from store.config import ExportConfig
from store.disk.files import write_text
from store.errors import Refused
from store.exports.opening import appearing_folder, of_a_run, refuse_filled
from store.exports.readback import arrays_of, read_run, read_view
from store.layout import CONFIG, EXPORT
from store.shards.manifest import ShardEntry
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

NAME = "delphi"

TESTED_WITH = "eai-delphi 0.1.3"
"""The version that has read such a cache (`make interop`)."""

N_SPLITS = 5
"""Files of the latents, as delphi makes."""

LEAST = 1e-5
"""delphi leaves out activations that are not larger."""

EXAMPLE_TOKENS = 32
"""Tokens of delphi's examples, which must divide the context."""

ROWS = 256
"""Rows on which the cache is compared with the run."""

HALF = 2.0**-10
"""Largest relative difference: float16 rounds to half of this."""

HALF_MOST = torch.finfo(torch.float16).max

BLOCK = 1024
"""Rows encoded at once."""


@dataclass(frozen=True)
class Entries:
    """Activations of latents, ordered by sequence, then position."""

    sequence: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    latent: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]


def export_delphi(config: ExportConfig) -> str:
    """What was written, and how it was checked; for people. Refused without the store's rows."""
    if config.dtype != "float32" or config.view is not None:
        raise Refused("delphi's cache holds activations in float16, of no view; leave out --dtype and --view")
    refuse_filled(config.out)
    ours, store = of_a_run(config.run, config.store)
    if store is None or not store.manifest.shards:
        raise Refused(
            f"delphi's cache is made of the rows that {config.run} was trained on, and they are gone; give --store"
        )
    if ours.source_width != ours.config.d_in:
        raise Refused(f"{ours.config.name} standardises its input, which delphi's cache is not made of; write it as a run")
    shards = store.manifest.of_split("heldout")
    if not shards:
        raise Refused(f"{store.directory} has no held-out shard; harvest more, or with a smaller --heldout-every")
    recipe = store.manifest.recipe
    hookpoint = f"layers.{ours.config.layer}.mlp"
    with appearing_folder(config.out) as partial:
        folder = partial / "latents" / hookpoint
        folder.mkdir(parents=True)
        parts = list(tqdm((entries_of(ours, store, shard) for shard in shards), desc="shards", total=len(shards)))
        tokens = torch.cat([store.array(shard, "tokens") for shard in shards]).numpy()
        entries = joined(parts, [shard.n_sequences for shard in shards])
        write_splits(folder, entries, tokens, ours.config.d_sae)
        settings = {
            "dataset_repo": recipe.dataset,
            "dataset_split": "heldout",
            "dataset_name": "",
            "dataset_column": recipe.text_column,
            "batch_size": 32,
            "cache_ctx_len": recipe.context,
            "n_tokens": tokens.size,
            "n_splits": N_SPLITS,
            "model_name": recipe.model,
        }
        write_text(folder / CONFIG, json.dumps(settings, indent=1) + "\n")
        checked = check(folder, config.run, store, shards[0], ours)
        card = {
            "format_version": 1,
            "layout": NAME,
            "tested_with": TESTED_WITH,
            "name": ours.config.name,
            "model": ours.config.model,
            "layer": ours.config.layer,
            "hookpoint": hookpoint,
            "tokens": tokens.size,
            "entries": len(entries.value),
            "gate": [checked],
        }
        write_text(partial / EXPORT, json.dumps(card, indent=1) + "\n")
    lines = [f"{config.out}: delphi's cache of {len(entries.value):,} activations on {tokens.size:,} held-out tokens"]
    lines.append(f"  {config.out / 'latents' / hookpoint}: raw_dir is {config.out / 'latents'}, the module {hookpoint}")
    if recipe.context % EXAMPLE_TOKENS:
        lines.append(f"  its context of {recipe.context} tokens is no multiple of {EXAMPLE_TOKENS}: set example_ctx_len")
    return "\n".join([*lines, f"  gate: {checked['entries']:,} activations as the run has them"])


def entries_of(ours: Transcoder, store: Store, shard: ShardEntry) -> Entries:
    """Activations on the kept rows of a shard; on other tokens no latent counts as active."""
    rows = store.rows(shard, ours.config.source_site, slice(shard.kept))
    place = store.array(shard, "token_index")[: shard.kept].long()
    row, latent, value = (torch.cat(parts) for parts in zip(*_active(ours, store, rows), strict=True))
    if len(value) and float(value.max()) > HALF_MOST:
        raise Refused(f"an activation is {float(value.max()):.0f}, but delphi's cache holds float16, up to {HALF_MOST:.0f}")
    at = place[row]
    order = torch.argsort(at * ours.config.d_sae + latent)
    context = store.manifest.recipe.context
    at = at[order]
    return Entries((at // context).numpy(), (at % context).numpy(), latent[order].numpy(), value[order].numpy())


def _active(ours: Transcoder, store: Store, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for start in range(0, len(rows), BLOCK):
        latents = ours.encode(ours.view(rows[start : start + BLOCK], store.norm))
        row, latent = (latents > LEAST).nonzero(as_tuple=True)
        yield row + start, latent, latents[row, latent]


def joined(parts: list[Entries], n_sequences: list[int]) -> Entries:
    """Entries of all shards, whose sequences are numbered on."""
    first = np.cumsum([0, *n_sequences[:-1]])
    return Entries(
        sequence=np.concatenate([part.sequence + start for part, start in zip(parts, first, strict=True)]),
        position=np.concatenate([part.position for part in parts]),
        latent=np.concatenate([part.latent for part in parts]),
        value=np.concatenate([part.value for part in parts]),
    )


def write_splits(folder: Path, entries: Entries, tokens: Int[np.ndarray, "sequences context"], d_sae: int) -> None:
    """The files of a cache, each for a range of latents."""
    edges = np.linspace(0, d_sae, N_SPLITS + 1).astype(int)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if start == stop:
            continue
        of_range = (entries.latent >= start) & (entries.latent < stop)
        columns = (entries.sequence[of_range], entries.position[of_range], entries.latent[of_range] - start)
        locations = np.stack(columns, axis=1)
        kind = np.uint16 if max(len(tokens), tokens.shape[1], stop - start) <= 2**16 else np.uint32
        arrays = {
            "locations": np.ascontiguousarray(locations.astype(kind)),
            "activations": entries.value[of_range].astype(np.float16),
            "tokens": tokens.astype(np.int64),
        }
        save_file(arrays, folder / f"{start}_{stop - 1}.safetensors")


def check(folder: Path, run: Path, store: Store, shard: ShardEntry, ours: Transcoder) -> dict[str, object]:
    """Reads the cache as delphi's TensorBuffer does, and compares activations of the first shard's first rows with the
    run's, which NumPy alone computes. Refused where they differ by more than float16 rounds."""
    n_rows = min(ROWS, shard.kept)
    norm = store.norm
    resid = store.rows(shard, ours.config.source_site, slice(n_rows))
    gain = None if norm.kind == "none" else norm.gain.double().numpy()
    bias = None if norm.bias is None else norm.bias.double().numpy()
    reader = read_run(run, ours.config.layer)
    expected = reader.encode(read_view(reader.view, resid.float().numpy(), norm.kind, norm.eps, gain, bias))
    row_of = {place: row for row, place in enumerate(store.array(shard, "token_index")[:n_rows].tolist())}
    cached = np.zeros_like(expected)
    for path in folder.glob("*_*.safetensors"):
        first = int(path.stem.split("_")[0])
        arrays = arrays_of(path)
        places = arrays["locations"][:, 0].astype(int) * store.manifest.recipe.context + arrays["locations"][:, 1].astype(
            int
        )
        for index in np.flatnonzero(np.isin(places, list(row_of))):
            latent = int(arrays["locations"][index, 2]) + first
            cached[row_of[places[index]], latent] = arrays["activations"][index]
    at_threshold = (cached > 0) != (expected > 0)
    least = np.where(expected > 0, expected, np.inf).min(1, keepdims=True)  # with TopK, the threshold of a row
    limit = least if ours.config.activation == "topk" else ours.threshold.clamp_min(0).numpy()
    far = np.where(at_threshold, np.abs(np.maximum(cached, expected) - limit) / np.maximum(limit, 1), 0)
    apart = np.where(at_threshold, 0, np.abs(cached - expected) / np.maximum(np.abs(expected), LEAST))
    if far.max() > HALF or apart.max() > HALF:
        raise Refused(
            f"the cache has activations that differ from the run's by {max(far.max(), apart.max()):.1e} (relative), "
            "more than "
            "float16 rounds, so nothing was kept: please report it"
        )
    return {"rows": n_rows, "entries": int((expected > 0).sum()), "relative_error": float(apart.max()), "tolerance": HALF}
