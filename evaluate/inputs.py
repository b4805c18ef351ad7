"""Whether a transcoder reads the tensor that it was trained on: every view of the same rows, tried on it."""

import torch

from evaluate.forward import Forward
from store.batches import batches
from store.reader import Store
from store.transcoder import Transcoder
from store.views import VIEWS

ROWS = 2048
"""Training rows on which the views are tried."""
MARGIN = 0.98
"""Another view fits better when its FVU is below this share of the own one's."""


@torch.no_grad()
def fvu_by_view(transcoder: Transcoder, store: Store, device: torch.device) -> dict[str, float]:
    """FVU on some training rows with each view of the source in the place of the transcoder's own."""
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    stop = min(ROWS, store.manifest.n_rows("train"))
    moved, norm = transcoder.to(device), store.norm.to(device)
    sse = dict.fromkeys(VIEWS, 0.0)
    [batch] = batches(store, "train", stop, view="raw", sites=sites, device=device, stop=stop)
    y = batch.target
    for view in VIEWS:
        config = moved.config.model_copy(update={"view": view})
        forward = Forward(Transcoder(config, **moved.arrays()))
        for rows in torch.arange(stop, device=device).split(512):
            x = forward.transcoder.view(batch.source[rows], norm)
            recon, _ = forward.prefixes(forward.entries(x), x)
            sse[view] += float((recon[-1] - y[rows]).square().sum(dtype=torch.float64))
    total = float((y - y.mean(0)).square().sum(dtype=torch.float64))
    return {view: error / total for view, error in sse.items()}
