"""What a comparison claims, checked against the data that made it: where a claim fails, no winner is named."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from evaluate.metrics.measurement import Check, Measurement
from evaluate.metrics.readings import near
from store.loader.batches import batches
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from store.views import VIEWS

L0_TOLERANCE = 0.25
"""A measured L0 further from its label than this, as a share, is wrong."""

L0_REMARKED = 0.2
"""One further from it than this is remarked on."""

LONGER = (
    "it was trained too briefly, or for so many passes that it knows its rows by heart, or the held-out rows are unlike "
    "those that its threshold was set on; train it for longer, on more text (train/README.md: L0 far from k)"
)

SCALES = (2 / 3, 1.5)
"""best_scale outside these: the decoder was renormalised, the output is in other units, or rows do not belong together."""


def checks_of(m: Measurement, store: Store) -> list[Check]:
    """What must hold of the measurement of a transcoder, and whether it does."""
    by_view = m.fvu_by_view
    fits = min(by_view, key=by_view.__getitem__, default=m.view)
    tried = ", ".join(f"{view}: {value:.4g}" for view, value in by_view.items())
    heldout = sum(shard.kept for shard in store.manifest.of_split("heldout"))
    return [
        _check(
            "every held-out row was measured, and no other",
            m.split == "heldout" and m.n_rows == heldout,
            f"{m.name}: {m.n_rows} rows of split {m.split!r}; the store has {heldout} held-out rows",
            fault=f"{m.name} was not measured on exactly the held-out rows",
        ),
        _check(
            "the rows are of this store",
            m.store_fingerprint == store.fingerprint,
            f"{m.name} was measured on store {m.store_fingerprint}, this is {store.fingerprint}",
            fault=f"{m.name} was measured on another store",
        ),
        _check(
            "it was not trained on another store of ours",
            m.trained_on in (None, store.fingerprint),
            f"{m.name}: {m.trained_on or 'trained elsewhere'}",
            f"{m.name} was trained on store {m.trained_on}, this is {store.fingerprint}: what is held out here may "
            "be what it was trained on",
            fault=f"{m.name} was trained on another store and may have seen these rows",
        ),
        _check(
            "L0 is near its label",
            m.k is None or near(m.l0_mean, m.k, L0_TOLERANCE),
            f"{m.name}: measured L0 is {m.l0_mean:.1f}, {f'its label says {m.k}' if m.k else 'it states none'}",
            f"{m.name}: MEASURED L0 IS {m.l0_mean:.1f}, ITS LABEL SAYS {m.k}: {_why_l0_is_off(m, store)}",
            fault=f"the measured L0 of {m.name} is far from its label",
        ),
        _check(
            "no other view of its input fits better",
            not by_view or by_view[fits] >= MARGIN * by_view[m.view],
            f"{m.name} reads the {m.view!r} view; FVU by view: {tried}",
            f"{m.name} reads the {m.view!r} view, but leaves less unexplained of the {fits!r} view ({tried}): the "
            "norm's gain is applied where it must not be, or left out",
            fault=f"{m.name} explains more when it is given another view of its input",
        ),
        _check(
            "the output has the target's scale",
            m.dead_fraction == 1 or SCALES[0] <= m.best_scale <= SCALES[1],
            f"{m.name}: its output would fit best multiplied by {m.best_scale:.3f}",
            f"{m.name}: its output would fit best multiplied by {m.best_scale:.3f}, so the decoder was probably rescaled, "
            "or rows of source and target do not belong together",
            fault=f"the output of {m.name} has another scale than the target",
        ),
        _check(
            "it predicts better than the mean",
            m.fvu < 1,
            f"{m.name}: FVU is {m.fvu:.4f}; predicting the mean everywhere gives 1",
            fault=f"{m.name} is worse than predicting the mean",
        ),
    ]


def remarks_on(m: Measurement, store: Store) -> list[str]:
    """What a reader should know of a measurement although every check holds: an L0 some way from k, with the cure."""
    if m.k is None or near(m.l0_mean, m.k, L0_REMARKED) or not near(m.l0_mean, m.k, L0_TOLERANCE):
        return []
    off = f"{abs(m.l0_mean / m.k - 1):.0%} {'above' if m.l0_mean > m.k else 'below'}"
    cure = f": {LONGER}" if m.trained_on == store.fingerprint else ""
    return [f"{m.name}: measured L0 is {m.l0_mean:.1f}, {off} its label of {m.k}{cure}"]


def _why_l0_is_off(m: Measurement, store: Store) -> str:
    """What an L0 far from its label means: nothing fires, everything may, it was trained too briefly, or the input is
    another tensor."""
    if m.dead_fraction == 1:
        return "none of its latents fires on any of these rows; train it again, with a lower --lr or for longer"
    if m.k is not None and m.k == m.d_sae:
        return (
            "its label is its width, so that every positive pre-activation counts; train with a --k below --d-sae, "
            "or give the label that was meant"
        )
    if m.trained_on == store.fingerprint:
        return f"{LONGER}, or it reads another view (it reads {m.view!r}) than in training"
    return (
        f"the input is probably not the tensor it was trained on (it reads the {m.view!r} view), or its threshold was "
        "dropped; none of its figures can be trusted"
    )


def checks(measured: Sequence[Measurement], store: Store) -> list[Check]:
    """Whether all saw the same rows, and the checks of the first two."""
    same = len({(m.n_rows, m.rows_digest) for m in measured}) == 1
    rows = ", ".join(f"{m.name}: {m.n_rows} ({m.rows_digest[:8]})" for m in measured)
    first = _check("all saw the same rows", same, rows, fault="the transcoders were measured on different rows")
    return [first] + [c for m in measured[:2] for c in checks_of(m, store)]


def _check(claim: str, holds: bool, found: str, otherwise: str | None = None, *, fault: str) -> Check:
    """A check whose detail is `found`, or `otherwise` where it is given and the claim does not hold."""
    return Check(claim=claim, holds=holds, detail=found if holds or otherwise is None else otherwise, fault=fault)


ROWS = 512
"""Training rows on which the views are tried."""

MARGIN = 0.98
"""Another view fits better when its FVU is below this share of the own one's."""


@torch.no_grad()
def fvu_by_view(transcoder: Transcoder, store: Store, device: torch.device) -> dict[str, float]:
    """FVU on some training rows with each view of the source in the place of the transcoder's own."""
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    stop = min(ROWS, store.manifest.n_rows("train"))
    moved = transcoder.to(device)
    norm = store.norm.to(device)
    [batch] = batches(store, "train", stop, view="raw", sites=sites, device=device, stop=stop)
    y = batch.target
    found = {}
    total = float((y - y.mean(0)).square().sum(dtype=torch.float64))
    for view in VIEWS:
        config = moved.config.model_copy(update={"view": view})
        forward = Forward(replace(moved, config=config))
        x = forward.transcoder.view(batch.source, norm)
        recon = forward.prefixes(forward.entries(x), x).recon
        found[view] = float((recon[-1] - y).square().sum(dtype=torch.float64)) / total
    return found
