"""A transcoder run sparsely: active latents as a list, and every prefix's reconstruction from one decode."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from store.sparse.scan import Entries, bag_sums, cut_into_bags, scan
from store.transcoders.transcoder import Transcoder


class Prefixes(NamedTuple):
    """What every prefix does with some rows, each as a transcoder by itself."""

    recon: Float[Tensor, "prefixes rows d_out"]
    l0: Int[Tensor, "prefixes rows"]
    """Active latents of each row."""
    fired: Int[Tensor, "prefixes d_sae"]
    """Rows on which each latent is active. Latents beyond the prefix are not its own: what stands there means nothing."""


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
        return self.largest(x, self.transcoder.config.d_sae)

    def largest(self, x: Float[Tensor, "rows d_in"], size: int) -> Entries:
        """TopK's active latents of the prefix of a size: the k largest of each row among the prefix's own latents."""
        latents = self.transcoder.prefix(size).encode(x).T
        latent, row = latents.nonzero(as_tuple=True)
        return Entries(latents[latent, row], row, latent)

    def prefixes(self, entries: Entries, x: Float[Tensor, "rows d_in"]) -> Prefixes:
        """What each prefix does with x, whose active latents are `entries`: `Transcoder.prefix` of every size at once.

        With thresholds the entries of a prefix are those of its latents: one decode sums groups, which are accumulated.
        TopK chooses the entries of every prefix anew.
        """
        sizes = self.transcoder.config.prefix_sizes
        d_sae = self.transcoder.config.d_sae
        offset = self.transcoder.offset(x)
        if self.transcoder.config.activation == "threshold":
            recon, l0 = self._sums(entries, self.group_of, len(sizes), len(x))
            recon[0] += offset
            for group in range(1, len(sizes)):
                recon[group] += recon[group - 1]
            l0 = l0.cumsum(0)
            fired = occurrences(entries.latent, d_sae).expand(len(sizes), d_sae)
        else:
            chosen = [*(self.largest(x, size) for size in sizes[:-1]), entries]
            one_group = torch.zeros_like(self.group_of)
            sums = [self._sums(each, one_group, 1, len(x)) for each in chosen]
            recon = torch.cat([part for part, _ in sums]) + offset
            l0 = torch.cat([part for _, part in sums])
            fired = torch.stack([occurrences(each.latent, d_sae) for each in chosen])
        return Prefixes(self.transcoder.to_output(recon, x), l0, fired)

    def _sums(self, entries: Entries, group_of: Tensor, groups: int, rows: int) -> tuple[Tensor, Tensor]:
        """For each group and row the sum of its latents' decoder rows, [groups, rows, d_out], and how many are active."""
        bags = cut_into_bags(entries, group_of, groups, rows)
        latent, value = (part.index_select(0, bags.order) for part in (entries.latent, entries.value))
        sums = self.all_reduce(bag_sums(self.transcoder.W_dec, latent, bags.starts, value)).view(groups, rows, -1)
        return sums, self.all_reduce(occurrences(bags.bag, groups * rows)).view(groups, rows)

    def all_reduce(self, sums: Tensor) -> Tensor:
        """The sums over all latents; these are all, unless the transcoder is part of one."""
        return sums


def occurrences(index: Int[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """How often each number below `count` occurs. Unlike torch.bincount it does not wait for the device."""
    return torch.zeros(count, dtype=torch.int64, device=index.device).scatter_add_(0, index, torch.ones_like(index))


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
