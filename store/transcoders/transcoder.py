"""The artefact: one class for every trained transcoder, ours and others', always in raw units.

`recon = decode(encode(view(resid_mid)))`: nothing to fold, rescale or remember. FORMAT.md describes the files.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from store.disk.files import write_tensors, write_text
from store.errors import Damaged, Refused
from store.layout import CONFIG, TRAIN_CONFIG, WEIGHTS
from store.parents import holds_store
from store.transcoders.files import check_arrays, read_arrays, read_config
from store.usage import nearest
from store.views import VIEWS, Norm, ViewName

OBSOLETE = (("standardised", False),)
"""Keys of older config.json files, each with the value that means nothing now."""


class TranscoderConfig(BaseModel):
    """What the weights are for. Written beside them as config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: Literal[1] = 1
    name: str
    architecture: str
    """How it was trained, for people: `matryoshka_batchtopk`, `jumprelu`, ..."""
    activation: Literal["threshold", "topk"] = "threshold"
    """`threshold`: relu(pre) * (pre > threshold); `topk`: the k largest positive pre-activations of each row."""
    model: str
    layer: int
    source_site: str = "resid_mid"
    target_site: str = "mlp_out"
    target_layer: int | None = None
    """None where it is `layer`."""
    view: ViewName
    d_in: int
    d_sae: int
    d_out: int
    k: int | None
    """Intended L0; None where the maker states none."""
    prefix_sizes: tuple[int, ...]
    """Cumulative; the last is d_sae. One entry when the dictionary is not nested."""
    store_fingerprint: str | None = None
    """Of the shards it was trained on; None for transcoders made elsewhere."""
    target_store_fingerprint: str | None = None
    """Of the target layer's shards, where target_layer is another layer."""
    units: Literal["raw"] = "raw"
    source: str = ""
    """Where the weights came from: a run, a hub repository and revision, a folder."""

    @model_validator(mode="before")
    @classmethod
    def _drop_obsolete(cls, fields: Any) -> Any:
        """The fields without those that earlier versions wrote to say what is always so now."""
        if not isinstance(fields, dict):
            return fields
        return {key: value for key, value in fields.items() if (key, value) not in OBSOLETE}


def check_prefix_sizes(sizes: tuple[int, ...], d_sae: int) -> None:
    """Refused unless the sizes are positive, increasing and end at d_sae."""
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise Refused(f"prefix_sizes {list(sizes)} must be positive and increasing")
    if sizes[-1] != d_sae:
        raise Refused(f"prefix_sizes end at {sizes[-1]}, but d_sae is {d_sae}; make the last prefix the whole dictionary")


