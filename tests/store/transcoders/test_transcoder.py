"""The artefact: its forward, thresholds, prefixes, files, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from store.transcoders.transcoder import Transcoder, TranscoderConfig
from tests.making import make_store
from tests.store.transcoders.making import make_transcoder


def numpy_forward(t: Transcoder, x: np.ndarray) -> np.ndarray:
    a = {name: array.numpy().astype(np.float64) for name, array in t.arrays().items()}
    pre = x @ a["W_enc"] + a["b_enc"]
    latents = np.maximum(pre, 0) * (pre > a["threshold"])
    return latents @ a["W_dec"] + a["b_dec"] + (x @ a["W_skip"].T if "W_skip" in a else 0)


@pytest.mark.parametrize("skip", [False, True])
def test_forward_equals_numpy(skip):
    t, x = make_transcoder(skip=skip), torch.randn(7, 6)
    np.testing.assert_allclose(t(x).numpy(), numpy_forward(t, x.numpy().astype(np.float64)), rtol=1e-4, atol=1e-5)


def test_threshold_by_hand():
    config = TranscoderConfig(
        name="t",
        architecture="test",
        model="m",
        layer=0,
        view="raw",
        d_in=1,
        d_sae=3,
        d_out=1,
        k=None,
        prefix_sizes=(3,),
    )
    one = torch.ones(1, 3)
    t = Transcoder(config, one, torch.tensor([0.0, 1.0, -9.0]), one.T.contiguous(), torch.zeros(1), torch.full((3,), 2.0))
    assert t.encode(torch.tensor([[1.5], [2.0]])).tolist() == [[0.0, 2.5, 0.0], [0.0, 3.0, 0.0]]


def test_topk_keeps_the_k_largest_positive_ones_of_each_row():
    t, x = make_transcoder(activation="topk", k=2), torch.randn(7, 6)
    pre = x @ t.W_enc + t.b_enc
    for row, latents in zip(pre, t.encode(x), strict=True):
        expected = torch.zeros(10)
        for index in row.argsort(descending=True)[:2]:
            expected[index] = row[index].clamp_min(0)
        torch.testing.assert_close(latents, expected)


def test_saved_and_loaded_is_the_same(tmp_path):
    t = make_transcoder(skip=True)
    t.save(tmp_path)
    again = Transcoder.load(tmp_path)
    assert again.config == t.config
    assert all(torch.equal(array, again.arrays()[name]) for name, array in t.arrays().items())


def test_a_transcoder_is_shown_without_its_numbers():
    shown = repr(make_transcoder())
    assert "6 -> 10 latents -> " in shown
    assert len(shown) < 200


def test_a_prefix_is_a_transcoder_of_the_first_latents():
    t, x = make_transcoder(), torch.randn(7, 6)
    cut = t.prefix(5)
    latents = t.encode(x)[:, :5]
    torch.testing.assert_close(cut(x), latents @ t.W_dec[:5] + t.b_dec)
    assert cut.config.prefix_sizes == (2, 5)
    with pytest.raises(ValueError, match=r"4 is not a prefix .* \[2, 5, 10\]"):
        t.prefix(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_sizes": (2, 9)}, "prefix_sizes end at 9, but d_sae is 10"),
        ({"prefix_sizes": (5, 2, 10)}, "must be positive and increasing"),
        ({"k": 11}, "k is 11, but the dictionary has 10 latents"),
        ({"d_in": 7}, None),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    good = make_transcoder()
    with pytest.raises(ValueError, match=message or r"W_enc has shape \[6, 10\]"):
        Transcoder(good.config.model_copy(update=changes), **good.arrays())


def test_an_array_of_another_shape_is_named_with_its_place_and_the_cure():
    good = make_transcoder()
    config = good.config.model_copy(update={"d_in": 7, "source": "their/folder"})
    expected = (
        r"W_enc has shape \[6, 10\] where \[7, 10\] belongs; the arrays in their/folder are of another size, transposed, "
        "or have a dimension of 1 too many; write them as"
    )
    with pytest.raises(ValueError, match=expected):
        Transcoder(config, **good.arrays())


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unknown_keys_are_refused(change, tmp_path):
    make_transcoder().save(tmp_path)
    arrays = load_file(tmp_path / "transcoder.safetensors")
    if change == "missing":
        del arrays["threshold"]
    else:
        arrays["extra"] = torch.zeros(1)
    save_file(arrays, tmp_path / "transcoder.safetensors")
    with pytest.raises(ValueError, match=r"missing keys \['threshold'\]|unknown keys \['extra'\]"):
        Transcoder.load(tmp_path)


def test_unknown_config_field_and_damaged_weights_are_refused(tmp_path):
    make_transcoder().save(tmp_path)
    content = (tmp_path / "transcoder.safetensors").read_bytes()
    (tmp_path / "transcoder.safetensors").write_bytes(content[:50])
    with pytest.raises(ValueError, match="is damaged"):
        Transcoder.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"temperature": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="temperature"):
        Transcoder.load(tmp_path)


def test_an_empty_folder_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        Transcoder.load(tmp_path)


@pytest.mark.parametrize("name", ["W_enc", "threshold", "W_dec"])
def test_nan_is_refused(tmp_path, name):
    """In W_enc or threshold it would pass for a latent that never fires."""
    t = make_transcoder()
    getattr(t, name)[..., 3] = torch.nan
    t.save(tmp_path)
    with pytest.raises(ValueError, match=rf"\d+ of \d+ numbers of {name} are NaN; train or download it again"):
        Transcoder.load(tmp_path)


def test_what_lies_where_a_run_is_wanted_is_named_with_what_to_give(tmp_path):
    make_store(tmp_path / "store")
    for name in ("a", "b", "c", "d"):
        make_transcoder().save(tmp_path / "runs" / name)
    runs = tmp_path / "runs"
    for place, message in (
        (tmp_path / "store", "it is an activation store, which STORE= takes; give a run's folder"),
        (runs / "a/config.json", f"it is a file: give its folder, {runs / 'a'}"),
        (runs, f"it is the folder of {runs / 'a'}, {runs / 'b'}, {runs / 'c'} and 1 more: give one of these"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{place} holds no transcoder: config.json is missing; {message}")):
            Transcoder.load(place)
