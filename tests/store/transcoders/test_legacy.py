"""Checkpoints of the earlier code, against its equations written again."""

from pathlib import Path

import pytest
import torch

from store.transcoders.forward import Forward
from store.transcoders.legacy import load_legacy
from store.views import Norm
from tests.making import make_norm
from tests.store.transcoders.making import LEGACY_WIDTH, write_legacy


def their_forward(folder: Path, x: torch.Tensor, unit_norm: bool) -> torch.Tensor:
    state = {n: a.float() for n, a in torch.load(folder / "checkpoint.pt", weights_only=True).items()}
    mean, std = torch.zeros(1), torch.ones(1)
    if unit_norm:
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        x = (x - mean) / (std + 1e-5)
    acts = (x @ state["W_enc"] + state["b_enc"]).relu()
    acts = torch.where(acts > state["threshold"], acts, torch.zeros_like(acts))
    return (acts @ state["W_dec"] + state["b_dec"]) * std + mean


@pytest.mark.parametrize("unit_norm", [False, True])
def test_outputs_equal_the_earlier_code(tmp_path, unit_norm):
    folder, resid = write_legacy(tmp_path, input_unit_norm=unit_norm), torch.randn(9, LEGACY_WIDTH) * 30 + 5
    t = load_legacy(folder)
    x = t.view(resid, make_norm(LEGACY_WIDTH))
    expected = their_forward(folder, resid, unit_norm)
    torch.testing.assert_close(t(x), expected, rtol=1e-4, atol=1e-4)
    forward = Forward(t)
    torch.testing.assert_close(forward.prefixes(forward.entries(x), x)[0][-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [[4, 6, 10], "[4, 6, 10]", [4, 10, 20], "[4,10,20]"])
@pytest.mark.parametrize("key", ["prefix_sizes", "group_sizes"])
def test_both_notations_of_sizes_are_understood(tmp_path, key, sizes):
    folder = write_legacy(tmp_path, **({"prefix_sizes": None} | {key: sizes}))
    assert load_legacy(folder).config.prefix_sizes == (4, 10, 20)


def test_the_newer_folder_layout_is_found(tmp_path):
    config = load_legacy(write_legacy(tmp_path, "checkpoints/final.pt")).config
    assert (config.k, config.layer, config.view) == (4, 8, "raw")


class Payload:
    def __reduce__(self):
        return (print, ("this must never be run",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix_sizes": [4, 6, 11]}, "neither end at nor sum to the 20"),
        ({"prefix_sizes": "[]"}, "neither end at nor sum to the 20"),
        ({"prefix_sizes": "[4, 6"}, "neither end at nor sum to the 20"),
        ({"group_sizes": "four", "prefix_sizes": None}, "neither end at nor sum to the 20"),
        ({"target_hook_point": "blocks.9.hook_mlp_out"}, "mlp_out of the same layer"),
        ({"source_hook_point": "blocks.8.hook_resid_pre"}, "only from"),
        ({"state": {"W_enc": torch.zeros(2, 2)}}, "missing keys"),
        ({"state": Payload()}, "is no plain state dict"),
        ({"state": [1, 2]}, "is no plain state dict"),
    ],
)
def test_what_is_no_legacy_run_is_refused(tmp_path, capsys, changes, message):
    with pytest.raises(ValueError, match=message):
        load_legacy(write_legacy(tmp_path, **changes))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"), [("checkpoint.pt", "is no plain state dict"), ("config.json", "cannot be read|holds no")]
)
@pytest.mark.parametrize("junk", [b"junk", b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, name, message, junk):
    folder = write_legacy(tmp_path)
    (folder / name).write_bytes(junk)
    with pytest.raises(ValueError, match=f"{name} ({message})"):
        load_legacy(folder)


def test_the_normalised_hook_is_the_ungained_view(tmp_path):
    folder = write_legacy(tmp_path, source_hook_point="blocks.8.ln2.hook_normalized")
    t, resid = load_legacy(folder), torch.randn(3, LEGACY_WIDTH)
    norm = Norm(kind="rms", eps=1e-6, gain=torch.full((LEGACY_WIDTH,), 9.0))
    torch.testing.assert_close(t.view(resid, norm), resid * torch.rsqrt(resid.pow(2).mean(-1, keepdim=True) + 1e-6))
