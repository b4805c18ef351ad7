"""Measuring and comparing: a run (and the other transcoder) + a store -> the files that people read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from evaluate.baselines import find_baselines, in_folders
from evaluate.checks import checks, near
from evaluate.config import CompareConfig, EvaluateConfig, FeaturesConfig
from evaluate.intervals import MIN_DOCUMENTS
from evaluate.measure import measure
from evaluate.metrics import JUDGED_BY_ROW
from evaluate.report import markdown, summary, write_report
from store.command import default_store, model_slug
from store.files import write_text
from store.pair import open_pair
from store.reader import Store
from store.transcoder import CONFIG, WEIGHTS, Transcoder, TranscoderConfig

JUDGED = JUDGED_BY_ROW | {"delta_ce": True, "kl": True}
"""Metrics in which a winner may be named, and whether lower is better; all of them at equal L0."""
SIDES = {"ours", "google"}
MATCHED = 0.05
"""Two L0s this near, as a share, are equal."""


def evaluate_run(config: EvaluateConfig) -> Path:
    """The folder with metrics.json, summary.txt and report.html of a run. ValueError when store and run do not fit."""
    folder = config.run_directory / "evaluation"
    ours, store = open_both(config)
    key = _key(config.run_directory, store, None)
    if not config.force and _is_done(folder / "metrics.json", key):
        return show(folder)
    [metrics] = measure(config, store, [ours])
    write_json(folder / "metrics.json", metrics | {"key": key})
    publish(folder, [metrics], store, config.run_directory, {})
    return show(folder)


def compare_runs(config: CompareConfig) -> Path:
    """The folder with the comparison (with one over all layers, where there are several).

    ValueError when store, run or baseline do not fit together.
    """
    if len(config.layers) > 1:
        from evaluate.layers import compare_layers

        return compare_layers(config)
    config = config.for_layer(next(iter(config.layers)))
    folder = config.run_directory / "comparison"
    ours, store = open_both(config)
    if store.target is not None and config.sequences:
        raise ValueError(
            f"{ours.config.name} predicts layer {ours.config.target_layer} from layer {ours.config.layer}: what that "
            "costs the language model is not measured; give --sequences 0"
        )
    config = replace(config, baseline=in_folders(config.baseline, config.l0, store.manifest.recipe.layer, ours))
    key = _key(config.run_directory, store, config)
    if not config.force and _is_done(folder / "comparison.json", key):
        return show(folder)
    others = find_baselines(config.baseline, config.baseline_name, config.l0, store, ours)
    for other in others:
        check_fits(other, store)
    measured = measure(config, store, [ours, *others])
    comparison = judge(measured, store) | {"key": key}
    write_json(folder / "ours_metrics.json", measured[0])
    write_json(folder / "google_metrics.json", measured[1])
    write_json(folder / "comparison.json", comparison)
    publish(folder, measured, store, config.run_directory, comparison)
    return show(folder)


def open_both(config: EvaluateConfig) -> tuple[Transcoder, Store]:
    """The run's transcoder and its store. ValueError when it was trained on another one: both fingerprints are shown."""
    ours = Transcoder.load(config.run_directory)
    across = ours.config.target_layer
    if config.target_store is not None and across is None:
        raise ValueError(f"{config.run_directory} predicts its own layer, {ours.config.layer}; leave out --target-store")
    store = open_pair(
        config.store_directory, None if across is None else config.target_store or default_store(ours.config.model, across)
    )
    sides = ((store, ours.config.store_fingerprint), (store.target, ours.config.target_store_fingerprint))
    for side, trained_on in sides:
        if side is not None and trained_on is not None and trained_on != side.fingerprint:
            raise ValueError(
                f"{config.run_directory} was trained on store {trained_on}, but {side.directory} is {side.fingerprint}; "
                "give the store that it was trained on"
            )
    check_fits(ours, store)
    return ours, store


def check_fits(transcoder: Transcoder, store: Store) -> None:
    """ValueError unless the transcoder is for the store's layer (its pair's layers) and widths."""
    config, source, target = transcoder.config, store.manifest, store.target_side.manifest
    widths = (source.widths[config.source_site], target.widths[config.target_site])
    reads = config.d_in - 2 * config.standardised
    layers = (config.layer, config.layer if config.target_layer is None else config.target_layer)
    held = (source.recipe.layer, target.recipe.layer)
    if layers != held or (reads, config.d_out) != widths:
        raise ValueError(
            f"{config.name} is for {_layers(layers)} with widths {reads} -> {config.d_out}, but "
            f"{store.directory} holds {_layers(held)} with {widths[0]} -> {widths[1]}"
        )


