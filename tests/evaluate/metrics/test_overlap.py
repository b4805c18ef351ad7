"""Features of two layers matched: by hand, against every pair at once, and the report over layers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from evaluate.compare.layers import compare, overlaps, verdict_of
from evaluate.features.config import CompareLayersConfig
from evaluate.features.partners import match_features
from evaluate.metrics.firings import RowFirings
from evaluate.metrics.overlap import LEAST, decoder_overlap, decoder_partners, largest_cosines, overlap
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.evaluate.dense import dense
from tests.making import assert_alike, make_store
from tests.pretend import DEVICE
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")


def firing(rows: list[list[int]], n: int) -> RowFirings:
    """By latent, the rows on which it fires."""
    row = torch.tensor([each for fired in rows for each in fired])
    latent = torch.tensor([index for index, fired in enumerate(rows) for _ in fired])
    return RowFirings(row, latent, torch.ones(len(row)), n, len(rows))


def test_largest_cosines_by_hand():
    a = firing([list(range(8)), list(range(8, 16)), [0]], 20)
    b = firing([list(range(4, 12)), list(range(8, 16)), [0]], 20)
    # rows 4-7 of 8 and 8 in common: 4 / 8; the second is the same; what fires on one row is not matched
    assert largest_cosines(a, b).tolist() == pytest.approx([0.5, 1.0])


def test_a_dictionary_overlaps_wholly_with_itself_and_hardly_when_shuffled():
    generator = np.random.default_rng(1)
    a = firing([sorted(generator.choice(4000, 40, replace=False)) for _ in range(30)], 4000)
    found = overlap(a, a)
    assert (found.firing, found.firing_share) == (pytest.approx(1.0), 1.0)
    assert found.firing_chance < 0.2


def test_firing_is_where_a_dense_encoder_fires(store):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(20,))
    found = RowFirings.of(t, store, CPU)
    assert np.array_equal(np.sort(found.fired), np.sort(dense(store, t).fired.sum(0)))
    assert np.array_equal(found.fired, dense(store, t).fired.sum(0))


def test_decoders_are_compared_by_their_directions():
    a, b = torch.eye(3), torch.tensor([[0.0, -5.0, 0.0], [3.0, 4.0, 0.0]])
    assert decoder_overlap(a, b) == pytest.approx((0.6 + 1.0 + 0.0) / 3)


@pytest.mark.slow
def test_several_layers_give_one_report_with_every_layer_and_their_overlap(layers, capsys):
    folder = compare(layers)
    found = json.loads((folder / "layers.json").read_text())
    assert list(found["layers"]) == ["1", "2"]
    assert list(found["overlap"]) == ["1 to 2"]
    assert 0 <= found["overlap"]["1 to 2"]["firing"] <= 1
    html = (folder / "report.html").read_text()
    for layer in ("1", "2"):
        assert f"{found['layers'][layer]['ours']['fvu']:.4f}" in html
        assert f"{found['layers'][layer]['ours']['fvu']:.4f}" in (folder / "report.md").read_text()
    assert (folder / "summary.txt").read_text() in capsys.readouterr().out
    assert (folder / "figures" / "fvu.png").exists()


def test_the_verdict_over_layers_names_the_better_one_by_layer():
    won = {8: {"fvu": "ours", "delta_ce": "tie"}, 12: {"fvu": "other"}, 17: {"fvu": "ours", "delta_ce": "not judged: why"}}
    assert verdict_of(won) == (
        "At equal L0, by paired 95% intervals. delta CE: a tie at layer 8; not judged: why at layer 17. "
        "FVU: ours is better at layer 8, 17; the other is better at layer 12."
    )


def test_layers_that_were_not_harvested_together_are_refused_before_any_work(layers, tmp_path, monkeypatch):
    other = make_store(tmp_path / "other", 24, heldout_every=8, layer=2, seed=5)
    shutil.rmtree(layers.store / "layer2")
    shutil.move(other.directory, layers.store / "layer2")
    monkeypatch.setattr("evaluate.compare.one_layer.measure", None)
    with pytest.raises(ValueError, match="were not harvested together"):
        compare(layers)


def test_one_folder_for_several_layers_is_refused(layers):
    with pytest.raises(ValueError, match=r"\{layer\}"):
        replace(layers, run=layers.store / "run1")


@pytest.mark.parametrize("device", ["cpu", str(DEVICE)])
def test_every_feature_gets_the_partner_that_a_dense_count_gives(layers, accelerator, device):
    config = CompareLayersConfig(layer=(1, 2), store=layers.store, run=layers.run, device=device)
    folder = match_features(config)
    pairs = pq.read_table(folder / "pairs-1-2.parquet").to_pylist()
    fired = []
    for layer in (1, 2):
        store, run = open_store(layers.store / f"layer{layer}"), Transcoder.load(layers.store / f"run{layer}")
        d = dense(store, run)
        fired.append(d.fired[np.isfinite(d.latents[:, 0])].astype(float))
    both = fired[0].T @ fired[1]
    counts = [f.sum(0) for f in fired]
    matched = 0
    for row in pairs:
        latent, partner = row["feature"], row["partner"]
        assert row["fired"] == counts[0][latent]
        if counts[0][latent] < LEAST:
            assert partner == -1
            continue
        cosine = np.where(counts[1] >= LEAST, both[latent] / np.sqrt(counts[0][latent] * counts[1].clip(1)), 0)
        assert row["firing_cosine"] == pytest.approx(cosine.max(), rel=1e-5)
        assert cosine[partner] == pytest.approx(cosine.max(), rel=1e-5)
        assert row["both"] == both[latent, partner]
        matched += 1
    assert matched > 10
    html, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert html.count("<circle") == matched
    assert "Only in layer 2, not in 1" in html
    strongest = max(row["firing_cosine"] for row in pairs)
    assert f"| {strongest:.2f} |" in markdown or f"|{strongest:.2f} |" in markdown


def test_features_of_layers_coincide_on_the_device_as_on_the_host(layers, accelerator):
    runs = {layer: layers.store / f"run{layer}" for layer in (1, 2)}
    stores = {layer: open_store(layers.store / f"layer{layer}") for layer in (1, 2)}
    host, device = (overlaps(runs, stores, name) for name in ("cpu", accelerator))
    assert_alike(
        {pair: found.as_json() for pair, found in device.items()}, {p: found.as_json() for p, found in host.items()}
    )


def test_decoder_partners_are_the_nearest_rows_with_their_sign():
    a, b = torch.eye(3)[:2], torch.tensor([[0.0, -5.0, 0.0], [3.0, 0.0, 4.0]])
    other, cosine = decoder_partners(a, b)
    assert other.tolist() == [1, 0]
    assert cosine.tolist() == pytest.approx([0.6, -1.0])


def test_one_layer_is_not_compared_with_itself():
    with pytest.raises(ValueError, match="two or more"):
        match_features(CompareLayersConfig(layer=8))
