"""The rows of a shard: which are kept, in which order they lie, and the arrays of its file."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from store.devices import on_host
from store.mlp.proof import PROOF, PROOF_ROWS
from store.shards.manifest import Recipe, Rest
from store.shards.sums import shard_sums
from store.views import Norm


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """What the harvester hands over: rows in the order of the tokens."""

    tokens: Tensor
    """int32 [n_sequences, context]."""
    sites: dict[str, Tensor]
    """Each [n_sequences * context, width], on the host or on the model's device."""
    first_document: int
    next_document: int
    rest: Rest | None = None
    """Of a document that is longer than a shard and that this shard's end cuts."""
    bad_records: int = 0
    """Records among these documents that hold none and were left out."""
    repeats: int = 0
    """Those of them that repeat an earlier one and were left out."""
    template: Tensor | None = None
    """int32 [n_sequences, context]: 1 at tokens that a chat template put around the messages; None where there is none."""

    batch_sequences: int | None = None
    """Sequences that the model ran at once, where that is to be recorded."""

    @property
    def device(self) -> str | None:
        """The kind of device that the rows lie on, such as cuda; None for the host."""
        kinds = {values.device.type for values in self.sites.values()} - {"cpu"}
        return min(kinds, default=None)


def shard_order(tokens: Tensor, excluded: Sequence[int], seed: int, also: Tensor | None = None) -> tuple[Tensor, int]:
    """The order in which a shard's rows are written (int64), and how many of them are kept: those come first, shuffled.

    also: bool, by row, further rows that are not kept.
    """
    dropped = excluded_ids(tokens, excluded)
    if also is not None:
        dropped = dropped | also
    kept = (~dropped).nonzero().squeeze(1)
    shuffle = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
    return torch.cat([kept[shuffle], dropped.nonzero().squeeze(1)]), len(kept)


def excluded_ids(tokens: Tensor, excluded: Sequence[int]) -> Tensor:
    """Which tokens, flattened, are among these ids."""
    flat = tokens.flatten()
    return torch.isin(flat, torch.tensor(excluded, dtype=flat.dtype)) if excluded else torch.zeros_like(flat).bool()


def also_excluded(rows: ShardRows, recipe: Recipe) -> tuple[Tensor, int]:
    """Which rows the recipe's options leave out beside excluded ids, and how many of them for their norm alone."""
    dropped = torch.zeros(rows.tokens.shape, dtype=torch.bool)
    if recipe.exclude_first is not None:
        dropped[:, : recipe.exclude_first] = True
    if recipe.exclude_template and rows.template is not None:
        dropped |= rows.template.bool()
    dropped = dropped.flatten()
    if recipe.exclude_norm is None:
        return dropped, 0
    norms = rows.sites[recipe.norm_site].to(recipe.torch_dtype).float().norm(dim=1).cpu()
    counted = ~(dropped | excluded_ids(rows.tokens, recipe.excluded_tokens))
    far = counted & (norms > recipe.exclude_norm * norms[counted].median())
    return dropped | far, int(far.sum())


def shard_arrays(rows: ShardRows, number: int, recipe: Recipe, norm: Norm) -> tuple[dict[str, Tensor], int, int]:
    """The arrays of a shard's file, in their order, and the numbers of rows kept and of rows left out for their norm.

    They depend on nothing else. Rows on a device are shuffled and added up there; the arrays lie on the host.
    """
    dropped, far = also_excluded(rows, recipe)
    order, kept = shard_order(rows.tokens, recipe.excluded_tokens, recipe.seed * 1_000_003 + number, dropped)
    dtype = recipe.torch_dtype
    sites = {site: values.to(dtype).index_select(0, order.to(values.device)) for site, values in rows.sites.items()}
    also = {} if rows.template is None else {"template": rows.template}
    if recipe.targets is not None:
        also = also | {PROOF: sites["mlp_out"][: min(PROOF_ROWS, kept)]}
    stored = {site: values for site, values in sites.items() if site in recipe.stored_sites}
    arrays = {"tokens": rows.tokens, "token_index": order.int()} | stored | shard_sums(sites, kept, norm) | also
    return on_host(arrays), kept, far