def _layers(layers: tuple[int, int]) -> str:
    source, target = layers
    return f"layer {source}" if source == target else f"layers {source} -> {target}"


def baseline_run(config: FeaturesConfig) -> Path:
    """The folder, beside the run's, in which what it is compared with is a run like any other. ValueError where that folder
    is something else."""
    ours, store = open_both(config)
    l0 = None if config.l0 == "nearest" else config.l0
    [other] = find_baselines([config.baseline] if config.baseline else [], None, l0, store, ours)
    check_fits(other, store)
    folder = config.run_directory.parent / model_slug(other.config.name).strip("-")
    # the store's name for the model: by it later commands find the store
    wanted = other.config.model_copy(update={"model": store.manifest.recipe.model})
    path = folder / CONFIG
    if folder.exists() and not (path.exists() and TranscoderConfig.model_validate_json(path.read_bytes()) == wanted):
        raise ValueError(f"{folder} is there, and is not {wanted.source}; move it away")
    Transcoder(wanted, **other.arrays()).save(folder)
    return folder


def judge(measured: Sequence[dict], store: Store) -> dict:
    """comparison.json: both metrics, the checks, and a winner by metric where the data supports one."""
    ours, google = measured[0], measured[1]
    found = checks(measured, store)
    failed = [check["claim"] for check in found if not check["holds"]]
    at_equal_l0 = google.get("matched")
    winners = {}
    for name, lower_is_better in JUDGED.items():
        if name not in google:
            continue
        if failed:
            winners[name] = f"not judged: it does not hold that {failed[0]}"
        elif at_equal_l0 is None or not near(at_equal_l0["l0"][0], at_equal_l0["l0"][1], MATCHED):
            winners[name] = "not judged: no equal L0 could be reached"
        else:
            winners[name] = winner(at_equal_l0["minus_ours"][name]["ci95"], lower_is_better)
            read_off = [each["minus_ours"]["ci95"] for each in google.get("at_equal_l0", {}).get(name, [])]
            others_say = {winner(interval, lower_is_better) for interval in read_off}
            if winners[name] in SIDES and (SIDES - {winners[name]}) & others_say:
                winners[name] = "not judged: read off the frontiers at equal L0, it is the other way round"
    trivial = [m for m in measured if m.get("trivial")]
    others = [m for m in measured[2:] if not m.get("trivial")]
    return {
        "ours": ours, "google": google, "others": others, "trivial": trivial, "winners": winners, "checks": found,
        "rows": ours["n_rows"], "store_fingerprint": store.fingerprint,
    }  # fmt: skip


def winner(difference: list[float] | None, lower_is_better: bool) -> str:
    """Who is better, from the 95% interval of theirs minus ours; a tie unless it excludes zero."""
    if difference is None:
        return f"not judged: fewer than {MIN_DOCUMENTS} documents"
    low, high = difference
    if low <= 0 <= high:
        return "tie"
    return "ours" if (low > 0) == lower_is_better else "google"


def publish(folder: Path, measured: Sequence[dict], store: Store, run: Path, comparison: dict) -> None:
    """Writes summary.txt, report.md and report.html."""
    winners = comparison.get("winners", {})
    write_text(folder / "summary.txt", summary(measured, store, winners))
    write_text(folder / "report.md", markdown(measured, store, winners))
    write_report(folder / "report.html", measured, store, run, comparison)


def show(folder: Path) -> Path:
    """Prints the table in a folder."""
    print((folder / "summary.txt").read_text())
    return folder


def write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def _key(run: Path, store: Store, config: CompareConfig | None) -> str:
    """Changes whenever a result would: the run's weights, the held-out shards, and what it is compared with."""
    digest = xxhash.xxh3_128((run / WEIGHTS).read_bytes())
    for side in (store, store.target):
        for shard in [] if side is None else side.manifest.of_split("heldout"):
            digest.update(shard.xxh3_128.encode())
    if config is not None:
        asked = (
            config.baseline_name,
            config.l0,
            config.sequences,
            config.frontier,
            config.every_prefix,
            config.probes,
            config.trivial,
        )
        digest.update(repr(asked).encode())
    for folder in config.baseline if config is not None else ():
        for path in sorted(p for p in [folder, *folder.glob("*"), *folder.glob("checkpoints/*.pt")] if p.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_done(path: Path, key: str) -> bool:
    return path.exists() and path.with_name("report.html").exists() and json.loads(path.read_text()).get("key") == key
