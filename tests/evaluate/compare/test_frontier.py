"""Thresholds turned to an L0, counted again from scratch."""

from dataclasses import replace

import pytest
import torch

from evaluate.compare.frontier import ThresholdTuner, variants
from evaluate.metrics.results import evaluate
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")


@pytest.fixture
def dial(store) -> ThresholdTuner:
    return ThresholdTuner(make_transcoder(d_in=12, d_out=10, d_sae=40, prefix_sizes=(40,), k=8), store, CPU)


@pytest.mark.parametrize("wanted", [2.0, 5.0, 9.0])
def test_a_turned_threshold_gives_that_l0(dial, store, wanted):
    [found] = evaluate([dial.at(wanted)], store, "train", 64, CPU)
    assert found.l0_mean == pytest.approx(wanted, abs=0.02)


def test_its_own_l0_leaves_it_alone(dial, store):
    [found] = evaluate([dial.transcoder], store, "train", 64, CPU)
    assert dial.l0 == pytest.approx(found.l0_mean)
    assert dial.at(dial.l0) is dial.transcoder


def test_an_l0_out_of_reach_is_none(dial):
    assert dial.at(1000.0) is None


def test_topk_changes_its_k(store):
    topk = make_transcoder(d_in=12, d_out=10, d_sae=40, prefix_sizes=(40,), k=8, activation="topk")
    assert ThresholdTuner(topk, store, CPU).at(3.0).config.k == 3


def test_the_l0_of_an_autoencoder_is_counted_on_what_it_reads(store):
    sae = make_transcoder(d_in=10, d_out=10, d_sae=40, prefix_sizes=(40,), k=8, source_site="mlp_out", view="raw")
    [found] = evaluate([sae], store, "train", 64, CPU)
    assert ThresholdTuner(sae, store, CPU).l0 == pytest.approx(found.l0_mean)


def test_a_sweep_has_the_same_l0s_for_all(dial):
    first, second = variants([dial, dial])
    assert len(first) >= 4
    assert all(torch.equal(a.transcoder.threshold, b.transcoder.threshold) for a, b in zip(first, second, strict=True))
    assert len({float(variant.transcoder.threshold[0]) for variant in first}) == len(first)
    assert first[0].transcoder is dial.transcoder


def test_a_relu_stays_as_it_is_since_no_factor_moves_a_threshold_of_zero(dial, store):
    """Activations of thousands: their ratio to the smallest float would be infinite."""
    t = dial.transcoder
    relu = replace(t, W_enc=1000 * t.W_enc, b_enc=1000 * t.b_enc, threshold=torch.zeros(40))
    fixed = ThresholdTuner(relu, store, CPU)
    [found] = evaluate([relu], store, "train", 64, CPU)
    assert fixed.l0 == pytest.approx(found.l0_mean)
    assert [variant.factor for variant in variants([dial, fixed])[1]] == [None]


def test_thresholds_of_zero_stay_where_the_others_are_turned(dial, store):
    half = replace(dial.transcoder, threshold=torch.cat([torch.zeros(20), torch.ones(20)]))
    turned = ThresholdTuner(half, store, CPU).at(12.0)
    [found] = evaluate([turned], store, "train", 64, CPU)
    assert found.l0_mean == pytest.approx(12, abs=0.02)
    assert not turned.threshold[:20].any()
