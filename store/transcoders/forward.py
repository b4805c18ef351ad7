"""A transcoder run sparsely: active latents as a list, and every prefix's reconstruction from one decode."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from store.sparse.scan import Entries, bag_sums, cut_into_bags, scan
from store.transcoders.transcoder import Transcoder


class Forward:
    """One transcoder, made ready for many batches. It computes in the dtype of its weights."""

    def __init__(self, transcoder: Transcoder) -> None:
        self.transcoder = transcoder
        sizes = torch.tensor(transcoder.config.prefix_sizes, device=transcoder.W_dec.device)
        self.group_of = torch.bucketize(torch.arange(transcoder.config.d_sae, device=sizes.device), sizes, right=True)
        self.encoder = transcoder.W_enc.T.contiguous()
        self.cutoff = transcoder.threshold.clamp_min(0)

    def entries(self, x: Float[Tensor, "rows d_in"]) -> Entries:
        """The active latents of x and their values, by latent, then by row: `Transcoder.encode` as a list."""
        if self.transcoder.config.activation == "threshold":
            return scan(x, self.encoder, self.transcoder.b_enc, self.cutoff)
        latents = self.transcoder.encode(x).T
        latent, row = latents.nonzero(as_tuple=True)
        return Entries(latents[latent, row], row, latent)

    def prefixes(
        self, entries: Entries, x: Float[Tensor, "rows d_in"]
    ) -> tuple[Float[Tensor, "prefixes rows d_out"], Int[Tensor, "prefixes rows"]]:
        """The reconstruction by each prefix, and its active latents in each row: groups are summed, then accumulated."""
        rows, groups = len(x), len(self.transcoder.config.prefix_sizes)
        bags = cut_into_bags(entries, self.group_of, groups, rows)
        latent, value = (part.index_select(0, bags.order) for part in (entries.latent, entries.value))
        recon = self.all_reduce(bag_sums(self.transcoder.W_dec, latent, bags.starts, value)).view(groups, rows, -1)
        recon[0] += self.transcoder.offset(x)
        for group in range(1, groups):
            recon[group] += recon[group - 1]
        recon = self.transcoder.to_output(recon, x)
        return recon, self.all_reduce(torch.bincount(bags.bag, minlength=groups * rows)).view(groups, rows).cumsum(0)

    def all_reduce(self, sums: Tensor) -> Tensor:
        """The sums over all latents; these are all, unless the transcoder is part of one."""
        return sums


class SharedEncoder:
    """Forwards of one encoder at several thresholds: one scan above the lowest of them serves all."""

    def __init__(self, members: Sequence[Forward]) -> None:
        self.members = members
        self.lowest = torch.stack([member.cutoff for member in members]).amin(0)

    def entries(self, x: Float[Tensor, "rows d_in"]) -> Iterator[Entries]:
        """The active latents of each member."""
        first = self.members[0]
        if len(self.members) == 1:
            yield first.entries(x)
            return
        found = scan(x, first.encoder, first.transcoder.b_enc, self.lowest)
        for member in self.members:
            yield found.where(found.value > member.cutoff.index_select(0, found.latent))


def encoder_key(t: Transcoder) -> tuple:
    """Equal for transcoders whose entries differ by their thresholds alone."""
    same = (type(t), t.W_enc.data_ptr(), t.b_enc.data_ptr(), t.config.view)
    return same if t.config.activation == "threshold" else (id(t),)
