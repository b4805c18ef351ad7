"""A store with recomputed targets keeps the contract of other stores: the same rows in the same order, to rounding."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from store.config import VerifyConfig
from store.errors import Damaged, Refused
from store.layout import MLP_FILE
from store.loader import batches as loader
from store.loader.batches import batches
from store.loader.follow import Ledger, follow
from store.loader.slot import Slot
from store.mlp.forward import ACTIVATIONS
from store.mlp.proof import PROOF, fvu
from store.shards.formats import FORMATS
from store.shards.manifest import load_manifest
from store.shards.pair import paired
from store.shards.reader import Store, open_store
from store.shards.writer import StoreWriter
from store.verify import verify
from tests.making import files_of, make_mlp, make_norm, make_recipe, make_rows, make_store

WRITTEN = [name for name, kind in FORMATS.items() if kind.write is not None]
SHARED = {"dtype": "float32", "shard_sequences": 64}


@pytest.fixture
def twin(tmp_path) -> Store:
    """The same rows, stored."""
    return make_store(tmp_path / "twin", mlp=make_mlp(), **SHARED)


def recomputed(folder: Path, **changes) -> Store:
    return make_store(folder, mlp=make_mlp(), targets="recomputed", **(SHARED | changes))


def assert_same_batches(found, expected) -> None:
    """Sources bit for bit, targets to rounding."""
    pairs = list(zip(found, expected, strict=True))
    assert pairs
    for one, other in pairs:
        assert one.cursor == other.cursor
        assert torch.equal(one.source, other.source)
        torch.testing.assert_close(one.target, other.target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WRITTEN)
def test_batches_are_those_of_the_store_that_holds_them(name, twin, tmp_path):
    store = recomputed(tmp_path / "store", format=name)
    for options in ({"stop": 2000}, {"cursor": 77, "stop": 900, "view": "raw"}, {"stop": 300, "shuffle": False}):
        assert_same_batches(batches(store, "train", 32, **options), batches(twin, "train", 32, **options))
    for rank in (0, 1):
        options = {"stop": 640, "rank": rank, "world": 2}
        assert_same_batches(batches(store, "heldout", 32, **options), batches(twin, "heldout", 32, **options))


@pytest.mark.parametrize("sites", [("resid_mid", "mlp_out"), ("mlp_out", "mlp_out")])
def test_the_bytes_of_a_window_are_those_of_the_arrays_that_are_read(twin, tmp_path, monkeypatch, sites):
    """Of both sites where both are stored, and of one array where the other is recomputed from it, or is the same."""
    found = []
    for store in (twin, recomputed(tmp_path / "store")):
        held = []
        real = Slot.__init__

        def counting(self, *args, held=held, real=real):
            real(self, *args)
            held.append(sum(array.nbytes for array in self.host))

        monkeypatch.setattr(Slot, "__init__", counting)
        next(batches(store, "train", 32, sites=sites))
        monkeypatch.setattr(Slot, "__init__", real)
        found.append(loader.window_bytes(store, "train", sites, 0))
        assert held == found[-1:] * 2
    d_in, d_out = 12, 10
    assert found[1] * (d_out if sites[0] == "mlp_out" else d_in + d_out) == found[0] * d_in


def test_targets_are_computed_on_the_device_that_asks_for_them(accelerator, twin, tmp_path):
    store = recomputed(tmp_path / "store")
    expected = batches(twin, "train", 32, stop=320)
    for one, other in zip(batches(store, "train", 32, stop=320, device=accelerator), expected, strict=True):
        assert str(one.target.device).startswith(accelerator.partition(":")[0])
        torch.testing.assert_close(one.target.cpu(), other.target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sites", [("resid_mid", "mlp_out"), ("mlp_out", "mlp_out"), ("mlp_out", "resid_mid"), ("resid_mid", "resid_mid")]
)
def test_any_pair_of_sites_is_served(sites, twin, tmp_path):
    options = {"sites": sites, "view": "raw", "stop": 320}
    found = list(batches(recomputed(tmp_path / "store"), "train", 32, **options))
    for one, other in zip(found, batches(twin, "train", 32, **options), strict=True):
        torch.testing.assert_close(one.source, other.source, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.target, other.target, rtol=1e-5, atol=1e-5)


def test_arrays_and_rows_are_those_of_the_store_that_holds_them(twin, tmp_path):
    store = recomputed(tmp_path / "store")
    assert not store.recomputes("resid_mid")
    assert store.recomputes("mlp_out")
    for shard, other in zip(store.manifest.shards, twin.manifest.shards, strict=True):
        torch.testing.assert_close(store.array(shard, "mlp_out"), twin.array(other, "mlp_out"), rtol=1e-5, atol=1e-5)
        index = torch.tensor([[3, 1], [0, 9]])
        found = store.rows(shard, "mlp_out", index)
        assert found.shape == (2, 2, 10)
        torch.testing.assert_close(found, twin.rows(other, "mlp_out", index), rtol=1e-5, atol=1e-5)


def test_a_source_may_be_read_beside_another_layer_s_recomputed_target(twin, tmp_path):
    other = recomputed(tmp_path / "layer2", layer=2)
    assert other.manifest.recipe.stream == twin.manifest.recipe.stream
    found = batches(paired(twin, other), "train", 32, stop=640)
    assert_same_batches(found, batches(twin, "train", 32, stop=640))


def test_following_serves_the_rows_of_the_store_that_holds_them(twin, tmp_path):
    store = recomputed(tmp_path / "store")
    options = {"view": "rms", "sites": ("resid_mid", "mlp_out"), "device": torch.device("cpu"), "wait": pytest.fail}
    found, expected = (follow(Ledger(each.directory), 32, cursor=64, stop=640, **options) for each in (store, twin))
    assert_same_batches(found, expected)


def test_shards_are_half_as_large_and_statistics_are_those_of_the_true_rows(tmp_path):
    sizes = {"mlp": make_mlp(), "shard_sequences": 512}
    stored, halved = make_store(tmp_path / "a", **sizes), make_store(tmp_path / "b", targets="recomputed", **sizes)
    assert halved.manifest.statistics == stored.manifest.statistics
    assert halved.manifest.widths == stored.manifest.widths
    for shard, other in zip(halved.manifest.shards, stored.manifest.shards, strict=True):
        proof = min(64, shard.kept) * 10 * 2
        assert other.bytes - shard.bytes == pytest.approx(shard.rows * 10 * 2 - proof, abs=256)
        assert "mlp_out" not in halved.places(shard)
    assert (stored.manifest.format_version, halved.manifest.format_version) == (4, 4)
    assert halved.fingerprint != stored.fingerprint


def test_each_shard_proves_its_rows_and_the_figure_is_what_numpy_makes_of_them(tmp_path):
    store = make_store(tmp_path, mlp=make_mlp(), targets="recomputed")
    mlp = make_mlp()
    for number, shard in enumerate(store.manifest.shards):
        resid, true = (array.float().numpy().astype(np.float64) for array in store.proof(shard))
        assert len(true) == min(64, shard.kept)
        rows = make_rows(number, make_recipe())
        order = store.array(shard, "token_index").long()[: len(true)]
        expected = mlp(rows.sites["resid_mid"].bfloat16())[order]
        assert torch.equal(store.array(shard, PROOF), expected.bfloat16())
        x = resid / np.sqrt((resid**2).mean(1, keepdims=True) + 1e-6) * mlp.norm.gain.numpy()
        weights = {name: array.double().numpy() for name, array in mlp.weights.items()}
        gate = x @ weights["W_gate"].T + weights["b_gate"]
        gate = gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2
        out = (gate * (x @ weights["W_up"].T + weights["b_up"])) @ weights["W_down"].T + weights["b_down"]
        assert mlp.post_norm is not None
        found = out / np.sqrt((out**2).mean(1, keepdims=True) + 1e-6) * mlp.post_norm.gain.numpy()
        figure = ((found - true) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()
        assert 1e-7 < figure < 1e-4  # bfloat16 rounds the true rows
        assert shard.recomputed_fvu == pytest.approx(figure, abs=2e-8)
        assert store.proven_fvu(shard) == shard.recomputed_fvu


def test_fvu_is_about_the_mean_and_about_zero_of_a_single_row():
    true = torch.tensor([[1.0], [3.0]])
    assert fvu(torch.tensor([[1.0], [4.0]]), true) == pytest.approx(1 / 2)
    assert fvu(torch.tensor([[3.0]]), torch.tensor([[2.0]])) == pytest.approx(1 / 4)
    assert fvu(torch.zeros(2, 1), torch.zeros(2, 1)) == 0
    assert fvu(torch.ones(2, 1), torch.zeros(2, 1)) == float("inf")


def test_a_shard_that_the_mlp_does_not_give_back_is_refused_and_not_written(tmp_path):
    wrong = make_mlp()
    wrong = replace(wrong, W_down=wrong.W_down * 1.0 + 0.05)
    recipe = make_recipe(targets="recomputed")
    rows = make_rows(0, recipe)
    rows.sites["mlp_out"] = make_mlp()(rows.sites["resid_mid"])
    with (
        StoreWriter(tmp_path, recipe, make_norm(), mlp=wrong) as writer,
        pytest.raises(
            Refused, match=r"mlp_out of shard 0 cannot be recomputed.*FVU .* is 0\.\d+, the limit 0\.0003; harvest"
        ),
    ):
        writer.append(rows)
    assert not list(tmp_path.glob("shard-*"))


def test_an_mlp_is_added_to_a_store_without_one_if_it_gives_back_its_rows(tmp_path):
    whole = make_store(tmp_path / "whole", mlp=make_mlp())
    recipe = make_recipe()
    with StoreWriter(tmp_path / "later", recipe, make_norm()) as writer:
        for number in range(4):
            rows = make_rows(number, recipe)
            rows.sites["mlp_out"] = make_mlp()(rows.sites["resid_mid"].bfloat16())
            writer.append(rows)
    wrong = replace(make_mlp(), b_down=torch.ones(10) * 9)
    with pytest.raises(Refused, match=r"shard-00003\.safetensors cannot be recomputed from its MLP"):
        StoreWriter(tmp_path / "later", recipe, make_norm(), mlp=wrong)
    assert open_store(tmp_path / "later").mlp is None
    make_store(tmp_path / "later", mlp=make_mlp())
    names = ("manifest.json", MLP_FILE)
    assert all((tmp_path / "later" / name).read_bytes() == (whole.directory / name).read_bytes() for name in names)


@pytest.mark.parametrize("damage", ["cut", "changed", "lost"])
def test_a_damaged_mlp_is_named_by_readers_and_by_verify(damage, tmp_path):
    store = recomputed(tmp_path)
    path = tmp_path / MLP_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "cut":
        os.truncate(path, 40)
    elif damage == "changed":
        path.write_bytes(content)
    else:
        path.unlink()
    del store
    for reading in (lambda: next(batches(open_store(tmp_path), "train", 8)), lambda: verify(VerifyConfig(store=tmp_path))):
        with pytest.raises(Damaged, match=rf"{MLP_FILE} (is|has) .*make repair"):
            reading()


def test_verify_says_how_near_the_recomputed_rows_are(tmp_path):
    recomputed(tmp_path / "a")
    assert "; the MLP gives back their true rows to an FVU of 0" in verify(VerifyConfig(store=tmp_path / "a"))
    make_store(tmp_path / "b")
    assert "MLP" not in verify(VerifyConfig(store=tmp_path / "b"))


def test_bfloat16_is_near_and_not_float32(tmp_path):
    store = recomputed(tmp_path)
    exact = next(batches(store, "train", 512, shuffle=False)).target
    rounded = next(batches(store, "train", 512, shuffle=False, target_dtype=torch.bfloat16)).target
    assert 1e-7 < fvu(rounded, exact) < 1e-3


def test_a_store_that_is_continued_has_the_bytes_of_one_that_was_not(tmp_path):
    recomputed(tmp_path / "cut", n_shards=2)
    recomputed(tmp_path / "cut", n_shards=4)
    recomputed(tmp_path / "whole", n_shards=4)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_stores_of_earlier_versions_keep_their_format_and_fingerprint(tmp_path):
    store = make_store(tmp_path)
    assert store.manifest.format_version == 1
    assert "mlp" not in (tmp_path / "manifest.json").read_text().replace("mlp_out", "")
    assert load_manifest(tmp_path).mlp is None
    assert store.mlp is None


def test_every_activation_is_that_of_torch():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    by_hand = {
        "relu": x.clamp_min(0),
        "silu": x / (1 + torch.exp(-x)),
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2,
        "gelu_tanh": x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    }
    assert by_hand.keys() == ACTIVATIONS.keys()
    for name, expected in by_hand.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), expected)
