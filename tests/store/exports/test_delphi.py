"""delphi's cache of latents: read as its TensorBuffer does, and compared with a dense NumPy forward."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from store.config import ExportConfig
from store.errors import Refused
from store.exports import delphi
from store.exports.delphi import Entries
from store.exports.export import export
from store.shards.reader import open_store
from tests.store.exports.making import run_of_layer

THEIRS = Path(__file__).parent / "delphi"
"""Made by `interop_tool.py make` in tests/bench."""


def options(folder, **changes) -> ExportConfig:
    return ExportConfig(**({"run": folder / "run1", "layout": "delphi", "out": folder / "out"} | changes))


def dense_cache(folder, d_sae: int) -> tuple[np.ndarray, np.ndarray]:
    """[sequences, context, d_sae] and the tokens, by the lines of delphi/latents/loader.py."""
    tokens, entries = None, []
    for path in folder.glob("*.safetensors"):
        split = load_file(path)
        start, end = map(int, path.stem.split("_"))
        locations = split["locations"].astype(np.int64)
        assert locations[:, 2].max(initial=0) <= end - start
        locations[:, 2] += start
        entries.append((locations, split["activations"]))
        tokens = split["tokens"]
    cache = np.zeros((*tokens.shape, d_sae), np.float32)
    for locations, values in entries:
        cache[tuple(locations.T)] = values
    return cache, tokens


@pytest.mark.parametrize("activation", ["threshold", "topk"])
@pytest.mark.parametrize("skip", [False, True])
def test_the_cache_has_the_runs_activations_on_every_held_out_token(tmp_path, activation, skip):
    t = run_of_layer(tmp_path, 1, activation=activation, skip=skip)
    said = export(options(tmp_path))
    folder = tmp_path / "out/latents/layers.1.mlp"
    cache, tokens = dense_cache(folder, 10)
    store = open_store(tmp_path / "layer1")
    [shard] = store.manifest.of_split("heldout")
    np.testing.assert_array_equal(tokens, store.array(shard, "tokens"))
    expected = np.zeros((tokens.size, 10), np.float32)
    rows = store.array(shard, "resid_mid")[: shard.kept]
    expected[store.array(shard, "token_index")[: shard.kept]] = t.encode(t.view(rows, store.norm)).numpy()
    np.testing.assert_allclose(cache.reshape(-1, 10), expected, rtol=1e-3, atol=1e-5)
    assert int((expected > 1e-5).sum()) == int((cache > 0).sum()) > 50
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_name"], config["cache_ctx_len"], config["n_splits"]) == ("tiny", 8, 5)
    assert "raw_dir is" in said
    assert "no multiple of 32: set example_ctx_len" in said


def test_the_splits_cover_all_latents_and_keep_the_order_that_delphi_pools_by(tmp_path):
    run_of_layer(tmp_path, 1)
    export(options(tmp_path))
    folder = tmp_path / "out/latents/layers.1.mlp"
    names = [f"{start}_{start + 1}.safetensors" for start in range(0, 10, 2)]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == names
    for path in folder.glob("*.safetensors"):
        split = load_file(path)
        assert split["locations"].dtype == np.uint16
        assert split["activations"].dtype == np.float16
        order = np.lexsort(split["locations"].T[::-1])
        np.testing.assert_array_equal(order, np.arange(len(order)))


def test_files_are_written_as_delphi_writes_them(tmp_path):
    """A cache that eai-delphi 0.1.3 made itself, of latents of which one is dead."""
    made = load_file(THEIRS / "made.safetensors")
    at = np.nonzero(made["latents"] > 1e-5)
    delphi.write_splits(tmp_path, Entries(*at, made["latents"][at]), made["tokens"], 11)
    names = sorted(path.name for path in (THEIRS / "layers.1.mlp").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        ours, theirs = load_file(tmp_path / name), load_file(THEIRS / "layers.1.mlp" / name)
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            assert ours[key].dtype == array.dtype
            np.testing.assert_array_equal(ours[key], array)


def test_many_sequences_need_wider_locations(tmp_path):
    entries = Entries(np.array([70_000]), np.array([0]), np.array([1]), np.array([2.0], np.float32))
    delphi.write_splits(tmp_path, entries, np.zeros((70_001, 1), np.int64), 5)
    split = load_file(tmp_path / "1_1.safetensors")
    assert split["locations"].dtype == np.uint32
    assert split["locations"].tolist() == [[70_000, 0, 0]]


def test_a_cache_that_says_something_else_is_not_kept(tmp_path, monkeypatch):
    run_of_layer(tmp_path, 1)
    right = delphi.entries_of

    def wrong(*args):
        entries = right(*args)
        return Entries(entries.sequence, entries.position, entries.latent, entries.value * 1.01)

    monkeypatch.setattr(delphi, "entries_of", wrong)
    with pytest.raises(Refused, match="activations that differ from the run's by 1.0e-02"):
        export(options(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer1", "run1"]


def test_without_the_rows_there_is_no_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_of_layer(tmp_path, 1)
    (tmp_path / "layer1").rename(tmp_path / "moved")
    with pytest.raises(Refused, match="made of the rows that .*run1 was trained on, and they are gone; give --store"):
        export(options(tmp_path))
    export(options(tmp_path, store=tmp_path / "moved"))
    with pytest.raises(Refused, match="leave out --dtype and --view"):
        export(options(tmp_path, dtype="bfloat16"))
