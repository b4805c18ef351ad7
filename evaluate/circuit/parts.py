"""Rows of all layers of a map, in step, and the parts that the pre-activations of their active latents are made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.circuit.layers import CircuitLayer
from store.loader.batches import batches
from store.shards.manifest import ShardEntry
from store.sparse.scan import Entries, pre_activations

Kind = Literal["features", "skip", "decoder_bias", "error", "rest", "encoder_bias"]


class Part(NamedTuple):
    """One summand of a pre-activation."""

    kind: Kind
    layer: int | None = None
    """The earlier layer that it comes from; None for the rest and the encoder's bias."""


@dataclass(frozen=True)
class LayerRows:
    """One layer at some rows."""

    entries: Entries
    """Its active latents."""
    scale: Float[Tensor, " rows"]
    """Of the view."""
    features: Float[Tensor, "rows d"]
    """What its latents add to the residual stream."""
    skip: Float[Tensor, "rows d"] | None
    """What its skip connection adds; None without one."""
    error: Float[Tensor, "rows d"]
    """What its MLP adds beyond the reconstruction."""
    rest: Float[Tensor, "rows d"]
    """The residual stream that it reads, less the outputs of the map's earlier MLPs: embedding, attention, other MLPs."""


@torch.no_grad()
def rows_in_step(
    layers: Sequence[CircuitLayer], shard: ShardEntry, start: int, stop: int, rows: int, device: torch.device
) -> Iterator[list[LayerRows]]:
    """The kept rows of a held-out shard from `start` to `stop`, `rows` at a time, at every layer."""
    readers = [
        batches(
            layer.shard_alone(shard),
            "heldout",
            rows,
            view="raw",
            sites=layer.sites,
            device=device,
            cursor=start,
            stop=stop,
            shuffle=False,
        )
        for layer in layers
    ]
    for batch in zip(*readers, strict=True):
        yield in_step(layers, [(each.source, each.target) for each in batch])


def in_step(
    layers: Sequence[CircuitLayer], rows: Sequence[tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]]]
) -> list[LayerRows]:
    """Every layer at the same rows, from what each reads, as stored, and what its MLP adds."""
    written = torch.zeros_like(rows[0][1])
    found = []
    for layer, (resid, mlp_out) in zip(layers, rows, strict=True):
        found.append(layer_rows(layer, resid, mlp_out, written))
        written = written + mlp_out
    return found


def layer_rows(
    layer: CircuitLayer, resid: Float[Tensor, "rows d"], mlp_out: Float[Tensor, "rows d"], written: Float[Tensor, "rows d"]
) -> LayerRows:
    """One layer at some rows.

    resid: what it reads, as stored.
    mlp_out: what its MLP adds.
    written: what the MLPs of earlier layers of the map have added.
    """
    transcoder = layer.transcoder
    x = transcoder.view(resid, layer.norm)
    entries = layer.forward.entries(x)
    recon = layer.forward.prefixes(entries, x).recon[-1]
    return LayerRows(
        entries=entries,
        scale=layer.reader.scale(resid),
        features=recon - transcoder.offset(x),
        skip=None if transcoder.W_skip is None else x @ transcoder.W_skip.T,
        error=mlp_out - recon,
        rest=resid - written,
    )


def parts_into(layers: Sequence[CircuitLayer], target: int) -> list[Part]:
    """The parts of a pre-activation of layers[target], in the order of `split`; all but the last are vectors."""
    parts = []
    for layer in layers[:target]:
        parts += [Part("features", layer.layer), Part("error", layer.layer), Part("decoder_bias", layer.layer)]
        if layer.transcoder.W_skip is not None:
            parts.append(Part("skip", layer.layer))
    return [*parts, Part("rest"), Part("encoder_bias")]


def vectors_into(
    layers: Sequence[CircuitLayer], rows: Sequence[LayerRows], target: int
) -> dict[Part, Float[Tensor, "*rows d"]]:
    """What layers[target] reads of the residual stream, part by part: [rows, d], or [d] where every row has the same.

    The encoder's bias is left out.
    """
    vectors: dict[Part, Tensor] = {}
    for layer, wrote in zip(layers[:target], rows, strict=False):
        vectors[Part("features", layer.layer)] = wrote.features
        vectors[Part("error", layer.layer)] = wrote.error
        vectors[Part("decoder_bias", layer.layer)] = layer.transcoder.b_dec
        if wrote.skip is not None:
            vectors[Part("skip", layer.layer)] = wrote.skip
    return vectors | {Part("rest"): rows[target].rest}


def biases_into(layers: Sequence[CircuitLayer], target: int) -> dict[Part, Float[Tensor, " d_sae"]]:
    """What the decoder's bias of each earlier layer adds to the pre-activations of layers[target], before the scale of a
    row: the same for all rows."""
    encoder = layers[target].reader.encoder
    return {Part("decoder_bias", layer.layer): encoder @ layer.transcoder.b_dec for layer in layers[:target]}


def split(
    layers: Sequence[CircuitLayer],
    rows: Sequence[LayerRows],
    target: int,
    biases: Mapping[Part, Float[Tensor, " d_sae"]],
) -> dict[Part, Float[Tensor, " n"]]:
    """Each part of the pre-activation of each entry of layers[target]; together they are its activation.

    layers: of the map.
    rows: each layer at some rows.
    target: the index of the layer that is read.
    biases: its `biases_into`.
    """
    reader = layers[target].reader
    read = rows[target]
    row = read.entries.row
    latent = read.entries.latent
    no_bias = torch.zeros_like(reader.bias)
    parts: dict[Part, Tensor] = {}
    for part, vectors in vectors_into(layers, rows, target).items():
        if part in biases:
            parts[part] = biases[part][latent] * read.scale[row]
        else:
            scaled = vectors * read.scale[:, None]
            parts[part] = pre_activations(scaled, reader.encoder, no_bias, row, latent)
    return parts | {Part("encoder_bias"): reader.bias[latent]}


def read_everywhere(layers: Sequence[CircuitLayer], rows: Sequence[LayerRows], target: int) -> Float[Tensor, "vectors d"]:
    """The sum of each of `vectors_into` over all rows, active or not, as layers[target] scales them; float64."""
    scale = rows[target].scale[:, None]
    vectors = vectors_into(layers, rows, target).values()
    return torch.stack([(each * scale).sum(0, dtype=torch.float64) for each in vectors])
