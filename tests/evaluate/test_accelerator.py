"""Evaluation on the pretend accelerator: every section of a measurement and of a comparison, features, splices and
interventions have the numbers of the host, and nothing is left there."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evaluate.compare import sections
from evaluate.compare.config import CompareConfig
from evaluate.compare.one_layer import compare_runs
from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from evaluate.features.analyze import analyze
from evaluate.features.config import AnalyzeConfig, FeaturesConfig
from evaluate.features.samples import collect_samples
from evaluate.metrics import probes, property_probes
from evaluate.metrics.accumulate import measure_rows
from evaluate.model.config import ImportanceConfig, InterveneConfig
from evaluate.model.importance import importance
from evaluate.model.intervene import intervene
from harvest.config import HarvestConfig
from harvest.loop import harvest
from tests.making import assert_alike, make_store
from tests.pretend import DEVICE, counting
from tests.store.transcoders.making import make_transcoder
from train.config import TrainConfig
from train.loop import train


@pytest.fixture(scope="module")
def trained(tiny_models, text_file, tmp_path_factory) -> Path:
    """A store with its metric, a run with nulls and another seed of it, and a TopK and a JumpReLU baseline with skip."""
    folder = tmp_path_factory.mktemp("accelerator")
    where = dict(model=str(tiny_models["gemma2"]), layer=1, store=folder / "store", device="cpu")
    exact = dict(dtype="float32", compute_dtype="float32", metric_sequences=4)
    small = dict(tokens=2048, shard_tokens=512, context=32, heldout_every=2)
    harvest(HarvestConfig(**where, **exact, **small, dataset=str(text_file)))
    common = dict(where, d_sae=40, k=4, tokens=1024, batch_rows=32, lr=5e-3, target_view="raw")
    train(TrainConfig(**common, run=folder / "run" / "one", nulls=True, prefix_sizes="10,40"))
    train(TrainConfig(**common, run=folder / "run" / "two", seed=1, prefix_sizes="10,40"))
    train(TrainConfig(**common, run=folder / "topk", activation="topk", prefix_sizes="10,40"))
    train(TrainConfig(**common, run=folder / "jump", activation="jumprelu", prefix_sizes="none", skip=True))
    return folder


class Words:
    """A tokenizer whose tokens are words."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"▁{'abc'[number % 3]}ed" if number % 2 else f"▁{'abc'[number % 3]}xs" for number in ids]


def config_in(trained: Path, device: str, **changes: Any) -> CompareConfig:
    return CompareConfig(
        store=trained / "store",
        run=trained / "run" / "one",
        baseline=(trained / "jump",),
        sequences=2,
        batch_rows=300,
        device=device,
        force=True,
        **changes,
    )


@pytest.mark.slow
def test_a_comparison_with_every_section_equals_the_hosts(trained, accelerator, monkeypatch):
    monkeypatch.setattr(sections, "probes_tokenizer", lambda store: Words())
    monkeypatch.setattr("evaluate.compare.sectioned.probes_tokenizer", lambda store: Words())
    for module in (probes, property_probes):
        monkeypatch.setattr(module, "MIN_WORDS", 2)
    monkeypatch.setattr(probes, "PROBE_F1", 0.0)
    found = []
    for device in ("cpu", accelerator):
        folder = compare_runs(config_in(trained, device))
        found.append(json.loads((folder / "comparison.json").read_text()))
    host, device = found
    for one in (host, device):
        one.pop("key")
    ours = device["ours"]
    assert set(ours["not_measured"]) <= {"spelling"}
    assert {
        "frontier",
        "fvu_by_view",
        "monosemanticity",
        "useful_share",
        "seeds",
        "recurring_share",
        "pw_mcc",
    } <= ours.keys()
    assert {"delta_ce", "frontier_kl", "estimated_kl", "absorption", "sparse_probing", "tpp"} <= ours.keys()
    assert_alike(device, host)


def test_a_measurement_equals_the_hosts(trained, accelerator):
    found = []
    for device in ("cpu", accelerator):
        config = EvaluateConfig(store=trained / "store", run=trained / "topk", device=device, batch_rows=300, force=True)
        found.append(json.loads((evaluate_run(config) / "metrics.json").read_text()))
    assert_alike(found[1], found[0])


def test_features_and_their_analysis_equal_the_hosts(trained, accelerator):
    tables = []
    for device in ("cpu", accelerator):
        where = dict(store=trained / "store", run=trained / "run" / "one", device=device, force=True)
        folder = collect_samples(FeaturesConfig(**where))
        tables.append(pq.read_table(folder / "features.parquet").to_pylist())
        report = analyze(AnalyzeConfig(**where))
        assert (report / "report.md").exists()
    assert_alike(tables[1], tables[0])


def result(config: InterveneConfig | ImportanceConfig) -> dict:
    (intervene if isinstance(config, InterveneConfig) else importance)(config)
    name = "intervention" if isinstance(config, InterveneConfig) else "importance"
    return json.loads((config.run_directory / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (InterveneConfig, {"text": "Document 7 says words.", "ablate": (0,), "scale": ("1:2.5",), "pin": ("2:3",)}),
        (InterveneConfig, {"text": "Document 7 says words.", "ablate": (0,), "keep_error": True}),
        (ImportanceConfig, {"count": 5, "sequences": 3}),
    ],
)
def test_interventions_and_importance_equal_the_hosts(trained, accelerator, kind, options):
    where = dict(store=trained / "store", run=trained / "run" / "one")
    host, device = (result(kind(**where, **options, device=name)) for name in ("cpu", accelerator))
    assert_alike(device, host)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("threshold", {"nonzero": 2, "to host": 2}),
        ("topk", {"nonzero": 3, "to host": 2}),
    ],
)
def test_waits_of_a_batch_of_metrics(tmp_path, accelerator, activation, expected):
    store = make_store(tmp_path / "store", 24, heldout_every=2)
    transcoder = make_transcoder(d_in=12, d_out=10, activation=activation)

    def waits(rows: int) -> dict[str, int]:
        with counting() as found:
            measure_rows([transcoder], store, "heldout", 100, DEVICE, limit=rows, quiet=True)
        return found

    waits(300)
    few, many = waits(300), waits(800)
    assert {kind: (many[kind] - few[kind]) / 5 for kind in many if many[kind] != few[kind]} == expected
