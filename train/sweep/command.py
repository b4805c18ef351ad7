"""Trains many dictionaries from one pass over the store, and compares them: a table, and a plot of FVU against L0."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from evaluate.metrics.results import evaluate
from evaluate.report.figures import sweep_frontier
from evaluate.report.images import write_images
from store.disk.files import write_text
from store.errors import Refused
from store.layout import SUMMARY, SWEEP_RESULTS
from store.shards.pair import open_pair
from store.shards.reader import Store, check_shards
from store.transcoders.transcoder import Transcoder
from train.advice import next_command
from train.checks import Prepared, check_heldout, preflight
from train.config import TrainConfig
from train.layers.config import layers_of
from train.loop import train_prepared
from train.nulls import with_nulls
from train.sweep.config import SweepConfig

COST = "estimated_kl"
NAMES = {COST: "estimated KL", "fvu": "FVU"}
EVALUATION_ROWS = 2048
"""Held-out rows in a step of the comparison."""


def sweep(config: SweepConfig) -> str:
    """Trains every combination; returns their comparison on the held-out rows and the files that hold it, layer by layer.

    ValueError for bad input, before anything is trained. Under torchrun only rank 0 compares; the others return "".
    """
    layers = layers_of(config)
    passes = {layer: passes_of(config, layer) for layer in layers}
    with ExitStack() as opened:
        ready: dict[int, list[Prepared]] = {layer: [] for layer in layers}
        for layer in layers:
            for each in passes[layer]:
                checked = any(before.left for before in ready[layer])
                ready[layer].append(opened.enter_context(preflight(each, heldout=True, checked=checked)))
        transcoders: dict[int, list[Transcoder]] = {layer: [] for layer in layers}
        for number in range(len(passes[layers[0]])):
            trained = train_prepared([(passes[layer][number], ready[layer][number]) for layer in layers])
            for layer, found in zip(layers, trained, strict=True):
                transcoders[layer] += found
    if ready[layers[0]][0].ranks.rank != 0:
        return ""
    said = []
    for layer in layers:
        configs = [one for each in passes[layer] for one in each]
        said.append(compare(configs, transcoders[layer], ready[layer][0], config.folder_of(layer)))
    return "\n".join(said)


def compare(configs: Sequence[TrainConfig], transcoders: Sequence[Transcoder], prepared: Prepared, folder: Path) -> str:
    """The comparison of one layer's runs on the held-out rows, and the files in the folder that hold it."""
    store = prepared.store if prepared.following is None else _harvested(configs[0])
    found = evaluate(transcoders, store, "heldout", EVALUATION_ROWS, prepared.device)
    measured = [describe(one, folder) | figures.as_json() for one, figures in zip(configs, found, strict=True)]
    write_text(folder / SWEEP_RESULTS, json.dumps(measured, indent=1) + "\n")
    text = summary(measured, store)
    write_text(folder / SUMMARY, text)
    plots = write_images(folder, {"frontier": sweep_frontier(measured)})
    paths = [folder / SUMMARY, folder / SWEEP_RESULTS, *plots]
    judged = COST if all(COST in one for one in measured) else "fvu"
    best = min((one for one in measured if one["null"] == "none"), key=lambda one: one[judged])
    command = next_command(replace(configs[0], run=folder / best["run"]))
    return "\n".join([text, *map(str, paths), f"next, for the run with the lowest {NAMES[judged]}: {command}"]) + "\n"


def _harvested(config: TrainConfig) -> Store:
    """The store as it is at the end of a training beside the harvest. Refused without held-out rows; ValueError for
    damaged ones."""
    store = open_pair(config.store_directory, config.target_directory)
    check_heldout(store)
    if config.check:
        check_shards(store, "heldout")
    return store


