"""Every command on runs at the edge: no library warns, nothing ends in a traceback, no figure reads as `nan`.

Warnings are errors in all tests; what libraries log is caught here too.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export
from evaluate.compare.config import CompareConfig
from evaluate.compare.layers import compare
from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from evaluate.features.analyze import analyze
from evaluate.features.config import AnalyzeConfig, CompareLayersConfig, FeaturesConfig
from evaluate.features.partners import match_features
from evaluate.features.samples import collect_samples
from evaluate.judge.config import JudgeExportConfig
from evaluate.judge.questions import export_questions
from evaluate.model.config import ImportanceConfig, InterveneConfig
from evaluate.model.importance import importance
from evaluate.model.intervene import intervene
from harvest.config import HarvestConfig
from harvest.loop import harvest
from store.errors import Refused
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder

D_SAE = 20
SILENT = 1e9


def made(kind: str, model: str, fingerprint: str, layer: int) -> Transcoder:
    k = D_SAE if kind.startswith("k = d_sae") else 3
    activation = "topk" if kind.endswith("topk") else "threshold"
    sizes = (D_SAE,) if kind == "one prefix" else (4, 9, D_SAE)
    t = make_transcoder(
        d_in=16,
        d_out=16,
        d_sae=D_SAE,
        prefix_sizes=sizes,
        model=model,
        k=k,
        layer=layer,
        store_fingerprint=fingerprint,
        activation=activation,
    )
    threshold = torch.zeros(D_SAE)
    if kind == "dead":
        threshold += SILENT
    if kind == "one living latent":
        threshold[1:] = SILENT
    scale = 1e-3
    return replace(t, threshold=threshold, W_dec=t.W_dec * scale, b_dec=t.b_dec * scale)


@pytest.fixture(scope="module")
def harvested(tiny_models, text_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("harvested")
    harvest(
        HarvestConfig(
            model=str(tiny_models["gemma2"]),
            layer=(1, 2),
            dataset=str(text_file),
            tokens=2048,
            shard_tokens=512,
            context=32,
            heldout_every=2,
            store=folder,
            device="cpu",
            dtype="float32",
            compute_dtype="float32",
        )
    )
    return folder


MORE_EDGES = ("one living latent", "k = d_sae", "k = d_sae, topk")

COMMANDS: dict[str, tuple[type, Callable, dict]] = {
    "metrics": (EvaluateConfig, evaluate_run, {}),
    "compare": (CompareConfig, compare, {"sequences": 2}),
    "features": (FeaturesConfig, collect_samples, {"samples": 5}),
    "analyze": (AnalyzeConfig, analyze, {}),
    "compare-layers": (CompareLayersConfig, match_features, {"layer": (1, 2)}),
    "judge-export": (JudgeExportConfig, export_questions, {}),
    "intervene": (InterveneConfig, intervene, {"text": "words words", "ablate": (0,)}),
    "importance": (ImportanceConfig, importance, {"count": 3, "sequences": 2}),
}


@pytest.mark.parametrize(
    "kind",
    ["dead", *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_EDGES)],
)
def test_every_command_takes_a_run_at_the_edge(kind, harvested, tiny_models, tmp_path, subtests, caplog):
    model = str(tiny_models["gemma2"])
    results = tmp_path / "results"
    for layer in (1, 2):
        fingerprint = open_store(harvested / f"layer{layer}").fingerprint
        made(kind, model, fingerprint, layer).save(results / f"run{layer}")
        made("one prefix", model, fingerprint, layer).save(tmp_path / f"other{layer}")
    caplog.set_level(logging.INFO)
    for command, (options, act, more) in COMMANDS.items():
        with subtests.test(command):
            several = "layer" in more
            where = {
                "model": model,
                "layer": 1,
                "store": harvested if several else harvested / "layer1",
                "run": results / ("run{layer}" if several else "run1"),
                "device": "cpu",
            }
            if command == "compare":
                where["baseline"] = (tmp_path / "other1",)
            if command == "judge-export":
                with pytest.raises(Refused, match="no latent has 2 samples in every quantile"):
                    act(options(**(where | more)))
            else:
                act(options(**(where | more)))
    with subtests.test("browse-export"):
        export(BrowseExportConfig(results=results, out=tmp_path / "site"))
    with subtests.test("nothing reads as nan"):
        for path in [*results.rglob("*.txt"), *results.rglob("*.md"), *results.rglob("*.html")]:
            words = path.read_text().replace("<", " ").replace(">", " ").replace("|", " ").split()
            assert not {"nan", "nan%", "inf", "-inf"} & {word.strip("[],;()") for word in words}, path
    foreign = [record for record in caplog.records if record.name.split(".")[0] not in ("evaluate", "store", "harvest")]
    assert [record.getMessage() for record in foreign] == []
