"""Many dictionaries from one pass over the store, and what became of them: one table, one plot of FVU against L0."""

import json
from collections.abc import Sequence

from evaluate.metrics.results import evaluate
from evaluate.report.figures import sweep_frontier
from evaluate.report.images import write_images
from store.devices import resolve_device
from store.disk.files import write_text
from store.layout import SUMMARY
from store.shards.pair import open_pair
from store.shards.reader import Store, check_shards
from train.config import SweepConfig, TrainConfig
from train.loop import train_together
from train.parallel import join

EVALUATION_ROWS = 2048


def sweep(config: SweepConfig) -> str:
    """Trains every combination, and says how they compare on the held-out rows, and in which files that stands.

    ValueError for bad input, before anything is trained.
    """
    configs = config.configs
    if not config.follow:
        _heldout(configs[0])
    transcoders = train_together(configs)
    if join(config.device).rank != 0:
        return ""
    store = _heldout(configs[0])
    if config.check:
        check_shards(store, "heldout")
    found = evaluate(transcoders, store, "heldout", EVALUATION_ROWS, resolve_device(config.device))
    measured = [describe(one) | figures.as_json() for one, figures in zip(configs, found, strict=True)]
    folder = config.run_directory
    write_text(folder / "summary.json", json.dumps(measured, indent=1) + "\n")
    text = summary(measured, store)
    write_text(folder / SUMMARY, text)
    plots = write_images(folder, {"frontier": sweep_frontier(measured)})
    return "\n".join([text, *map(str, (folder / SUMMARY, folder / "summary.json", *plots))]) + "\n"


def _heldout(config: TrainConfig) -> Store:
    """The store. ValueError when it has no held-out rows: nothing could be compared."""
    store = open_pair(config.store_directory, config.target_directory)
    if not store.manifest.n_rows("heldout"):
        raise ValueError(f"{store.directory} has no held-out rows to compare on; harvest more TOKENS, or train one by one")
    return store


def describe(config: TrainConfig) -> dict:
    """Which run it was, and on which line of the plot it lies."""
    line = f"{config.architecture}, {config.d_sae:,} latents"
    return {"run": config.run_directory.name, "line": line, "lr": config.lr}


def summary(measured: Sequence[dict], store: Store) -> str:
    """One line a run: L0 and FVU with its 95% interval, as `evaluate metrics` has them, and dead latents."""
    width = max(len(m["run"]) for m in measured)
    rows = store.manifest.n_rows("heldout")
    lines = [f"{rows:,} held-out rows of {store.directory} (fingerprint {store.fingerprint})", ""]
    lines.append(f"{'run':{width}}  {'L0':>7}  {'FVU':>6}  {'95% interval':>16}  {'dead':>6}  smallest prefix: FVU at L0")
    for m in sorted(measured, key=lambda m: (m["line"], m["k"], m["lr"])):
        interval = m["ci95"]["fvu"]
        ends = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "one document"
        fvu, l0 = (next(iter(m[f"{name}_per_prefix"].values())) for name in ("fvu", "l0"))
        nested = f"{fvu:.4f} at {l0:.1f}" if len(m["fvu_per_prefix"]) > 1 else "not nested"
        lines.append(
            f"{m['run']:{width}}  {m['l0_mean']:7.1f}  {m['fvu']:.4f}  {ends:>16}  {m['dead_fraction']:6.1%}  {nested}"
        )
    return "\n".join(lines) + "\n"
