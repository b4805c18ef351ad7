"""The gate of an export: an independent reader gives the run's outputs from what was written, or nothing is kept."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from store.errors import Refused
from store.exports.readback import READERS, ReadBack, read_view
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from store.views import Norm, ViewName

ROWS = 256
"""Rows on which the outputs of both are compared."""

FVU_ROWS = 2048
"""Held-out rows on which the FVU of rounded weights is measured."""

TOLERANCE = 1e-5
"""The largest relative difference of the outputs. Pre-activations within as much of their threshold may pass it or not."""


@dataclass(frozen=True)
class Sample:
    """Rows on which a run and the files of its export are compared."""

    kind: str
    """For people: `held-out rows`, `training rows` or `random rows`."""
    resid: Float[Tensor, "rows d"]
    """Of the source site; where no norm is known, rows of the run's own view."""
    norm: Norm | None
    target: Float[Tensor, "rows d_out"] | None
    """None where the store is not there."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the gate found; it stands in export.json."""

    rows: str
    """On which rows, for people."""
    n_rows: int
    """Rows compared."""
    n_rows_at_threshold: int
    """Rows left out, because a latent is at its threshold: only one of the two lets it pass."""
    relative_error: float
    """Norm of the difference of the outputs over the norm of the outputs."""
    tolerance: float
    fvu: float | None = None
    """FVU of the run on FVU_ROWS of these rows; only of rounded weights."""
    fvu_written: float | None = None
    """The same of what was written."""
    l0: float | None = None
    """Mean active latents of the run on these rows: rounded thresholds let more or fewer pass."""
    l0_written: float | None = None

    def __str__(self) -> str:
        """For people."""
        aside = self.n_rows_at_threshold
        text = f"gate: outputs differ by {self.relative_error:.1e} (relative) on {self.n_rows} {self.rows}"
        text += f"; {aside} more have a latent at its threshold" if aside else ""
        if self.fvu is None or self.fvu_written is None:
            return text
        change = self.fvu_written - self.fvu
        text += f"; rounding changes FVU by {change:+.1e} ({self.fvu:.4f} to {self.fvu_written:.4f})"
        return f"{text}, and L0 from {self.l0:.1f} to {self.l0_written:.1f}"


def sample_of(ours: Transcoder, store: Store | None) -> Sample:
    """Held-out rows of the store; random rows where it is not there."""
    shards = () if store is None else store.manifest.shards
    if store is None or not shards:
        resid = torch.randn(ROWS, ours.config.d_in, generator=torch.Generator().manual_seed(0))
        return Sample("random rows", resid, None if store is None else store.norm, None)
    heldout = store.manifest.of_split("heldout")
    shard = next(iter(heldout), shards[0])
    n_rows = min(FVU_ROWS, shard.kept)
    config = ours.config
    target = None
    if store.target is None and config.target_site in store.manifest.widths:
        target = store.rows(shard, config.target_site, slice(n_rows)).float()
    resid = store.rows(shard, config.source_site, slice(n_rows))
    return Sample("held-out rows" if heldout else "training rows", resid, store.norm, target)


def gate(name: str, folder: Path, ours: Transcoder, made: Transcoder, sample: Sample) -> Gate:
    """Compares what was written with the run. Refused where the outputs differ by more than TOLERANCE.

    name: the layout.
    folder: where it was written.
    ours: the run.
    made: the run's transcoder in the view and the dtype that were written.
    sample: rows that both are given.
    """
    read = READERS[name](folder, ours.config.layer)
    rounded = made.W_enc.dtype != torch.float32
    expected = in_float32(made) if rounded else ours
    x = _input_of(expected, sample)[:ROWS]
    seen = _seen(read.view, sample, ours)[:ROWS]
    latents = expected.encode(x)
    latents_read = torch.from_numpy(read.encode(seen))
    converted = made.config.view != ours.config.view
    kept = ~_at_threshold(expected, latents, latents_read, converted)
    output = expected.decode(latents, x)
    output_read = torch.from_numpy(read.decode(latents_read.numpy(), seen))
    y = output[kept]
    error = float((output_read[kept] - y).norm() / y.norm().clamp_min(torch.finfo(y.dtype).tiny))
    if not error <= TOLERANCE:
        raise _apart(error, f"outputs on {len(x)} {sample.kind}", converted)
    found = Gate(
        rows=sample.kind,
        n_rows=int(kept.sum()),
        n_rows_at_threshold=len(x) - int(kept.sum()),
        relative_error=error,
        tolerance=TOLERANCE,
    )
    return _with_fvu(found, read, ours, sample) if rounded and sample.target is not None else found


