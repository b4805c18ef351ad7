"""Every prefix, run sparsely, against the transcoder cut to that prefix and run densely in float64."""

from dataclasses import replace

import pytest
import torch

from store.transcoders.forward import Forward
from store.transcoders.layouts import load_folder
from store.transcoders.transcoder import Transcoder
from tests.making import make_norm
from tests.store.transcoders.making import LEGACY_WIDTH, make_transcoder, write_legacy

KINDS = ("threshold", "topk", "topk without k", "legacy")


def made(kind: str, skip: bool, tmp_path) -> Transcoder:
    if kind == "legacy":  # standardises its input, and undoes that in its output
        return load_folder(write_legacy(tmp_path, input_unit_norm=True), 8, "google/gemma-2-2b")
    t = make_transcoder(skip=skip, activation=kind.split()[0], k=None if kind.endswith("without k") else 3)
    return replace(t, b_enc=t.b_enc + 1)


def wide(t: Transcoder) -> Transcoder:
    return replace(t, **{name: array.double() for name, array in t.arrays().items()})


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_is_what_the_cut_transcoder_is(kind, skip, tmp_path):
    if kind == "legacy" and skip:
        pytest.skip("earlier code had no skip connection")
    t = made(kind, skip, tmp_path)
    x = torch.randn(40, LEGACY_WIDTH if kind == "legacy" else 6)
    if kind == "legacy":
        x = t.view(x, make_norm(LEGACY_WIDTH))
    forward = Forward(t)
    found = forward.prefixes(forward.entries(x), x)
    for index, size in enumerate(t.config.prefix_sizes):
        cut = wide(t.prefix(size))
        latents = cut.encode(x.double())
        torch.testing.assert_close(found.recon[index].double(), cut.decode(latents, x.double()), rtol=1e-4, atol=1e-4)
        assert found.l0[index].tolist() == (latents > 0).sum(1).tolist()
        assert found.fired[index, :size].tolist() == (latents > 0).sum(0).tolist()


def test_topk_fills_a_short_prefix_from_its_own_latents():
    """By hand: the two largest of (1, 2, 3, 4) are the last two, of the prefix (1, 2) its own."""
    t = make_transcoder(d_in=1, d_sae=4, d_out=1, prefix_sizes=(2, 4), k=2, activation="topk")
    t = replace(
        t,
        W_enc=torch.zeros(1, 4),
        b_enc=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        W_dec=torch.tensor([[1.0], [10.0], [100.0], [1000.0]]),
        b_dec=torch.zeros(1),
    )
    forward, x = Forward(t), torch.zeros(1, 1)
    found = forward.prefixes(forward.entries(x), x)
    assert found.recon.flatten().tolist() == [21.0, 4300.0]
    assert found.l0.flatten().tolist() == [2, 2]
    assert found.fired.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