@dataclass(frozen=True)
class Transcoder:
    """A trained transcoder for inference; float32, on one device."""

    config: TranscoderConfig
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " d_sae"]
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    config_kind: ClassVar[type[TranscoderConfig]] = TranscoderConfig

    def __post_init__(self) -> None:
        c = self.config
        check_prefix_sizes(c.prefix_sizes, c.d_sae)
        if c.k is not None and not 0 < c.k <= c.d_sae:
            raise Refused(f"k is {c.k}, but the dictionary has {c.d_sae} latents; choose 0 < k <= d_sae")
        for name, shape in _shapes(c).items():
            actual = tuple(getattr(self, name).shape)
            if actual != shape:
                raise Damaged(f"{c.name}: {name} has shape {list(actual)} where {list(shape)} belongs; {_cure_of_shape(c)}")
        if self.W_skip is not None and tuple(self.W_skip.shape) != (c.d_out, c.d_in):
            shape = list(self.W_skip.shape)
            raise Damaged(f"{c.name}: W_skip has shape {shape} where {[c.d_out, c.d_in]} belongs; {_cure_of_shape(c)}")

    def __repr__(self) -> str:
        """What it is, without its numbers."""
        c = self.config
        return f"Transcoder({c.name!r}: {c.d_in} -> {c.d_sae} latents -> {c.d_out}, on {self.W_dec.device})"

    def view(self, resid: Float[Tensor, "rows d"], norm: Norm) -> Float[Tensor, "rows d_in"]:
        """What this transcoder reads, x, from the rows of its source site as stored."""
        return VIEWS[self.config.view](resid, norm)

    @property
    def source_width(self) -> int:
        """Width of the source site; a subclass may read more columns, which its `view` adds."""
        return self.config.d_in

    def check_fits(self, layers: tuple[int, int], widths: tuple[int, int], where: str) -> None:
        """Refused unless it is for these layers and widths, each of source and target, which `where` holds."""
        own = self.config.layer, self.config.layer if self.config.target_layer is None else self.config.target_layer
        reads = self.source_width
        if own != layers or (reads, self.config.d_out) != widths:
            raise Refused(
                f"{self.config.name} is for {_layers(own)} with widths {reads} -> {self.config.d_out}, but "
                f"{where} holds {_layers(layers)} with {widths[0]} -> {widths[1]}"
            )

    def to_output(
        self, sums: Float[Tensor, "*prefixes rows d_out"], x: Float[Tensor, "rows d_in"] | None
    ) -> Float[Tensor, "*prefixes rows d_out"]:
        """The reconstruction of the target, from `offset` plus the latents' decoder rows: the same here."""
        return sums

    def to_output_change(
        self, change: Float[Tensor, "rows d_out"], x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_out"]:
        """The change of the reconstruction when the latents' decoder rows add up to so much more: the same here."""
        return change

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Latents of x; zero where the pre-activation is not above the threshold (arXiv 2407.14435)."""
        pre_acts = torch.addmm(self.b_enc, x, self.W_enc)
        if self.config.activation == "threshold":
            return pre_acts.relu_().mul_(pre_acts > self.threshold)
        top = pre_acts.topk(self.config.k or self.config.d_sae, dim=1)
        return torch.zeros_like(pre_acts).scatter_(1, top.indices, top.values.relu())

    def decode(
        self, latents: Float[Tensor, "rows d_sae"], x: Float[Tensor, "rows d_in"] | None = None
    ) -> Float[Tensor, "rows d_out"]:
        """Reconstruction of the target. Refused when there is a skip connection and x is not given."""
        return self.to_output(torch.addmm(self.offset(x), latents, self.W_dec), x)

    def offset(self, x: Float[Tensor, "rows d_in"] | None) -> Tensor:
        """The part of the reconstruction that is not from latents: b_dec, plus x @ W_skip.T with a skip connection."""
        if self.W_skip is None:
            return self.b_dec
        if x is None:
            raise Refused(f"{self.config.name} has a skip connection: decode needs x")
        return torch.addmm(self.b_dec, x, self.W_skip.T)

    def __call__(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        return self.decode(self.encode(x), x)

    def prefix(self, m: int) -> "Transcoder":
        """The transcoder cut to its first m latents, of which topk keeps its own k largest.

        Refused unless m is one of its prefix sizes.
        """
        sizes = self.config.prefix_sizes
        if m not in sizes:
            raise Refused(f"{m} is not a prefix of {self.config.name}; its prefixes are {list(sizes)}")
        k = None if self.config.k is None else min(self.config.k, m)
        config = self.config.model_copy(update={"d_sae": m, "prefix_sizes": sizes[: sizes.index(m) + 1], "k": k})
        return replace(
            self,
            config=config,
            W_enc=self.W_enc[:, :m],
            b_enc=self.b_enc[:m],
            W_dec=self.W_dec[:m],
            threshold=self.threshold[:m],
        )

    def whole(self) -> "Transcoder":
        """The same dictionary without its inner prefixes."""
        return replace(self, config=self.config.model_copy(update={"prefix_sizes": self.config.prefix_sizes[-1:]}))

    def to(self, device: torch.device | str) -> "Transcoder":
        moved = {name: array.to(device) for name, array in self.arrays().items()}
        return replace(self, **moved)

    def arrays(self) -> dict[str, Tensor]:
        """The weights by name, W_skip only where there is one."""
        arrays = {name: getattr(self, name) for name in _shapes(self.config)}
        return arrays if self.W_skip is None else arrays | {"W_skip": self.W_skip}

    def save(self, directory: Path) -> None:
        """Writes config.json and transcoder.safetensors, each whole or not at all; weights last."""
        write_text(directory / CONFIG, self.config.model_dump_json(indent=1) + "\n")
        write_tensors(directory / WEIGHTS, self.arrays())

    @classmethod
    def load(cls, directory: Path | str, device: torch.device | str = "cpu") -> "Transcoder":
        """The transcoder in a directory, or at hf://user/repo/path@revision on the hub.

        Refused for a missing file; Damaged for a wrong key or shape, or a NaN. Errors of the hub as `store.hub` explains
        them.
        """
        if str(directory).startswith("hf:/"):
            from store.hub import fetch_transcoder  # imports the hub's library

            directory = fetch_transcoder(directory)
        directory = Path(directory)
        for name in (CONFIG, WEIGHTS):
            if not (directory / name).exists():
                raise Refused(f"{directory} holds no transcoder: {name} is missing; {_what_instead(directory)}")
        config = read_config(directory / CONFIG, cls.config_kind)
        arrays = read_arrays(directory / WEIGHTS)
        check_arrays(directory / WEIGHTS, arrays, set(_shapes(config)), optional={"W_skip"})
        return cls(config, **arrays).to(device)


def _what_instead(directory: Path) -> str:
    """What to give in the place of a folder that is no run, by what lies there."""
    if directory.is_file():
        return f"it is a file: give its folder, {directory.parent}"
    if holds_store(directory):
        return "it is an activation store, which STORE= takes; give a run's folder"
    inside = sorted(str(path.parent) for path in directory.glob(f"*/{WEIGHTS}"))
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        return f"it is the folder of {', '.join(inside[:3])}{more}: give one of these"
    if (directory / CONFIG).exists() or (directory / WEIGHTS).exists():
        return "restore it, or fetch the folder of the run again"
    if (directory / TRAIN_CONFIG).exists():
        return "its training has not ended: the command that began it goes on with it"
    runs = [] if directory.exists() else [path.parent.name for path in directory.parent.glob(f"*/{WEIGHTS}")]
    near = nearest(directory.name, runs)
    if near is not None:
        return f"did you mean {directory.parent / near}? Else train one with `make train`"
    return "train one with `make train`, or give a transcoder of another project as BASELINE="


def _cure_of_shape(config: TranscoderConfig) -> str:
    where = f" in {config.source}" if config.source else ""
    return (
        f"the arrays{where} are of another size, transposed, or have a dimension of 1 too many; write them as "
        "[d_in, d_sae], [d_sae], [d_sae, d_out] and [d_out]"
    )


def _shapes(config: TranscoderConfig) -> dict[str, tuple[int, ...]]:
    return {
        "W_enc": (config.d_in, config.d_sae),
        "b_enc": (config.d_sae,),
        "W_dec": (config.d_sae, config.d_out),
        "b_dec": (config.d_out,),
        "threshold": (config.d_sae,),
    }


def _layers(layers: tuple[int, int]) -> str:
    source, target = layers
    return f"layer {source}" if source == target else f"layers {source} -> {target}"
