"""Checkpoints of the earlier matryoshka_transcoder code, read into the one Transcoder class.

A run's folder holds `config.json` and `checkpoint.pt` (or `checkpoints/final.pt`): a PyTorch state dict, read without
running anything in it. Its inference is relu(pre) * (relu(pre) > threshold), one threshold for all latents.

With `input_unit_norm`, that code's default, each row is brought to mean 0 and deviation 1 on the way in, and the output is
scaled back by the mean and deviation of the SOURCE row: a mistake, kept so that these runs are measured as they are.
"""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from store.counts import cumulative_sizes
from store.errors import Damaged, Refused
from store.transcoders.files import check_arrays, read_settings
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import Norm, ViewName

CHECKPOINTS = ("checkpoint.pt", "checkpoints/final.pt")

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}

SOURCES: dict[str, ViewName] = {"hook_resid_mid": "raw", "hook_mlp_in": "raw", "ln2.hook_normalized": "rms"}
"""By hook of that code's TransformerLens, where hook_mlp_in is resid_mid before the norm."""


class LegacyConfig(TranscoderConfig):
    """Of a transcoder that standardises its input; `d_in` is two more than the source site's width."""

    standardised: Literal[True]


class LegacyTranscoder(Transcoder):
    """Reads standardised rows and, as two more columns, their mean and deviation, for which W_enc has rows of zeros."""

    config_kind: ClassVar[type[TranscoderConfig]] = LegacyConfig

    @property
    def source_width(self) -> int:
        return self.config.d_in - 2

    def view(self, resid: Float[Tensor, "rows d"], norm: Norm) -> Float[Tensor, "rows d_in"]:
        x = super().view(resid, norm)
        deviation, mean = torch.std_mean(x, dim=1, keepdim=True)
        return torch.cat([(x - mean) / (deviation + 1e-5), mean, deviation], dim=1)

    def to_output(
        self, sums: Float[Tensor, "*prefixes rows d_out"], x: Float[Tensor, "rows d_in"] | None
    ) -> Float[Tensor, "*prefixes rows d_out"]:
        """Scaled by the source row's deviation and moved by its mean. Refused without x."""
        if x is None:
            raise Refused(f"{self.config.name} scales its output by its input: decode needs x")
        return sums * x[:, -1:] + x[:, -2:-1]

    def to_output_change(
        self, change: Float[Tensor, "rows d_out"], x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, "rows d_out"]:
        return change * x[:, -1:]


def checkpoint_in(directory: Path) -> Path | None:
    """The weights of a legacy run."""
    return next((path for name in CHECKPOINTS if (path := directory / name).exists()), None)


def load_legacy(directory: Path) -> Transcoder:
    """A legacy run. Refused for another pair of sites, Damaged for unknown keys or sizes that do not fit together.

    `group_sizes` and `prefix_sizes` there may be either notation, as lists or JSON text.
    """
    path = checkpoint_in(directory)
    if path is None:
        raise Refused(f"{directory} holds none of {', '.join(CHECKPOINTS)}")
    config = read_settings(directory / "config.json")
    arrays = _state(path)
    check_arrays(path, arrays, KEYS)
    layer, view = _source(directory, config)
    d_in, d_sae = arrays["W_enc"].shape
    arrays["threshold"] = arrays["threshold"].reshape(-1).expand(d_sae).contiguous()
    name = config.get("experiment_description") or directory.name
    ours = TranscoderConfig(
        name=f"legacy {name}",
        architecture="matryoshka_batchtopk",
        model=str(config.get("model_name", "")),
        layer=layer,
        view=view,
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["W_dec"].shape[1],
        k=config.get("top_k"),
        prefix_sizes=_sizes(directory, config, d_sae),
        source=str(directory),
    )
    plain = Transcoder(ours, **arrays)
    return standardising(plain) if config.get("input_unit_norm", False) else plain


def standardising(plain: Transcoder) -> LegacyTranscoder:
    """The transcoder that gives standardised rows to this one, and scales its output back."""
    fields = plain.config.model_dump() | {"standardised": True, "d_in": plain.config.d_in + 2}
    W_enc = torch.nn.functional.pad(plain.W_enc, (0, 0, 0, 2))
    return LegacyTranscoder(LegacyConfig(**fields), **(plain.arrays() | {"W_enc": W_enc}))


def _state(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise Damaged(f"{path} is no plain state dict; save model.state_dict()")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Damaged(f"{path} is no plain state dict ({str(error).splitlines()[0]}); save model.state_dict()") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Damaged(f"{path} is no plain state dict; save model.state_dict()")
    return {name: value.float() for name, value in state.items()}


def _source(directory: Path, config: dict[str, Any]) -> tuple[int, ViewName]:
    source, target = (str(config.get(f"{side}_hook_point", "")) for side in ("source", "target"))
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", source)
    end = re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", target)
    if match is None or end is None or match[1] != end[1] or match[2] not in SOURCES:
        raise Refused(
            f"{directory / 'config.json'} goes from {source!r} to {target!r}; only from {sorted(SOURCES)} to "
            "the mlp_out of the same layer can be read"
        )
    return int(match[1]), SOURCES[match[2]]


def _sizes(directory: Path, config: dict[str, Any], d_sae: int) -> tuple[int, ...]:
    listed = config.get("prefix_sizes") or config.get("group_sizes") or [d_sae]
    try:
        sizes = cumulative_sizes(json.loads(listed) if isinstance(listed, str) else listed, d_sae)
    except (ValueError, LookupError, TypeError):
        sizes = None
    if sizes is None:
        raise Damaged(
            f"{directory / 'config.json'}: sizes {listed} neither end at nor sum to the {d_sae} latents of the weights"
        )
    return sizes
