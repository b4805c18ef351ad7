"""A tiny Pythia, whose attention and MLP run side by side, from text to a comparison."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from evaluate.compare.config import CompareConfig
from evaluate.compare.files import read_comparison
from evaluate.compare.one_layer import compare_runs
from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from evaluate.features.config import FeaturesConfig
from evaluate.features.samples import collect_samples
from evaluate.model.config import ImportanceConfig, InterveneConfig
from evaluate.model.importance import importance
from evaluate.model.intervene import intervene
from harvest.config import HarvestConfig
from harvest.loop import harvest
from tests.harvest.model.making import TINY_PARALLEL, save_tiny
from train.config import TrainConfig
from train.loop import train


@pytest.fixture(scope="module")
def folder(tiny_models, text_file, tmp_path_factory) -> Path:
    """A store of resid_pre and mlp_out, and two runs on it."""
    folder = tmp_path_factory.mktemp("pythia")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_models["gpt2"])
    model = save_tiny(folder / "model", "GPTNeoXForCausalLM", TINY_PARALLEL["GPTNeoXForCausalLM"], tokenizer)
    harvest(
        HarvestConfig(
            model=model,
            layer=1,
            dataset=str(text_file),
            tokens=8192,
            shard_tokens=1024,
            context=32,
            heldout_every=4,
            sites=("resid_pre", "mlp_out"),
            store=folder / "store",
            device="cpu",
        )
    )
    common = dict(
        model=model,
        layer=1,
        store=folder / "store",
        source_site="resid_pre",
        view="rms",
        d_sae=32,
        tokens=6000,
        batch_rows=64,
        lr=5e-3,
        warmup_steps=5,
        device="cpu",
    )
    train(TrainConfig(**common, k=4, prefix_sizes="8,32", run=folder / "run"))
    train(TrainConfig(**common, k=6, prefix_sizes="8,32", run=folder / "other"))
    return folder


@pytest.mark.slow
def test_every_command_of_evaluate_runs_on_a_model_without_resid_mid(folder):
    common = dict(store=folder / "store", run=folder / "run", device="cpu")
    assert (evaluate_run(EvaluateConfig(**common)) / "report.html").exists()
    compared = read_comparison(compare_runs(CompareConfig(**common, baseline=(folder / "other",), sequences=4)))
    # a tokenizer of single characters has no words to probe
    assert set(compared.ours.not_measured) == {"first_letters", "spelling", "properties"}
    for side in (compared.ours, compared.other):
        assert side.value("fvu") < 1
        assert side.value("kl") > 0
    intervene(InterveneConfig(**common, text="The quick brown fox.", ablate=(0,)))
    importance(ImportanceConfig(**common, count=2, sequences=2))
    assert len(json.loads((folder / "run" / "importance.json").read_text())["latents"]) == 2
    clean = json.loads((folder / "run" / "intervention.json").read_text())["ce_clean"]
    assert clean == pytest.approx(compared.ours.value("ce_clean"), rel=0.2)
    collected = collect_samples(FeaturesConfig(**common, samples=5))
    assert (collected / "features.parquet").exists()