def passes_of(config: SweepConfig, layer: int) -> list[list[TrainConfig]]:
    """A layer's runs and nulls of each seed, which one pass over the store trains. Refused for two seeds beside a
    harvest, whose rows can be read once."""
    if config.follow and len(config.seed) > 1:
        raise Refused(f"seed is {config.seed}, but --follow reads the rows once, in one order; give one seed")
    grouped: dict[int, list[TrainConfig]] = {}
    for one in config.configs_of(layer):
        grouped.setdefault(one.seed, []).extend(with_nulls(one))
    return list(grouped.values())


def describe(config: TrainConfig, folder: Path) -> dict:
    """A run's folder in the sweep's, learning rate, seed and null, and the line of the plot on which it lies."""
    line = f"{config.architecture}, {config.d_sae:,} latents"
    run = config.run_directory.relative_to(folder).as_posix()
    return {"run": run, "line": line, "lr": config.peak_lr, "seed": config.seed, "null": config.null}


def summary(measured: Sequence[dict], store: Store) -> str:
    """A table with a line for each run: L0, FVU with its 95% interval, as `evaluate metrics` has them, and dead latents."""
    width = max(len(m["run"]) for m in measured)
    rows = store.manifest.n_rows("heldout")
    lines = [f"{rows:,} held-out rows of {store.directory} (fingerprint {store.fingerprint})", ""]
    weighed = all(COST in m for m in measured)
    cost = f"  {'estimated KL':>12}" if weighed else ""
    lines.append(
        f"{'run':{width}}  {'L0':>7}{cost}  {'FVU':>6}  {'95% interval':>16}  {'dead':>6}  smallest prefix: FVU at L0"
    )
    for m in sorted(measured, key=lambda m: (options_of(m), m["seed"])):
        interval = m["ci95"]["fvu"]
        ends = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "one document"
        fvu = next(iter(m["fvu_per_prefix"].values()))
        l0 = next(iter(m["l0_per_prefix"].values()))
        nested = f"{fvu:.4f} at {l0:.1f}" if len(m["fvu_per_prefix"]) > 1 else "not nested"
        cost = f"  {m[COST]:12.4f}" if weighed else ""
        figures = f"{m['l0_mean']:7.1f}{cost}  {m['fvu']:.4f}  {ends:>16}  {m['dead_fraction']:6.1%}"
        lines.append(f"{m['run']:{width}}  {figures}  {nested}")
    return "\n".join([*lines, *over_seeds(measured)]) + "\n"


def options_of(measured: dict) -> tuple:
    """Equal for runs that differ in nothing but the seed."""
    return measured["line"], measured["k"], measured["lr"]


ONE_SEED = "One seed was trained, so nobody knows how far another moves these figures; --seed 0,1,2 (SEEDS=3) shows it."
OVER_SEEDS = "mean and standard deviation over seeds"


def over_seeds(measured: Sequence[dict]) -> list[str]:
    """A table with a line for each set of options that several seeds were trained with; a sentence where none was."""
    grouped: dict[tuple, list[dict]] = {}
    for m in measured:
        grouped.setdefault(options_of(m), []).append(m)
    several = [each for _, each in sorted(grouped.items()) if len(each) > 1]
    if not several:
        return ["", ONE_SEED]
    width = max(len(OVER_SEEDS), *(len(each[0]["run"]) for each in several))
    lines = ["", f"{OVER_SEEDS:{width}}  {'seeds':>5}  {'L0':>14}  {'FVU':>17}  {'dead':>16}"]
    for each in several:
        cells = [
            spread("{:.1f}", [m["l0_mean"] for m in each]).rjust(14),
            spread("{:.4f}", [m["fvu"] for m in each]).rjust(17),
            spread("{:.1%}", [m["dead_fraction"] for m in each]).rjust(16),
        ]
        lines.append(f"{each[0]['run']:{width}}  {len(each):>5}  {'  '.join(cells)}")
    return lines


def spread(form: str, values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{form.format(mean(values))} +- {form.format(stdev(values))}"
