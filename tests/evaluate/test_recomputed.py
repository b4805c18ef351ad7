"""Every figure of a run on a store with recomputed targets is that on a store that holds them, to rounding."""

from dataclasses import replace

import pytest
import torch

from evaluate.compare.one_run import evaluate_run
from evaluate.config import EvaluateConfig
from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.measurement import Measurement
from evaluate.metrics.tasks import examples
from evaluate.model.sequences import sample
from harvest.config import HarvestConfig
from harvest.loop import harvest
from store.layout import METRICS
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder
from tests.making import assert_alike
from train.config import TrainConfig
from train.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tiny_models, text_file, tmp_path_factory) -> tuple[Store, Store]:
    """One harvest of a tiny Gemma 2, with stored and with recomputed targets."""
    folder = tmp_path_factory.mktemp("stores")
    config = HarvestConfig(
        model=str(tiny_models["gemma2"]),
        layer=1,
        dataset=str(text_file),
        tokens=4096,
        context=32,
        heldout_every=2,
        device="cpu",
        dtype="float32",
        compute_dtype="float32",
        metric_sequences=4,
        store=folder / "stored",
    )
    harvest(config)
    harvest(replace(config, store=folder / "recomputed", targets="recomputed"))
    return open_store(folder / "stored"), open_store(folder / "recomputed")


def measured(store: Store, folder) -> Measurement:
    where = dict(model=store.manifest.recipe.model, layer=1, store=store.directory, run=folder, device="cpu")
    train(TrainConfig(**where, d_sae=40, k=4, tokens=2048, batch_rows=32, lr=5e-3))
    evaluate_run(EvaluateConfig(**where))
    return Measurement.model_validate_json((folder / "evaluation" / METRICS).read_bytes())


def test_metrics_are_those_of_the_store_that_holds_its_targets(stores, tmp_path):
    expected, found = (measured(store, tmp_path / str(number)) for number, store in enumerate(stores))
    figures = found.figures()
    more = figures.keys() - expected.figures().keys()
    assert more
    assert all("jacobian" in key for key in more)  # they need the MLP, which the other store does not keep
    assert_alike({key: figures[key] for key in figures.keys() - more}, expected.figures(), rel=0.02, abs=0.02)
    assert found.estimated_kl == pytest.approx(expected.estimated_kl, rel=0.02)


def test_one_transcoder_on_both_stores_has_the_same_figures_by_document(stores, tmp_path):
    measured(stores[0], tmp_path / "run")
    transcoder = Transcoder.load(tmp_path / "run")
    (one,), facts = measure_rows([transcoder], stores[0], "heldout", 512, CPU)
    (other,), other_facts = measure_rows([transcoder], stores[1], "heldout", 512, CPU)
    torch.testing.assert_close(other.by_document("sse"), one.by_document("sse"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.by_document("cost"), one.by_document("cost"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other_facts.variation, facts.variation, rtol=1e-4, atol=1e-6)
    assert torch.equal(other.by_document("l0"), one.by_document("l0"))


def test_spliced_sequences_and_probed_rows_have_the_same_targets(stores):
    for one, other in zip(*(sample(store, 4) for store in stores), strict=True):
        assert torch.equal(one.source, other.source)
        torch.testing.assert_close(one.target, other.target, rtol=1e-4, atol=1e-5)
    kinds = torch.ones(98, dtype=torch.bool)
    found = [examples(store, lambda ids: [str(each) for each in ids], "train", kinds) for store in stores]
    torch.testing.assert_close(found[1].target, found[0].target, rtol=1e-4, atol=1e-5)
