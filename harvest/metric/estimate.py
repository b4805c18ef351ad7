"""Estimates the metric and the Jacobian lens of the sites of some layers, from the gradients of training sequences.

The metric: a small error e at a site costs about e^T G e / 2 nats of KL, with the Fisher matrix G = E[g g^T] and g the
gradient, by one row of the site, of the log-likelihood of labels that are drawn from the model's own predictions (arXiv
1412.1193). The lens: `harvest/metric/lens.py`. One backward pass each gives the gradients of all sites of all layers.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xxhash
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from harvest.metric.draw import LABELS, Drawn, cached_rows, draw_labelled
from harvest.metric.gradients import Place, forget_gradients, gradients, places_in, sequences_at_once
from harvest.metric.lens import PASSES, Directions, lens_sums
from harvest.model.language_model import LanguageModel
from harvest.model.unembedding import Unembedding
from harvest.pool import Lanes
from store.disk.files import write_tensors
from store.disk.remote import Remote
from store.errors import Refused
from store.layout import METRIC_STATE
from store.lens.site_lens import SiteLens
from store.shards.metric import SiteMetric, check_sums
from store.shards.reader import Store

SEQUENCES = {"cpu": 48, "cuda": 256}
"""Sequences where the options do not say, by kind of device."""
APART = 0.1
"""Relative difference of a sequence's activations from the store's above which they are others. bfloat16 makes 0.01."""
SAVE_EVERY = 30.0
"""Seconds between two saves of an estimate under way."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """By layer and site; empty for an estimate that is not asked for."""

    metric: dict[Place, SiteMetric]
    lens: dict[Place, SiteLens]

    def plus(self, other: "Sums") -> "Sums":
        """The sums over the rows of both."""
        metric = {place: sums.plus(other.metric[place]) for place, sums in self.metric.items()}
        return Sums(metric, {place: sums.plus(other.lens[place]) for place, sums in self.lens.items()})

    def arrays(self) -> dict[str, Tensor]:
        """All arrays, by name."""
        found = {}
        for kind, by_place in (("metric", self.metric), ("lens", self.lens)):
            for (layer, site), sums in by_place.items():
                found |= {f"{kind}.{layer}.{site}.{name}": array for name, array in sums.arrays().items()}
        return found

    def with_arrays(self, arrays: Mapping[str, Tensor]) -> "Sums":
        """The same places with other arrays. KeyError where one is missing."""

        def named(kind: str, place: Place, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: arrays[f"{kind}.{place[0]}.{place[1]}.{name}"] for name in names}

        metric = {place: SiteMetric(**named("metric", place, sums.arrays())) for place, sums in self.metric.items()}
        lens = {place: SiteLens(**named("lens", place, sums.arrays())) for place, sums in self.lens.items()}
        return Sums(metric, lens)


class Estimate:
    """An estimate under way: which sequences it has run, and the sums over their rows.

    model: that made the stores.
    stores: by layer, of one harvest.
    n: training sequences to run.
    seed: that draws the sequences, the rows with a label, the labels, and the lens's directions.
    metric, lens: whether each is estimated.
    """

    def __init__(
        self,
        model: LanguageModel,
        stores: Mapping[int, Store],
        n: int,
        seed: int,
        metric: bool = True,
        lens: bool = True,
    ) -> None:
        first = stores[min(stores)]
        self.model = model
        self.stores = stores
        self.seed = seed
        self.drawn = Drawn.of(first, n, seed)
        self.path = None if isinstance(first.directory, Remote) else first.directory / METRIC_STATE
        """Where it is saved; nowhere for a store at a URL."""
        sites = first.manifest.recipe.sites
        self.places = places_in(list(stores), sites)
        widths = {(layer, site): stores[layer].manifest.widths[site] for layer, site in self.places}
        self.sums = Sums(
            metric={place: SiteMetric.zeros(width) for place, width in widths.items()} if metric else {},
            lens={place: SiteLens.zeros(width) for place, width in widths.items()} if lens else {},
        )
        self.directions = Directions(self.drawn.kept, model.d_model, seed)
        self.passes = PASSES if lens else 0
        self.run_already = 0
        self.identity = {
            "stores": [stores[layer].fingerprint for layer in sorted(stores)],
            "sequences": len(self.drawn.tokens),
            "seed": seed,
            "labels": LABELS,
            "metric": metric,
            "lens": self.passes,
            "drawn": xxhash.xxh3_64_hexdigest(self.drawn.tokens.numpy().tobytes()),
        }
        self._resume()

    def run(self) -> Sums:
        """The sums over all sequences. Refused when a gradient is not finite."""
        unembedding = Unembedding.of(self.model)
        tokens = self.drawn.tokens
        at_once = sequences_at_once(self.model, tokens.shape[1])
        saved = time.monotonic()
        lanes = Lanes(self.model)

        def work(model: LanguageModel, start: int) -> tuple[int, Sums]:
            part = slice(start, min(start + at_once, len(tokens)))
            kept = self.drawn.kept[part]
            labelled = draw_labelled(kept, start, self.seed) if self.sums.metric else None
            directions = [self.directions.at(part, number).to(model.whole.dtype) for number in range(self.passes)]
            seed = self.seed * 1_000_003 + start
            found = gradients(model, unembedding, tokens[part], self.places, labelled, seed, directions)
            if start == 0:
                check_sites(found.sites, self.stores, tokens[0])
            metric = {}
            for place, gradient in found.of_labels.items():
                assert labelled is not None
                metric[place] = sums_of(found.sites[place], gradient, kept, labelled, start)
            lens: dict[Place, SiteLens] = {}
            for v, by_place in zip(directions, found.of_directions, strict=True):
                for place, gradient in by_place.items():
                    sums = lens_sums(gradient, v, kept, start)
                    lens[place] = lens[place].plus(sums) if place in lens else sums
            return part.stop, Sums(metric, lens)

        def add(done: tuple[int, Sums]) -> None:
            nonlocal saved
            stop, found = done
            sums = self.sums.plus(found)
            bar.update(stop - self.run_already)
            self.sums, self.run_already = sums, stop  # in one statement: Ctrl-C saves both or neither
            if time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = time.monotonic()

        with tqdm(total=len(tokens), initial=self.run_already, desc="metric", unit="sequence") as bar:
            try:
                lanes.run(work, range(self.run_already, len(tokens), at_once), add)
            except BaseException:
                self._save()
                raise
            finally:
                for model in lanes.models:
                    forget_gradients(model)
        for (layer, site), metric in self.sums.metric.items():
            check_sums(metric, metric.total.numel(), f"the metric of {site} at layer {layer}")
        return self.sums

    def forget(self) -> None:
        """Removes what an interrupted estimate has saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        if self.path is None:
            return
        write_tensors(self.path, self.sums.arrays(), {"estimate": json.dumps(self.identity), "run": str(self.run_already)})

    def _resume(self) -> None:
        """Takes up what an interrupted estimate has saved; one that cannot be read, or is of another kind, is left."""
        if self.path is None or not self.path.exists() or not self.path.stat().st_size:
            return
        try:
            with safe_open(self.path, "pt") as file:
                if json.loads(file.metadata()["estimate"]) != self.identity:
                    log.info("%s is of other options: beginning anew", self.path)
                    return
                done = int(file.metadata()["run"])
                self.sums = self.sums.with_arrays({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                self.run_already = done
        except (SafetensorError, KeyError, ValueError) as error:
            log.warning("%s cannot be read (%s): beginning anew", self.path, error)
            return
        log.info("continuing after %d sequences of %d", self.run_already, len(self.drawn.tokens))


def check_sites(
    sites: Mapping[tuple[int, str], Tensor], stores: Mapping[int, Store], tokens: Int[Tensor, " context"]
) -> None:
    """Refused unless the first sequence's sites are the rows that the stores hold of it."""
    for (layer, site), values in sites.items():
        rows = cached_rows(stores[layer], site, tokens)
        apart = float((values[0].float().cpu() - rows).norm() / rows.norm())
        if apart > APART:
            raise Refused(
                f"{site} of layer {layer} is not what {stores[layer].directory} holds of it (relative difference "
                f"{apart:.2f}): the store was made by another model, or of another layer; harvest again"
            )


def sums_of(
    site: Float[Tensor, "sequences context d"],
    gradient: Float[Tensor, "sequences context d"],
    kept: Bool[Tensor, "sequences context"],
    labelled: Bool[Tensor, "sequences context"],
    first: int,
) -> SiteMetric:
    """The sums over some sequences, the first of which has the number `first`.

    Scores at different tokens are uncorrelated, so that labels at a share of the rows give that share of the products.
    """
    device = site.device
    halves = []
    rows = []
    scale = kept.sum(1) / labelled.sum(1).clamp_min(1)
    for parity in (0, 1):
        mine = (torch.arange(first, first + len(kept)) % 2 == parity) & kept.any(1)
        g = (gradient[mine.to(device)].double() * scale[mine].double().sqrt()[:, None, None].to(device))[
            kept[mine].to(device)
        ]
        halves.append(g.T @ g)
        rows.append(len(g))
    y = site[kept.to(device)].double()
    return SiteMetric(
        gradients=torch.stack(halves).cpu(),
        rows=torch.tensor(rows, dtype=torch.float64),
        products=(y.T @ y).cpu(),
        total=y.sum(0).cpu(),
    )