def _with_fvu(found: Gate, read: ReadBack, ours: Transcoder, sample: Sample) -> Gate:
    assert sample.target is not None
    seen = _seen(read.view, sample, ours)
    latents_written = read.encode(seen)
    written = torch.from_numpy(read.decode(latents_written, seen))
    x = _input_of(ours, sample)
    latents = ours.encode(x)
    return replace(
        found,
        fvu=fvu(ours.decode(latents, x), sample.target),
        fvu_written=fvu(written, sample.target),
        l0=float((latents > 0).sum() / len(x)),
        l0_written=float((latents_written > 0).sum() / len(x)),
    )


def fvu(recon: Float[Tensor, "rows d"], target: Float[Tensor, "rows d"]) -> float:
    """Fraction of variance unexplained on these rows, about their own mean."""
    y = target.double()
    return float((y - recon.double()).square().sum() / (y - y.mean(0)).square().sum())


def in_float32(transcoder: Transcoder) -> Transcoder:
    """The transcoder with the numbers that it has, as float32."""
    return with_dtype(transcoder, torch.float32)


def with_dtype(transcoder: Transcoder, dtype: torch.dtype) -> Transcoder:
    """The transcoder rounded to a dtype."""
    arrays = {name: array.to(dtype) for name, array in transcoder.arrays().items()}
    return type(transcoder)(transcoder.config, **arrays)


def _input_of(transcoder: Transcoder, sample: Sample) -> Float[Tensor, "rows d_in"]:
    return sample.resid.float() if sample.norm is None else transcoder.view(sample.resid, sample.norm)


def _seen(view: ViewName, sample: Sample, ours: Transcoder) -> np.ndarray:
    """What the reader's tool would be given: the view that the files name."""
    resid = sample.resid.float().numpy()
    norm = sample.norm
    if norm is None:
        assert view == ours.config.view
        return resid
    if ours.source_width != ours.config.d_in:  # only a run can be written of these, which knows of the columns more
        return ours.view(sample.resid, norm).numpy()
    bias = None if norm.bias is None else norm.bias.double().numpy()
    gain = None if norm.kind == "none" else norm.gain.double().numpy()
    return read_view(view, resid, norm.kind, norm.eps, gain, bias)


def _at_threshold(
    expected: Transcoder, latents: Float[Tensor, "rows d_sae"], latents_read: Float[Tensor, "rows d_sae"], converted: bool
) -> Bool[Tensor, " rows"]:
    """Rows in which only one of the two lets a latent pass. Refused where that latent is not at its threshold."""
    either = (latents > 0) != (latents_read > 0)
    value = torch.maximum(latents, latents_read)[either]
    if expected.config.activation == "topk":  # the threshold of a row is its smallest latent that passes
        least = torch.where(latents > 0, latents, torch.inf).amin(1, keepdim=True)
        limit = torch.where(least.isinf(), 0, least).expand_as(latents)[either]
    else:
        limit = expected.threshold.clamp_min(0).expand_as(latents)[either]
    excess = (value - limit).abs() / limit.clamp_min(1)
    if bool((excess > TOLERANCE).any()):
        raise _apart(float(excess.max()), f"latents on {len(latents)} rows", converted)
    return either.any(1)


def _apart(error: float, what: str, converted: bool) -> Refused:
    cure = (
        "float32 cannot hold a norm as uneven as this; train with the view of the layout"
        if converted
        else "the writer of this layout is wrong: please report it"
    )
    return Refused(
        f"the files give {what} that differ from the run's by {error:.1e} (relative), more than {TOLERANCE:.0e}, so "
        f"nothing was kept: {cure}"
    )
