"""Which of a row's active latents earn their place: those without which its squared error would be larger."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evaluate.estimates import Estimate
from evaluate.intervals import by_document, estimate, ratio, resample
from evaluate.rows import FIRST_ROWS, places, rows_in_order
from store.shards.reader import Store
from store.sparse.scan import Entries, sampled_dots
from store.transcoders.forward import Forward, occurrences
from store.transcoders.transcoder import Transcoder


@dataclass(frozen=True)
class Usefulness:
    """The firings on some held-out rows, and how many of them lower their row's squared error."""

    useful: Int[Tensor, " d_sae"]
    fired: Int[Tensor, " d_sae"]
    share: Estimate
    """Of all firings, with its interval by bootstrap over documents."""

    @property
    def by_latent(self) -> Float[Tensor, " d_sae"]:
        """The share of each latent's firings; NaN where it does not fire on these rows."""
        return torch.where(self.fired > 0, self.useful / self.fired.clamp_min(1), torch.nan)


def is_useful(
    entries: Entries, error: Float[Tensor, "rows d_out"], W_dec: Float[Tensor, "d_sae d_out"]
) -> Bool[Tensor, " n"]:
    """By firing, whether leaving that latent alone out of its row would make the squared error larger.

    With the error e = reconstruction - target, the value f and the decoder row d this is |e - f d|^2 > |e|^2, so
    f |d|^2 > 2 e . d, since f is positive.
    """
    along = sampled_dots(error, W_dec, entries.latent, entries.row)
    return entries.value * W_dec.square().sum(1)[entries.latent] > 2 * along


@torch.no_grad()
def usefulness(transcoder: Transcoder, store: Store, device: torch.device, rows: int = FIRST_ROWS) -> Usefulness | None:
    """The usefulness of the latents on the first held-out rows; None for a kind of transcoder whose output is not the sum
    of its decoder rows, and where nothing fires."""
    if type(transcoder) is not Transcoder:
        return None
    forward = Forward(transcoder.whole().to(device))
    norm = store.norm.to(device)
    d_sae = transcoder.config.d_sae
    sites = (transcoder.config.source_site, transcoder.config.target_site)
    useful = torch.zeros(d_sae, dtype=torch.int64, device=device)
    fired = torch.zeros_like(useful)
    by_row = []
    for batch in rows_in_order(store, "heldout", 1024, device, "usefulness", limit=rows, sites=sites):
        x = transcoder.view(batch.source, norm)
        entries = forward.entries(x)
        [recon] = forward.prefixes(entries, x).recon
        lowers = is_useful(entries, recon - batch.target, forward.transcoder.W_dec)
        kept = entries.where(lowers)
        useful += occurrences(kept.latent, d_sae)
        fired += occurrences(entries.latent, d_sae)
        by_row.append(torch.stack([occurrences(each.row, len(x)) for each in (kept, entries)], dim=1))
    if not fired.any():
        return None
    table = torch.cat(by_row).cpu()
    sums = by_document(places(store, "heldout", len(table)).document, table.double())
    return Usefulness(useful.cpu(), fired.cpu(), estimate(ratio(0, 1), sums, resample(sums)))
