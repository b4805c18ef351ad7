"""`python -m tests.bench.metric STORE`: what training through the metric buys in the language model, and what it does not.

The demo's recipe at several seeds: the plain target, the metric with several shares of half-whitened targets and from
several numbers of sequences, and controls that must lose: half-whitened and whitened targets without the metric, the metric
with the plain squared error beside it, its diagonal, another layer's metric. All are put into the language model on the
same held-out sequences. Differences are from the plain target of the same seed, paired by document. Runs that are finished
are kept in --results, and not trained again.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from evaluate.metrics.measurement import Measurement
from evaluate.metrics.results import evaluate
from evaluate.model.splice import splice
from evaluate.model.splice_table import SpliceTable
from harvest.metric.estimate import Estimate, check_sites
from harvest.model.loading import model_of
from store.cli import one_line_errors, parse
from store.counts import parse_count
from store.disk.files import write_tensors
from store.shards.metric import SiteMetric
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder
from train.config import TrainConfig
from train.loop import train
from train.presets import expand
from train.step.target import half_whitening

WHITENINGS = (0.3, 0.5, 0.7, 0.9)
COUNTS = (8, 32, 128)
SITE = "mlp_out"
FORMS = {"fvu": "{:.4f}", "l0_mean": "{:.1f}", "dead_features": "{:.0f}", "estimated_kl": "{:.4f}"}
"""Figures from cached rows alone, by key."""
CPU = torch.device("cpu")
BARELY = 1e-6
"""Share of half-whitened targets that changes nothing."""
PLAIN = 0.03
"""Share of the plain squared error where it is in the place of half-whitened targets: the best (evaluate/RESULTS.md)."""


@dataclass(frozen=True)
class Scored:
    """What one dictionary reaches: on cached rows, and at a place of a table in the language model."""

    rows: Measurement
    table: SpliceTable
    place: int

    def spliced(self, key: str) -> float:
        """KL or delta CE, in nats."""
        return self.table.estimate(self.table.statistic(self.place, key)).value


def score(transcoders: Sequence[Transcoder], store: Store, sequences: int, limit: int | None = None) -> list[Scored]:
    """Each on all held-out rows, or the first `limit`, and put into the language model on as many held-out sequences."""
    rows = evaluate(transcoders, store, "heldout", 2048, CPU, limit=limit)
    table = splice(transcoders, store, model_of(store.manifest.recipe, CPU), sequences, False)
    return [Scored(found, table, place) for place, found in enumerate(rows)]


def print_table(by_seed: Mapping[str, Sequence[Scored]]) -> None:
    """A line for each name, with figures by seed. KL and delta CE stand beside their differences from the first line's of
    the same seed, paired by document; the interval is the hull of the seeds' 95% intervals."""
    first, *_ = by_seed
    heads = ["", "FVU", "L0", "dead", "estimated KL", "KL", "minus the first", "delta CE", "minus the first"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, scored in by_seed.items():
        cells = [name]
        for key, form in FORMS.items():
            cells.append(", ".join(form.format(one.rows.value(key)) for one in scored))
        for key in ("kl", "delta_ce"):
            cells.append(", ".join(f"{one.spliced(key):.4f}" for one in scored))
            pairs = zip(scored, by_seed[first], strict=False) if name != first else ()
            minus = [one.table.minus(one.place, other.place)[key] for one, other in pairs]
            ends = [e.ci95 for e in minus if e.ci95 is not None]
            cells.append(", ".join(f"{e.value:+.4f}" for e in minus))
            if ends:
                cells[-1] += f" in [{min(low for low, _ in ends):+.4f}, {max(high for _, high in ends):+.4f}]"
        print(f"| {' | '.join(cells)} |", flush=True)


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    name: str
    metric: SiteMetric | None
    """None for the plain target."""
    whitening: float = 0.7


def metrics_of(store: Store, sequences: int, other_layer: int, folder: Path) -> tuple[dict[int, SiteMetric], SiteMetric]:
    """The metric from several numbers of sequences, the last of them all, and that of another layer; kept in the folder."""
    layer = store.manifest.recipe.layer
    path = folder / f"metrics-{sequences}.safetensors"

    def of_the_store(sites: Mapping[tuple[int, str], torch.Tensor], *others: Any) -> None:
        check_sites({place: values for place, values in sites.items() if place[0] == layer}, *others)

    counts = (*COUNTS, sequences)
    if not path.exists():
        model = model_of(store.manifest.recipe, CPU)
        whole = Estimate(model, {layer: store, other_layer: store}, sequences, 0, lens=False)
        whole.path = None
        drawn = whole.drawn
        saved = {}
        for begin, end in pairwise((0, *counts)):  # each from where the last one ended
            whole.drawn = replace(drawn, tokens=drawn.tokens[begin:end], kept=drawn.kept[begin:end])
            whole.run_already = 0
            with mock.patch("harvest.metric.estimate.check_sites", of_the_store):
                whole.run()
            for name, array in whole.sums.metric[layer, SITE].arrays().items():
                saved[f"{end}.{name}"] = array
        saved |= {f"other.{name}": array for name, array in whole.sums.metric[other_layer, SITE].arrays().items()}
        write_tensors(path, saved)
    arrays = load_file(path)
    names = SiteMetric.zeros(1).arrays()
    found = {count: SiteMetric(**{name: arrays[f"{count}.{name}"] for name in names}) for count in counts}
    for count, metric in found.items():
        print(f"{count} sequences: halves agree to {metric.agreement:.3f}", flush=True)
    return found, SiteMetric(**{name: arrays[f"other.{name}"] for name in names})


def as_fisher(metric: SiteMetric, fisher: torch.Tensor) -> SiteMetric:
    """A metric with another matrix in the place of G."""
    half = fisher * metric.rows.sum() / 2
    return replace(metric, gradients=torch.stack([half, half]))


def variants_of(store: Store, sequences: int, other_layer: int, folder: Path) -> list[Variant]:
    by_count, other = metrics_of(store, sequences, other_layer, folder)
    full = by_count[sequences]
    fisher, width = full.fisher, len(full.fisher)
    half = half_whitening(full.covariance)
    mixed = (1 - PLAIN) * fisher * (width / fisher.trace()) + PLAIN * torch.eye(width, dtype=torch.float64)
    found = [Variant("plain target", None)]
    found += [Variant(f"a = {whitening}", full, whitening) for whitening in WHITENINGS]
    found += [Variant(f"a = 0.7, {count} sequences", by_count[count]) for count in COUNTS]
    return [
        *found,
        Variant("control: half-whitened alone", full, 1.0),
        Variant("control: whitened alone", as_fisher(full, half @ half), BARELY),
        Variant("control: plain squared error beside G", as_fisher(full, mixed), BARELY),
        Variant("control: diagonal of G", as_fisher(full, torch.diag(fisher.diag()))),
        Variant(f"control: G of layer {other_layer}", as_fisher(full, other.fisher)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--results", type=Path, default=Path("build/metric"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=parse_count, default=200_000)
    parser.add_argument("--sequences", type=int, default=512, help="for the metric")
    parser.add_argument("--other-layer", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="rows of the table by name; the plain target is always one of them")
    parser.add_argument("--heldout", type=int, default=64, help="sequences on which the language model is run")
    options = parser.parse_args()
    store = open_store(options.store)
    variants = variants_of(store, options.sequences, options.other_layer, options.results)
    if options.only:
        variants = [variant for variant in variants if variant.metric is None or variant.name in options.only]
    recipe = parse(TrainConfig, "metric", expand(["--preset", "demo"]))
    recipe = replace(recipe, store=options.store, tokens=options.tokens, check=False)
    transcoders = []
    for seed in range(options.seeds):
        for variant in variants:
            folder = options.results / f"{options.tokens}-seed{seed}" / variant.name.replace(" ", "-").replace(":", "")
            view = "raw" if variant.metric is None else "fisher"
            config = replace(recipe, run=folder, seed=seed, target_view=view, whitening=variant.whitening)
            with mock.patch("train.step.start.read_metric", lambda *args, metric=variant.metric: metric):
                transcoders.append(train(config))
    scored = score(transcoders, store, options.heldout)
    print_table({variant.name: scored[index :: len(variants)] for index, variant in enumerate(variants)})


if __name__ == "__main__":
    with one_line_errors("metric"):
        main()
