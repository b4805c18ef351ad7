"""circuit.json: what a map was made of, what its figures mean, and what each layer's activations are made of. No torch."""

import functools
from pathlib import Path

import xxhash

from evaluate.estimates import Result, read_result
from store.disk.files import hash_file
from store.layout import CIRCUIT_SUMMARY, WEIGHTS

FORMAT_VERSION = 1

DEFINITIONS = {
    "contribution": "what source latent i adds to the pre-activation of target latent j at one token: the activation of i "
    "times weight, over the scale of the row that the layer of j reads (1 for the view raw); direct path alone, each norm "
    "taken as given",
    "weight": "W_dec of i times W_enc of j, with the gain of the norm and its centring in it",
    "mean": "mean contribution over the tokens at which j is active, those included where i is silent",
    "everywhere": "mean contribution over all tokens, those included where j is silent",
    "expected": "sum of the contribution over the tokens at which j is active, divided by all tokens (expected residual "
    "attribution)",
    "weighted": "mean contribution, each token weighted by the activation of j (target-weighted expected attribution)",
    "count": "tokens at which both are active",
    "reads": "rank of the edge among all into j, by the size of `expected`, from 0; null beyond `edges`",
    "writes": "rank of the edge among all out of i, by the size of `expected`, from 0; null beyond `edges`",
    "activation": "mean over firings (tokens at which the latent is active) of its pre-activation; the sum of all parts",
    "features": "mean over firings of what the latents of earlier layers of the map add",
    "error": "mean over firings of what is missing in the reconstruction of those layers' MLPs",
    "decoder_bias": "mean over firings of what b_dec of those layers adds",
    "skip": "mean over firings of what their skip connections add",
    "rest": "mean over firings of what is left of the residual stream: embedding, attention of all earlier layers, and "
    "MLPs of layers that are not in the map",
    "encoder_bias": "b_enc of the latent, and what the norm's bias adds",
    "KIND_everywhere": "mean of the part over all tokens, those included where the latent is silent",
    "rise": "a part's mean over firings less its mean everywhere: what the part has to do with the latent's being active. "
    "Constant parts have none",
}
"""Of every figure, by its name."""


class MapRun(Result):
    """One layer of a map."""

    layer: int
    folder: str
    """The run's, relative to the map's."""
    name: str
    view: str
    d_sae: int
    weights: str
    """XXH3-128 of transcoder.safetensors."""
    store_fingerprint: str


class FromLayer(Result):
    """What an earlier layer adds, by kind of part."""

    layer: int
    parts: dict[str, float]
    """Means over all firings of the later layer."""
    everywhere: dict[str, float]
    """Means over all tokens, of each latent as often as it fires."""


class LayerParts(Result):
    """What the activations of a layer's latents are made of, by kind of part."""

    layer: int
    firings: int
    activation: float
    """Mean over all firings: the sum of the parts."""
    parts: dict[str, float]
    """Means over all firings."""
    everywhere: dict[str, float]
    """Means over all tokens, of each latent as often as it fires."""
    earlier: tuple[FromLayer, ...]
    """The earlier layers' share of these."""

    def shares(self) -> dict[str, float]:
        """Each part's share of the rise of the activation above its mean everywhere; they sum to 1."""
        rise = {kind: value - self.everywhere[kind] for kind, value in self.parts.items()}
        whole = sum(rise.values()) or 1.0
        return {kind: value / whole for kind, value in rise.items()}


class CircuitSummary(Result):
    """The fields are the keys of the JSON file."""

    format_version: int
    model: str
    dataset: str
    split: str
    rows: int
    """Tokens that were looked at."""
    edges: int
    """Edges kept into each latent, and out of each."""
    n_edges: int
    """Edges in edges.parquet."""
    runs: tuple[MapRun, ...]
    layers: tuple[LayerParts, ...]
    largest_gap: float
    """The largest difference that was found between an activation and the sum of its parts, over the sum of their sizes."""
    definitions: dict[str, str]
    key: str
    """Changes with the weights, the shards and the options: another key is mapped anew."""


def read_circuit(folder: Path) -> CircuitSummary | None:
    """The summary in a map's folder, read again only when it has changed; None where there is none. Damaged when it cannot
    be read."""
    path = folder / CIRCUIT_SUMMARY
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return _read(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed: tuple[int, int, int]) -> CircuitSummary:
    return read_result(CircuitSummary, path, "make circuit ARGS=--force")


def weights_hash(run: Path) -> str:
    """32 hex digits of XXH3-128 of a run's weights."""
    digest = xxhash.xxh3_128()
    hash_file(digest, run / WEIGHTS)
    return digest.hexdigest()
