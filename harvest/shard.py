"""One shard: the model runs its batches while earlier ones are copied to the host; checked there."""

from collections.abc import Callable, Mapping
from threading import Lock

import torch
from torch import Tensor

from harvest.config import HarvestConfig
from harvest.model.batch import within_memory
from harvest.model.language_model import LanguageModel
from harvest.pool import Lanes
from harvest.text.tokens import PackedShard
from store.devices import SideStream
from store.errors import Refused
from store.mlp.forward import Mlp
from store.mlp.proof import check_fvu, recomputed_fvu
from store.shards.rows import ShardRows
from store.shards.writer import StoreWriter

IDENTITIES = (("resid_post", "resid_mid", "mlp_out"), ("resid_mid", "resid_pre", "attn_out"))
"""The first of each is the sum of the others."""
PARALLEL_IDENTITIES = (("resid_post", "resid_pre", "attn_out", "mlp_out"),)
"""The same where attention and MLP run side by side."""


class CollectedRows:
    """The rows of a shard, collected from batches: on the device, or on the host, where they lie in pinned memory and are
    filled on a side stream if the device is a GPU."""

    def __init__(self, rows: int, dtype: torch.dtype, on_device: bool) -> None:
        self.rows = rows
        self.dtype = dtype
        self.on_device = on_device
        self.buffers: dict[int, dict[str, Tensor]] = {}
        self.streams: dict[torch.device, SideStream] = {}
        self.lock = Lock()

    def take(self, layer: int, site: str, values: Tensor, start: int) -> None:
        """Begins the copy of a batch's rows to row `start` on; the device may go on computing. Thread-safe."""
        values = values.detach().flatten(0, 1)
        with self.lock:
            if values.device not in self.streams:
                self.streams[values.device] = SideStream(values.device)
            stream = self.streams[values.device]
            sites = self.buffers.setdefault(layer, {})
            if site not in sites and self.on_device:
                sites[site] = values.new_empty(self.rows, values.shape[1], dtype=self.dtype)
            elif site not in sites:
                sites[site] = torch.empty(self.rows, values.shape[1], dtype=self.dtype, pin_memory=stream.pins)
        place = sites[site][start : start + len(values)]
        if self.on_device:
            place.copy_(values)
            return
        if values.device.type != "cpu":
            values = values.to(self.dtype)  # half the bytes cross the bus
        stream.copy(values, place)

    def finish(self) -> dict[int, dict[str, Tensor]]:
        """The rows by layer and site, when all copies to the host are done; those on the device follow in its own order."""
        for stream in self.streams.values():
            stream.finish()
        return self.buffers


def run_shard(
    lanes: Lanes,
    packed: PackedShard,
    config: HarvestConfig,
    layers: tuple[int, ...],
    number: int,
    progress: Callable[[int], object] = lambda tokens: None,
    on_device: bool = False,
) -> dict[int, ShardRows]:
    """The rows of every token of a shard, by layer. Refused when the first batch's sites do not add up, or memory does not
    hold a batch.

    progress: is told the number of tokens of each finished batch.
    on_device: whether the rows stay on the model's device, so that nobody waits for them; they are on the host otherwise.
    """
    collected = CollectedRows(packed.tokens.numel(), getattr(torch, config.dtype), on_device)
    at_once = config.sequences_at_once

    def run_batch(model: LanguageModel, start: int) -> int:
        tokens = packed.tokens[start : start + at_once]
        first = number == start == 0
        found = model.run_layers(tokens, layers, model.sites_of(layers) if first else config.sites)
        for layer, sites in found.items():
            if first:
                check_identity(sites)
                if config.keeps_mlp:
                    check_recomputed(sites, model.mlp_of(layer), collected.dtype)
            for site in config.sites:
                collected.take(layer, site, sites[site], start * packed.tokens.shape[1])
        return tokens.numel()

    with within_memory(at_once):
        lanes.run(run_batch, range(0, len(packed.tokens), at_once), progress)
    return {
        layer: ShardRows(
            tokens=packed.tokens,
            sites=sites,
            first_document=packed.first_document,
            next_document=packed.next_document,
            rest=packed.rest,
            bad_records=packed.bad_records,
            repeats=packed.repeats,
            template=packed.template,
            batch_sequences=None if lanes.models[0].device.type == "cpu" else at_once,
        )
        for layer, sites in collected.finish().items()
    }


def write_shard(writers: Mapping[int, StoreWriter], rows: dict[int, ShardRows], number: int) -> None:
    """Checks a shard's rows and writes them, layer by layer; of `rows` nothing is left. Refused where one is not finite."""
    for layer, writer in writers.items():
        shape = (len(rows[layer].tokens), rows[layer].tokens.shape[1], -1)
        check_finite({site: values.view(shape) for site, values in rows[layer].sites.items()}, f"shard {number}", 0)
        writer.append(rows.pop(layer), number)


def check_finite(sites: dict[str, Tensor], where: str, first_sequence: int) -> None:
    """Refused naming site, sequence and token of the first value that is NaN or infinite."""
    for site, values in sites.items():
        if torch.stack(values.aminmax()).isfinite().all():
            continue  # of values with a NaN among them both are NaN
        bad = ~torch.isfinite(values).all(-1)
        sequence, position = bad.nonzero()[0].tolist()
        raise Refused(
            f"{site} is not finite in {where}, sequence {first_sequence + sequence}, token {position}; "
            "finished shards are kept. Try --compute-dtype float32 (or bfloat16 for models trained in it)"
        )


def check_recomputed(sites: dict[str, Tensor], mlp: Mlp, dtype: torch.dtype) -> None:
    """Refused unless the MLP gives back the first batch's rows of mlp_out, as far as rounding goes.

    Args:
        sites: the site that the MLP reads and mlp_out, [batch, context, d] each.
        mlp: of their layer.
        dtype: of the rows on disk.
    """
    after_bos = {site: sites[site][:, 1:].flatten(0, 1) for site in (mlp.norm.reads, "mlp_out")}
    resid, true = (rows.to(dtype) for rows in after_bos.values())
    check_fvu(recomputed_fvu(mlp, resid, true), "the first batch")


def check_identity(sites: dict[str, Tensor]) -> None:
    """Refused unless resid_post = resid_mid + mlp_out, as far as rounding goes; and, where there is attn_out, resid_mid =
    resid_pre + attn_out.

    Args:
        sites: every site of one layer, [batch, context, d] each.
    """
    for whole, *parts in IDENTITIES if "resid_mid" in sites else PARALLEL_IDENTITIES:
        if whole == "resid_mid" and "attn_out" not in sites:
            continue
        equation = f"{whole} = {' + '.join(parts)}"
        shapes = {sites[name].numel() for name in (whole, *parts)}
        if len(shapes) > 1:
            raise Refused(f"{equation} does not hold: the sites have different shapes. {NOT_A_SUM}")
        added = [sites[name].float().view_as(sites[whole]) for name in parts]
        size = torch.stack([part.abs() for part in added]).sum(0)
        tolerance = 2 * torch.finfo(sites[whole].dtype).eps * size
        worst = ((sites[whole].float() - torch.stack(added).sum(0)).abs() - tolerance).max().item()
        if worst > 0:
            raise Refused(f"{equation} is off by {worst:.3g} beyond rounding. {NOT_A_SUM}")


NOT_A_SUM = (
    "The model's block is not a sum of attention and MLP (some norm the sum: OPT-350M, post-norm models), so a transcoder "
    "of its MLP has no meaning; choose another model"
)
