"""Trains many dictionaries from one pass over the store, and compares them: a table, and a plot of FVU against L0."""

import json
from collections.abc import Sequence
from dataclasses import replace

from evaluate.metrics.results import evaluate
from evaluate.report.figures import sweep_frontier
from evaluate.report.images import write_images
from store.disk.files import write_text
from store.layout import SUMMARY, SWEEP_RESULTS
from store.shards.pair import open_pair
from store.shards.reader import Store, check_shards
from train.advice import next_command
from train.checks import check_heldout, preflight
from train.config import TrainConfig
from train.loop import train_prepared
from train.sweep.config import SweepConfig

EVALUATION_ROWS = 2048
"""Held-out rows in a step of the comparison."""


def sweep(config: SweepConfig) -> str:
    """Trains every combination; returns their comparison on the held-out rows and the files that hold it.

    ValueError for bad input, before anything is trained. Under torchrun only rank 0 compares; the others return "".
    """
    configs = config.configs
    with preflight(configs, heldout=True) as prepared:
        transcoders = train_prepared(configs, prepared)
    if prepared.ranks.rank != 0:
        return ""
    store = prepared.store if prepared.following is None else _harvested(configs[0])
    found = evaluate(transcoders, store, "heldout", EVALUATION_ROWS, prepared.device)
    measured = [describe(one) | figures.as_json() for one, figures in zip(configs, found, strict=True)]
    folder = config.run_directory
    write_text(folder / SWEEP_RESULTS, json.dumps(measured, indent=1) + "\n")
    text = summary(measured, store)
    write_text(folder / SUMMARY, text)
    plots = write_images(folder, {"frontier": sweep_frontier(measured)})
    paths = [folder / SUMMARY, folder / SWEEP_RESULTS, *plots]
    best = min(measured, key=lambda one: one["fvu"])
    command = next_command(replace(configs[0], run=folder / best["run"]))
    return "\n".join([text, *map(str, paths), f"next, for the run with the lowest FVU: {command}"]) + "\n"


def _harvested(config: TrainConfig) -> Store:
    """The store as it is at the end of a training beside the harvest. Refused without held-out rows; ValueError for
    damaged ones."""
    store = open_pair(config.store_directory, config.target_directory)
    check_heldout(store)
    if config.check:
        check_shards(store, "heldout")
    return store


def describe(config: TrainConfig) -> dict:
    """A run's folder, learning rate, and the line of the plot on which it lies."""
    line = f"{config.architecture}, {config.d_sae:,} latents"
    return {"run": config.run_directory.name, "line": line, "lr": config.lr}


def summary(measured: Sequence[dict], store: Store) -> str:
    """A table with a line for each run: L0, FVU with its 95% interval, as `evaluate metrics` has them, and dead latents."""
    width = max(len(m["run"]) for m in measured)
    rows = store.manifest.n_rows("heldout")
    lines = [f"{rows:,} held-out rows of {store.directory} (fingerprint {store.fingerprint})", ""]
    lines.append(f"{'run':{width}}  {'L0':>7}  {'FVU':>6}  {'95% interval':>16}  {'dead':>6}  smallest prefix: FVU at L0")
    for m in sorted(measured, key=lambda m: (m["line"], m["k"], m["lr"])):
        interval = m["ci95"]["fvu"]
        ends = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "one document"
        fvu = next(iter(m["fvu_per_prefix"].values()))
        l0 = next(iter(m["l0_per_prefix"].values()))
        nested = f"{fvu:.4f} at {l0:.1f}" if len(m["fvu_per_prefix"]) > 1 else "not nested"
        lines.append(
            f"{m['run']:{width}}  {m['l0_mean']:7.1f}  {m['fvu']:.4f}  {ends:>16}  {m['dead_fraction']:6.1%}  {nested}"
        )
    return "\n".join(lines) + "\n"
