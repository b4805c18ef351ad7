"""The contract of every layout: it recognises its own files alone, reads them, and writes what it reads where it can."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from store.errors import Refused
from store.transcoders.layouts import LAYOUTS, Layout, load_folder, load_run, read_run_config
from store.transcoders.legacy import LegacyTranscoder, load_legacy
from store.transcoders.transcoder import Transcoder
from store.views import NORMS
from tests.store.transcoders.making import (
    SAELENS,
    make_transcoder,
    write_circuit_tracer,
    write_legacy,
    write_llamascopium,
    write_scope1,
    write_scope2,
    write_sparsify,
)

WRITTEN = [name for name, layout in LAYOUTS.items() if layout.save is not None]


@pytest.fixture
def examples(tmp_path) -> dict[str, Path]:
    """A folder in each layout, made as its own project makes it."""
    write_scope2(tmp_path / "gemma-scope-2", affine=True)
    make_transcoder().save(tmp_path / "run")
    shutil.copytree(SAELENS, tmp_path / "saelens")
    return {
        "circuit-tracer": write_circuit_tracer(tmp_path / "circuit-tracer"),
        "gemma-scope-1": write_scope1(tmp_path).parent,
        "gemma-scope-2": tmp_path / "gemma-scope-2",
        "llamascopium": write_llamascopium(tmp_path / "llamascopium"),
        "run": tmp_path / "run",
        "saelens": tmp_path / "saelens",
        "sparsify": write_sparsify(tmp_path / "sparsify"),
        "legacy": write_legacy(tmp_path / "legacy"),
    }


def assert_same(found: Transcoder, expected: Transcoder) -> None:
    assert found.arrays().keys() == expected.arrays().keys()
    assert all(torch.equal(array, found.arrays()[name]) for name, array in expected.arrays().items())
    same = ("model", "layer", "view", "d_in", "d_sae", "d_out", "activation", "source_site", "target_site", "target_layer")
    assert all(getattr(found.config, name) == getattr(expected.config, name) for name in same)


def test_the_table_has_an_example_for_every_entry(examples):
    assert examples.keys() == LAYOUTS.keys()
    assert WRITTEN == ["circuit-tracer", "gemma-scope-1", "gemma-scope-2", "run", "saelens", "sparsify"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_recognises_its_own_files_and_no_others(name, examples, tmp_path):
    recognised = [other for other, folder in examples.items() if LAYOUTS[name].recognise(folder)]
    assert recognised == [name]
    (tmp_path / "empty").mkdir()
    assert not LAYOUTS[name].recognise(tmp_path / "empty")
    assert not LAYOUTS[name].recognise(tmp_path / "missing")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_view_that_a_layout_does_not_hold_under_a_norm_is_refused(name, examples):
    for kind in NORMS:
        view = load_folder(examples[name], 8, "m").config.view
        if view in LAYOUTS[name].holds.views.get(kind, ()):
            assert load_folder(examples[name], 8, "m", kind).config.view == view
        else:
            with pytest.raises(Refused, match=f"reads the view {view}, and the layout {name} does not say"):
                load_folder(examples[name], 8, "m", kind)


def test_hook_normalized_of_a_layernorm_is_not_guessed(examples):
    """It comes before the gain in TransformerLens's bridge, and after it in HookedTransformer."""
    assert load_folder(examples["saelens"], 8, "m", "rms").config.view == "rms"
    with pytest.raises(Refused, match=r"where the norm before the MLP is LayerNorm; give the transcoder in another layout"):
        load_folder(examples["saelens"], 8, "m", "layernorm")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_is_read_by_its_layout(name, examples):
    direct = LAYOUTS[name].load(examples[name], 8, "m")
    assert_same(load_folder(examples[name], 8, "m"), direct)
    x = torch.randn(4, direct.config.d_in)
    assert direct(x).shape == (4, direct.config.d_out)
    assert direct.config.view in LAYOUTS[name].holds.views["rms"]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_layout_reads_it_writes_again(name, examples, tmp_path):
    layout = LAYOUTS[name]
    read = layout.load(examples[name], 8, "m")
    layout.save(read, tmp_path / "again")
    again = layout.load(tmp_path / "again", read.config.layer, read.config.model)
    assert_same(again, read)
    assert load_folder(tmp_path / "again", read.config.layer, "").arrays().keys() == read.arrays().keys()


def made_for(layout: Layout, view: str, skip: bool) -> Transcoder:
    """A transcoder with the activation that a layout holds; with TopK, thresholds mean nothing."""
    t = make_transcoder(skip=skip, view=view, prefix_sizes=(10,), d_out=6, activation=layout.holds.activation)
    return t if layout.holds.activation == "threshold" else replace(t, threshold=torch.zeros(10))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_every_view_that_a_layout_holds_comes_back(name, skip, tmp_path):
    layout = LAYOUTS[name]
    for view in layout.holds.views["rms"]:
        t = made_for(layout, view, skip)
        if skip and not layout.holds.skip:
            with pytest.raises(ValueError, match="without a skip"):
                layout.save(t, tmp_path / view)
            assert not (tmp_path / view).exists()
        else:
            layout.save(t, tmp_path / view)
            assert_same(layout.load(tmp_path / view, t.config.layer, t.config.model), t)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_layout_cannot_hold_is_refused_or_comes_back(name, tmp_path):
    layout = LAYOUTS[name]
    [other] = {"threshold", "topk"} - {layout.holds.activation}
    t = make_transcoder(activation=other, view="normed", prefix_sizes=(10,), d_out=6)
    if layout.holds.everything:
        layout.save(t, tmp_path / "topk")
        assert_same(layout.load(tmp_path / "topk", 0, ""), t)
    else:
        with pytest.raises(ValueError, match="threshold"):
            layout.save(t, tmp_path / "topk")
        assert not (tmp_path / "topk").exists()


def test_no_layout_is_named_with_what_was_expected(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"holds no transcoder: expected one of config\.yaml with layer_N\.safetensors \(circuit-tracer\), .* "
        r"\(legacy\)",
    ):
        load_folder(tmp_path, 8, "m")


def test_a_standardised_legacy_run_saved_as_a_run_of_ours_stays_one(tmp_path):
    legacy = load_legacy(write_legacy(tmp_path / "legacy", input_unit_norm=True))
    assert isinstance(legacy, LegacyTranscoder)
    renamed = replace(legacy, config=legacy.config.model_copy(update={"name": "another"}))
    renamed.save(tmp_path / "run")
    again = load_run(tmp_path / "run")
    assert isinstance(again, LegacyTranscoder)
    assert again.config == read_run_config(tmp_path / "run") == renamed.config
    assert_same(again, legacy)
    with pytest.raises(ValueError, match="standardised"):
        Transcoder.load(tmp_path / "run")


def test_a_config_that_says_that_nothing_is_standardised_is_still_read(tmp_path):
    make_transcoder().save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"standardised": false,', 1))
    assert load_run(tmp_path).config == Transcoder.load(tmp_path).config == make_transcoder().config
