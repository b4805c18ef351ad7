"""The same transcoder at other L0s, by moving its threshold: reconstructions are compared at equal L0 only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.estimates import Estimate
from evaluate.intervals import Statistic, difference
from evaluate.metrics.measurement import AtL0
from store.loader.batches import batches
from store.shards.reader import Store
from store.sparse.scan import scan
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

CALIBRATION_ROWS = 4096
"""Training rows on which thresholds are set; held-out rows never decide them."""

FACTORS = (0.25, 0.5, 0.71, 1.41, 2.0)
"""Points of the frontier, as multiples of our L0."""

CE_FACTORS = (0.5, 1.41)
"""Those at which the language model is run too, beside each transcoder as it is."""

LOWEST = 0.4
"""Thresholds are lowered to this share of what they were, at most."""

SAME = 0.02
"""An L0 this near, as a share, is left as it is."""


class ThresholdTuner:
    """Turns one transcoder's threshold: how far each activation is above it, on training rows (endlessly above 0)."""

    def __init__(self, transcoder: Transcoder, store: Store, device: torch.device) -> None:
        moved = transcoder.to(device)
        self.transcoder = replace(moved, W_enc=moved.W_enc.T.contiguous().T)  # so that every variant shares one encoder
        self.ratios, self.rows = self._ratios(store, device)

    @torch.no_grad()
    def _ratios(self, store: Store, device: torch.device) -> tuple[Float[Tensor, " n"], int]:
        t = self.transcoder
        forward = Forward(t)
        low = forward.cutoff * LOWEST
        norm = store.norm.to(device)
        found = []
        rows = 0
        stop = min(CALIBRATION_ROWS, store.manifest.n_rows("train"))
        sites = t.config.source_site, t.config.target_site
        for batch in batches(store, "train", 1024, view="raw", sites=sites, device=device, stop=stop):
            x = t.view(batch.source, norm)
            entries = scan(x, forward.encoder, t.b_enc, low)
            found.append(entries.value / forward.cutoff[entries.latent])
            rows += len(x)
        return torch.cat(found).sort(descending=True).values, rows

    @property
    def l0(self) -> float:
        """L0 on the training rows as it is."""
        t = self.transcoder
        return float(t.config.k or 0) if t.config.activation == "topk" else int((self.ratios > 1).sum()) / self.rows

    def at(self, l0: float) -> Transcoder | None:
        """The transcoder at another L0; itself when it is there already, None when its threshold cannot go so low, or is 0
        (a ReLU's), which no factor moves."""
        t = self.transcoder
        if abs(l0 / max(self.l0, 1e-9) - 1) <= SAME:
            return t
        if t.config.activation == "topk":
            return replace(t, config=t.config.model_copy(update={"k": max(1, min(round(l0), t.config.d_sae))}))
        place = round(l0 * self.rows)
        if not 0 < place < len(self.ratios):
            return None
        factor = float((self.ratios[place - 1] + self.ratios[place]) / 2)
        return replace(t, threshold=t.threshold.clamp_min(0) * factor) if math.isfinite(factor) else None


@dataclass(frozen=True)
class Variant:
    """A transcoder with its threshold moved to `factor` times the first one's L0; `factor` is None as it is."""

    factor: float | None
    transcoder: Transcoder


def variants(dials: Sequence[ThresholdTuner]) -> list[list[Variant]]:
    """For each transcoder itself, then its variants at the same L0s, multiples of the first one's."""
    found = []
    for dial in dials:
        moved = [(factor, dial.at(dials[0].l0 * factor)) for factor in FACTORS]
        others = [Variant(factor, t) for factor, t in moved if t is not None and t is not dial.transcoder]
        found.append([Variant(None, dial.transcoder), *others])
    return found


@runtime_checkable
class Table(Protocol):
    """Sums by document of both transcoders, from which statistics are estimated together."""

    def estimate(self, statistic: Statistic) -> Estimate: ...


@dataclass(frozen=True)
class Point:
    """One transcoder at one setting of its threshold."""

    l0: float
    statistic: Statistic


def between(points: Sequence[Point], l0: float) -> Statistic | None:
    """The statistic at an L0, linear in log L0 between the two nearest points; None outside of what was measured."""
    ordered = sorted(points, key=lambda point: point.l0)
    for low, high in pairwise(ordered):
        if 0 < low.l0 <= l0 <= high.l0 and low.l0 < high.l0:
            share = math.log(l0 / low.l0) / math.log(high.l0 / low.l0)
            return _mixed(low.statistic, high.statistic, share)
    return None


def _mixed(low: Statistic, high: Statistic, share: float) -> Statistic:
    return lambda sums: (1 - share) * low(sums) + share * high(sums)


def at_equal_l0(table: Table, ours: Sequence[Point], theirs: Sequence[Point], l0s: Sequence[float]) -> tuple[AtL0, ...]:
    """Both frontiers read off at each of some L0s that both reach, with the paired difference, theirs minus ours."""
    found = []
    for l0 in l0s:
        mine = between(ours, l0)
        other = between(theirs, l0)
        if mine is not None and other is not None:
            at_l0 = AtL0(
                l0=l0,
                ours=table.estimate(mine).value,
                other=table.estimate(other).value,
                minus_ours=table.estimate(difference(other, mine)),
            )
            found.append(at_l0)
    return tuple(found)
