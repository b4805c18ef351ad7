"""One budget of active latents for several layers, divided by what short trainings at fewer and at more of them end with.

Each layer has two pilots, with half of an equal share and with twice of it. What an error costs falls about linearly with
the logarithm of k between them, and then the sum of all costs is least where every k is in proportion to the fall.
"""

import json
import logging
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from evaluate.text import text_table
from store.devices import resolve_device
from store.disk.files import write_text
from store.errors import Damaged, Refused
from store.layout import PILOTS_RESULTS
from store.loader.batches import batches, mix_of
from store.shards.metric import estimated_kl, read_metric
from store.shards.pair import open_pair
from store.transcoders.transcoder import Transcoder
from train.config import TrainConfig
from train.layers.shares import scaled, whole
from train.layers.together import train_layers_together

ROWS = 8192
"""Training rows that the pilots are measured on: those that follow theirs in the stream."""
BATCH_ROWS = 1024
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fall:
    """How a layer's cost falls with k."""

    layer: int
    ks: tuple[int, int]
    """Of its pilots."""
    costs: tuple[float, float]
    """Estimated KL of each, in nats a row."""

    @property
    def by_doubling(self) -> float:
        """What twice as many active latents save, in nats a row."""
        return (self.costs[0] - self.costs[1]) / math.log2(self.ks[1] / self.ks[0])


def train_pilots(parts: Sequence[Sequence[TrainConfig]], layers_at_once: int | None) -> None:
    """Trains the pilots of some layers, and measures each layer where that was not done."""
    train_layers_together(parts, layers_at_once)
    for pilots in parts:
        path = pilots[0].run_directory.parent / PILOTS_RESULTS
        if not path.exists():
            costs = [cost_of(each) for each in pilots]
            said = ", ".join(f"{cost:.4f} at k {each.k}" for cost, each in zip(costs, pilots, strict=True))
            log.info("layer %d: estimated KL of its pilots: %s", pilots[0].layer, said)
            figures = {"k": [each.k for each in pilots], "estimated_kl": costs}
            write_text(path, json.dumps(figures, indent=1) + "\n")


@torch.no_grad()
def cost_of(pilot: TrainConfig) -> float:
    """Estimated KL of a finished pilot in nats a row, on training rows that it has not seen in its epoch."""
    store = open_pair(pilot.store_directory, pilot.target_directory)
    metric = read_metric(store.target_side, pilot.target_site)
    assert metric is not None
    device = resolve_device(pilot.device)
    transcoder = Transcoder.load(pilot.run_directory, device)
    fisher = metric.fisher.float().to(device)
    sites = (pilot.source_site, pilot.target_site)
    first = pilot.n_steps * pilot.batch_rows
    stream = batches(
        store,
        "train",
        BATCH_ROWS,
        view=pilot.input_view,
        sites=sites,
        device=device,
        target_dtype=getattr(torch, pilot.target_dtype),
        seed=pilot.seed,
        cursor=first,
        stop=first + ROWS,
        mix=mix_of(store, "train", sites, pilot.piece_bytes),
    )
    total = 0.0
    with closing(stream):
        for batch in stream:
            error = transcoder(batch.source) - batch.target
            total += float(estimated_kl(error, fisher).sum())
    return total / ROWS


def fall_of(pilots: Sequence[TrainConfig]) -> Fall:
    """What was measured of a layer. Damaged where that cannot be read."""
    path = pilots[0].run_directory.parent / PILOTS_RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Fall(pilots[0].layer, tuple(found["k"]), tuple(found["estimated_kl"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read ({error}); delete it, and it is measured again") from None


def divided(falls: Sequence[Fall], total: int, n_tokens: int) -> list[int]:
    """k of each layer: in proportion to what doubling it saves, from the smaller to the larger k of the pilots.

    They sum to `total`. Refused where more latents save nothing in any layer, after pilots of `n_tokens`.
    """
    savings = [fall.by_doubling for fall in falls]
    if not max(savings) > 0:
        worst = ", ".join(f"{saving:.2g}" for saving in savings)
        raise Refused(
            f"doubling k saves no estimated KL in any layer by the pilots ({worst} nats), so that nothing tells how to "
            f"divide total_l0; give more than --pilot-tokens {n_tokens}, or --k"
        )
    low, high = falls[0].ks
    return whole(scaled([max(saving, 1e-9) for saving in savings], total, (low, high)), total)


def table_of(falls: Sequence[Fall], ks: Sequence[int]) -> str:
    """k of each layer, its share, and what the pilots said."""
    total = sum(ks)
    rows = [
        [str(fall.layer), str(k), f"{k / total:.1%}", *(f"{cost:.4f}" for cost in fall.costs), f"{fall.by_doubling:.2g}"]
        for fall, k in zip(falls, ks, strict=True)
    ]
    low, high = falls[0].ks
    head = ["layer", "k", "share", f"pilot's KL, k {low}", f"k {high}", "saved by doubling k"]
    return "\n".join(text_table([*rows, ["all", str(total), "", "", "", ""]], head))
