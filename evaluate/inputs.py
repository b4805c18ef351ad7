"""Whether a transcoder reads the tensor that it was trained on: every view of the same rows, tried on it."""

import torch

from evaluate.forward import Forward
from store.batches import batches
from store.reader import Store
from store.transcoder import Transcoder
from store.views import VIEWS

ROWS = 512
"""Training rows on which the views are tried."""
MARGIN = 0.98
"""Another view fits better when its FVU is below this share of the own one's."""


@torch.no_grad()
def fvu_by_view(transcoder: Transcoder, store: Store, device: torch.device) -> dict[str, float]:
    """FVU on some training rows with each view of the source in the place of the transcoder's own."""
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    stop = min(ROWS, store.manifest.n_rows("train"))
    moved, norm = transcoder.to(device), store.norm.to(device)
    [batch] = batches(store, "train", stop, view="raw", sites=sites, device=device, stop=stop)
    y, found = batch.target, {}
    total = float((y - y.mean(0)).square().sum(dtype=torch.float64))
    for view in VIEWS:
        config = moved.config.model_copy(update={"view": view})
        forward = Forward(Transcoder(config, **moved.arrays()))
        x = forward.transcoder.view(batch.source, norm)
        recon, _ = forward.prefixes(forward.entries(x), x)
        found[view] = float((recon[-1] - y).square().sum(dtype=torch.float64)) / total
    return found
