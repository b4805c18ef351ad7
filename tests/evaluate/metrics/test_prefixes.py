"""Figures by prefix are the prefix's own: a dense float64 computation of the cut transcoder gives the same."""

from dataclasses import replace

import pytest
import torch

from evaluate.metrics.results import ROW_METRICS, evaluate
from evaluate.metrics.semantics import semantics
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")
SIZES = (4, 9, 20)


@pytest.fixture(params=["threshold", "topk"])
def nested(request) -> Transcoder:
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=SIZES, k=6, activation=request.param, skip=True)
    return replace(t, b_enc=t.b_enc + 1)


def expected(t: Transcoder, store: Store) -> dict[str, float]:
    """FVU, L0 and dead latents in float64, from the rows on disk."""
    shards = store.manifest.of_split("heldout")
    resid = torch.cat([store.array(s, "resid_mid")[: s.kept] for s in shards])
    y = torch.cat([store.array(s, "mlp_out")[: s.kept] for s in shards]).double()
    x = t.view(resid, store.norm).double()
    pre = x @ t.W_enc.double() + t.b_enc.double()
    if t.config.activation == "topk":
        kth = pre.sort(dim=1, descending=True).values[:, t.config.k - 1 :][:, :1]
        latents = pre * (pre >= kth) * (pre > 0)
    else:
        latents = pre * (pre > t.threshold.double()) * (pre > 0)
    error = latents @ t.W_dec.double() + t.b_dec.double() + x @ t.W_skip.double().T - y
    return {
        "fvu": float(error.square().sum() / (y - y.mean(0)).square().sum()),
        "l0_mean": float((latents > 0).sum(1).double().mean()),
        "dead_features": int(((latents > 0).sum(0) == 0).sum()),
    }


def test_metrics_by_prefix_are_those_of_the_cut_transcoder(store, nested):
    [found] = evaluate([nested], store, "heldout", 64, CPU)
    for size in SIZES:
        by_hand = expected(nested.prefix(size), store)
        assert found.fvu_per_prefix[str(size)] == pytest.approx(by_hand["fvu"], rel=1e-5)
        assert found.l0_per_prefix[str(size)] == pytest.approx(by_hand["l0_mean"])
        figures = found.per_prefix[str(size)]
        assert {name: figures.value(name) for name in by_hand} == pytest.approx(by_hand, rel=1e-5)
        [alone] = evaluate([nested.prefix(size)], store, "heldout", 64, CPU)
        for name in (*ROW_METRICS, "dead_features", "density_median"):
            assert figures.value(name) == pytest.approx(alone.value(name), rel=1e-6), name


def test_semantics_by_prefix_are_those_of_the_cut_transcoder(store, nested):
    found = semantics(nested, store, CPU)
    assert list(found) == [str(size) for size in SIZES]
    for size in SIZES:
        alone = semantics(nested.prefix(size), store, CPU)[str(size)]
        assert found[str(size)].as_json() == pytest.approx(alone.as_json())
