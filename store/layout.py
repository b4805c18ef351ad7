"""Where things lie: the default folders, and the name of every file of a run (FORMAT.md describes them)."""

import re
from pathlib import Path

DATA = Path("data")
"""Default folder of the stores of all models."""
RESULTS = Path("results")
"""Default folder of the runs of all models."""
CONFIG = "config.json"
"""The transcoder: what it is."""
WEIGHTS = "transcoder.safetensors"
"""The transcoder: its arrays."""
ORIGIN = "origin.json"
"""The store that it was trained on: where it lay, and what is needed of it without its rows."""
EXPORT = "export.json"
"""In an export: what it is, and what the gate found."""
MANIFEST = "manifest.json"
"""In a store: what it holds."""
NORM_FILE = "norm.safetensors"
"""The norm before the MLP, in a store and beside a run's weights."""
MLP_FILE = "mlp.safetensors"
"""In a store: the layer's own MLP, where the store keeps it."""
METRIC_FILE = "metric.safetensors"
"""In a store: what an error at each site costs the language model."""
LENS_FILE = "lens.safetensors"
"""In a store: what a change at each site does to the vector that the model unembeds."""
METRIC_STATE = "metric.unfinished.safetensors"
"""In a store: an estimate of these two that is under way, or was interrupted; the same command continues it."""
TRAIN_CONFIG = "train_config.json"
"""The options that it is trained with; there from the first step on."""
TRAINING_LOG = "training_log.jsonl"
CHECKPOINT = "checkpoint.safetensors"
TRAIN_LOCK = "train.lock"
SNAPSHOT = "step-"
"""Folders in a run's folder: the transcoder as it was after a step, a run of its own (`--features-every`)."""
FEATURES_LOG = "features.log"
"""In a snapshot: what the process that collected its features printed."""

NULL = "null"
"""Folder in a run's folder: the dictionaries that show what chance reaches, each a run of its own (`train --nulls`)."""

PILOTS = "pilots"
"""Folder in a run's folder: the short runs by which one budget is divided among layers (`train --total-l0`)."""
PILOTS_RESULTS = "pilots.json"
"""In it: what the pilots cost."""

EVALUATION = "evaluation"
"""Folder of `evaluate metrics`."""
METRICS = "metrics.json"
SWEEP_RESULTS = "summary.json"
"""In a sweep's folder: the metrics of its runs, beside SUMMARY."""
COMPARISON_FOLDER = "comparison"
"""Folder of `evaluate compare`."""
COMPARISON = "comparison.json"
COMPARISON_PROGRESS = "unfinished.json"
"""What an interrupted `evaluate compare` has measured, which the same command takes up."""
OURS_METRICS = "ours_metrics.json"
OTHER_METRICS = "other_metrics.json"
"""Figures of the first baseline."""
GOOGLE_METRICS = "google_metrics.json"
"""The same where that is Google's; earlier versions wrote it of any baseline, and no OTHER_METRICS."""
SUMMARY = "summary.txt"
REPORT = "report.html"
REPORT_MARKDOWN = "report.md"
FIGURES = "figures"
"""Folder of a report's figures as PNG files."""

SAMPLES = "activation_samples"
"""Folder of `evaluate features`."""
FEATURES = "features.parquet"
COLLECTION_SUMMARY = "collection_summary.json"
COLLECTION_STATE = "collection.partial.safetensors"
"""The unfinished collection of an interrupted `evaluate features`, which the same command continues."""
FEATURE_FILES = "feature_*.json"
"""Pattern of the JSON files of all latents; `feature_file` names one of them."""
ANALYSIS = "analysis"
"""Folder of `evaluate analyze`."""

NOTES = "notes.json"
"""Stars, names and notes that people give to latents in the browser."""
NOTES_LOCK = "notes.lock"
"""There while a note is written."""

CIRCUIT = "circuit"
"""Folder of the maps of `evaluate circuit`, beside the folders of a model's layers; each map has a folder in it."""
CIRCUIT_SUMMARY = "circuit.json"
EDGES = "edges.parquet"
CIRCUIT_LATENTS = "latents.parquet"
UNFINISHED = "unfinished"
"""Folder in a map's or a set's folder: what an interrupted `evaluate circuit` or `compare-set` has finished."""
GRAPHS = "documents"
"""Folder in a map's folder: the graphs of single held-out documents."""

SET = "set"
"""Folder of the results of `evaluate compare-set`, beside the folders of a model's layers; each has a folder in it."""
SET_RESULT = "set.json"

PUSHED = "hub"
"""Folder of `evaluate push`: what the hub's repository holds."""

UPLOADED = "uploaded.json"
"""In a folder of `export-features`: the batches that Neuronpedia has taken."""

INTERVENTION = "intervention.json"
IMPORTANCE = "importance.json"

JUDGE = "judge"
"""Folder of `evaluate judge-export`, `judge` and `judge-score`."""
EXPLAIN = "explain.jsonl"
ITEMS = "items.jsonl"
EXPLANATIONS = "explanations.jsonl"
ANSWERS = "answers.jsonl"
SCORES = "scores.json"


def feature_file(latent: int) -> str:
    """The JSON file of one latent: 42 -> `feature_00042.json`."""
    return f"feature_{latent:05d}.json"


def model_slug(model: str) -> str:
    """The folder name of a model: `google/gemma-2-2b` -> `gemma-2-2b`."""
    return re.sub(r"[^\w.-]+", "-", model.removeprefix("pip:").rstrip("/").rsplit("/", 1)[-1])


def default_store(model: str, layer: int) -> Path:
    return DATA / model_slug(model) / f"layer{layer}"


def default_run(model: str, layer: int | str, run: str) -> Path:
    return RESULTS / model_slug(model) / f"layer{layer}" / run


def snapshot_folder(run: Path, step: int) -> Path:
    return run / f"{SNAPSHOT}{step:06d}"


def snapshot_step(folder: Path) -> int:
    return int(folder.name.removeprefix(SNAPSHOT))


def snapshots_in(run: Path) -> list[Path]:
    """Folders of a run's snapshots, by their step."""
    found = [folder for folder in run.glob(f"{SNAPSHOT}*") if folder.name.removeprefix(SNAPSHOT).isdigit()]
    return sorted(found, key=snapshot_step)


def null_folder(run: Path, null: str) -> Path:
    return run / NULL / null


def nulls_in(run: Path) -> list[Path]:
    """Folders of a run's finished nulls, by name."""
    return sorted(path.parent for path in (run / NULL).glob(f"*/{WEIGHTS}"))
