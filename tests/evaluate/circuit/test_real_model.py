"""The map of the embedded Gemma 3 270M against a dense computation in float64."""

import importlib.util

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from evaluate.circuit.config import CircuitConfig
from evaluate.circuit.map import circuit
from evaluate.circuit.summary import read_circuit
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model import embedded
from store.layout import EDGES
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder
from store.views import normed
from tests.store.transcoders.making import make_transcoder

GEMMA = next(iter(embedded.MODELS))
LAYERS = (8, 9, 10)
D, D_SAE = 640, 96


def dictionary_of(store: Store, layer: int, folder) -> Transcoder:
    """A dictionary that nobody trained: directions of rows that the store holds, each active on one row in ten."""
    shard = store.manifest.of_split("train")[0]
    x = normed(store.array(shard, "resid_mid")[: shard.kept], store.norm)
    y = store.array(shard, "mlp_out")[: shard.kept].float()
    made = make_transcoder(D, D_SAE, D, layer=layer, view="normed", k=10, prefix_sizes=(D_SAE,), model=GEMMA)
    W_enc = torch.nn.functional.normalize(x[:D_SAE] - x.mean(0), dim=1).T.contiguous()
    b_enc = -(x @ W_enc).quantile(0.9, dim=0)
    arrays = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": 0.1 * (y[:D_SAE] - y.mean(0)), "b_dec": y.mean(0)}
    transcoder = Transcoder(made.config, **arrays, threshold=torch.zeros(D_SAE))
    transcoder.save(folder / f"run{layer}")
    return transcoder


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec(embedded.MODELS[GEMMA].module) is None, reason="the model is not installed")
def test_the_map_of_a_real_model_equals_a_dense_computation(tmp_path, text_file):
    where = dict(model=GEMMA, layer=LAYERS, store=tmp_path, device="cpu")
    harvest(
        HarvestConfig(**where, dataset=str(text_file), tokens=2048, shard_tokens=512, heldout_every=2, metric_sequences=0)
    )
    stores = {layer: open_store(tmp_path / f"layer{layer}") for layer in LAYERS}
    runs = {layer: dictionary_of(store, layer, tmp_path) for layer, store in stores.items()}
    config = CircuitConfig(**where, run=tmp_path / "run{layer}", edges=5)
    circuit(config)
    assert read_circuit(config.folder).largest_gap < 1e-4
    dense = dense_means(stores, runs)
    rows = pq.read_table(config.folder / EDGES).to_pylist()
    assert len(rows) > 5 * D_SAE
    for row in rows:
        total, fired = dense[row["source_layer"], row["target_layer"]]
        expected = total[row["source"], row["target"]] / fired[row["target"]]
        assert row["mean"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def dense_means(stores: dict[int, Store], runs: dict[int, Transcoder]) -> dict[tuple[int, int], tuple]:
    """By pair of layers, the sum of every contribution over the rows at which the target is active, and those rows."""
    active = {}
    scales = {}
    for layer, store in stores.items():
        parts = [store.array(shard, "resid_mid")[: shard.kept] for shard in store.manifest.of_split("heldout")]
        resid = torch.cat(parts).double()
        scales[layer] = torch.rsqrt(resid.pow(2).mean(-1) + store.norm.eps)
        pre = (resid * scales[layer][:, None] * store.norm.gain.double()) @ runs[layer].W_enc.double()
        active[layer] = (pre + runs[layer].b_enc.double()).relu()
    found = {}
    for low in LAYERS:
        for high in [layer for layer in LAYERS if layer > low]:
            on = (active[high] > 0).double() * scales[high][:, None]
            gain = stores[high].norm.gain.double()
            weight = runs[low].W_dec.double() @ (gain[:, None] * runs[high].W_enc.double())
            found[low, high] = (((active[low].T @ on) * weight).numpy(), np.asarray((active[high] > 0).sum(0)))
    return found
