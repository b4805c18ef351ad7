"""Every figure of a set against plain transformers with hooks; MLPs replaced by themselves; one layer against splice."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from evaluate.model.splice import splice
from evaluate.sets.choices import Variant, choices_of, variants_of
from evaluate.sets.command import compare_set
from evaluate.sets.measure import SetRun, measure
from evaluate.sets.replaced import Replacement
from evaluate.sets.result import read_set
from evaluate.sets.table import Column
from harvest.model.loading import load_model
from tests.evaluate.sets.making import CPU, LAYERS, SEQUENCES, figures_by_hand

WAYS = {"recomputed": False, "frozen": True}


def test_every_choice_of_layers_is_run_once():
    assert choices_of((3, 4, 6)) == [(3,), (3, 4), (3, 4, 6), (6,), (4, 6), (4,)]
    assert choices_of((0, 2)) == [(0,), (0, 2), (2,)]
    assert len(choices_of(range(26))) == 3 * 26 - 3


@pytest.mark.parametrize("way", WAYS)
def test_figures_equal_plain_transformers_with_hooks(case, way):
    config = case.config(linear=False, name="both")
    compare_set(config)
    result = read_set(config.folder)
    assert result is not None
    [ours] = result.sides
    found = ours.attention[way]
    for cost in (*found.from_bottom[1:], *found.from_top[1:], *found.alone):
        expected = figures_by_hand(case, cost.layers, WAYS[way])
        assert expected["kl"] > 1e-4  # something is replaced
        for name in ("delta_ce", "kl", "top1"):
            assert getattr(cost, name).value == pytest.approx(expected[name], abs=1e-5), (cost.layers, name)
    whole = figures_by_hand(case, LAYERS, WAYS[way])
    assert [point.layer for point in found.growth] == [0, 1, 2]
    for point in found.growth:
        assert point.error.value == pytest.approx(whole[f"growth {point.layer}"], rel=1e-4)


def test_frozen_and_recomputed_attention_differ_above_the_first_replaced_layer(case):
    config = case.config(linear=False, name="both")
    compare_set(config)
    result = read_set(config.folder)
    recomputed, frozen = (result.sides[0].attention[way] for way in WAYS)
    assert recomputed.alone[0].kl.value != pytest.approx(frozen.alone[0].kl.value, rel=1e-2)
    assert recomputed.alone[1].kl.value == frozen.alone[1].kl.value  # the last block: nothing attends to it
    assert recomputed.from_bottom[0].kl.value == 0
    assert recomputed.from_bottom[0].layers == ()
    assert recomputed.from_bottom[-1] == recomputed.from_top[-1] == recomputed.whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlps_replaced_by_themselves_change_nothing_at_all(gemma, tmp_path, dtype):
    model = load_model(gemma.model.name, LAYERS[-1], CPU, dtype)
    rounded = replace(gemma, plain=deepcopy(gemma.plain).to(dtype))
    own = {layer: Replacement("resid_mid", rounded.own_mlp(layer)) for layer in LAYERS}
    variants = variants_of(LAYERS, 1, [False, True])
    table, n = measure(SetRun(gemma.stores[0], [own], LAYERS, variants, SEQUENCES, tmp_path), model)
    assert n == SEQUENCES
    for variant in variants:
        cost = table.cost(variant)
        assert (cost.kl.value, cost.delta_ce.value, cost.top1.value) == (0, 0, 1)
    for frozen in (False, True):
        for layer in range(3):
            assert table.growth(Variant(0, LAYERS, frozen), layer).error.value == 0
    kl = table.sums[:, [table.place[Column("kl", variant)] for variant in variants]]
    assert kl.abs().max() == 0  # exactly, of every document


def test_one_layer_alone_costs_what_splice_reports(case):
    many = 24  # enough documents for intervals
    compare_set(case.config(linear=False, name="alone", sequences=many))
    result = read_set(case.config(name="alone").folder)
    for layer, cost in zip(LAYERS, result.sides[0].attention["recomputed"].alone, strict=True):
        model = load_model(case.model.name, layer, CPU, torch.float32)
        spliced = splice([case.transcoders[layer]], case.stores[layer], model, many, all_prefixes=False).figures(0)
        assert cost.layers == (layer,)
        assert cost.kl.value == pytest.approx(spliced.kl.value, rel=1e-4)
        assert cost.delta_ce.value == pytest.approx(spliced.delta_ce.value, rel=1e-4, abs=1e-7)
        assert cost.kl.ci95 == pytest.approx(spliced.kl.ci95, rel=1e-4)
        assert result.n_predictions == spliced.n_predictions
        assert result.n_documents == spliced.n_prediction_documents
        assert result.ce_clean.value == pytest.approx(spliced.ce_clean.value, rel=1e-5)


def test_parts_of_a_run_with_other_batches_are_not_taken_for_its_own(gemma, tmp_path, monkeypatch):
    """As when a comparison is interrupted on a CPU and goes on on a GPU, where more sequences are run at once."""
    norms = {layer: store.norm for layer, store in gemma.stores.items()}
    sides = [{layer: Replacement.of(gemma.transcoders[layer], norms[layer], 2048) for layer in LAYERS}]
    variants = variants_of(LAYERS, 1, [False])

    def sums(folder):
        return measure(SetRun(gemma.stores[0], sides, LAYERS, variants, SEQUENCES, folder), gemma.model)[0].sums

    expected = sums(tmp_path / "whole")
    sums(tmp_path / "interrupted")
    for part in sorted((tmp_path / "interrupted").glob("sequences-*"))[3:]:
        part.unlink()
    monkeypatch.setattr("evaluate.sets.measure.of_kind", lambda *args: 2)
    torch.testing.assert_close(sums(tmp_path / "interrupted"), expected, rtol=1e-4, atol=1e-7)
