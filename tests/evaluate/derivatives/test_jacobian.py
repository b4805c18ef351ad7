"""Jacobian agreement: by hand, and against dense float64 Jacobians by torch.func.jacrev."""

from dataclasses import replace

import pytest
import torch
from torch.func import jacrev

from evaluate.compare.sections import add_latents
from evaluate.derivatives.jacobian import active, along_latents, answer, as_long_as, compared, jacobian_agreement
from evaluate.metrics.accumulate import measure_rows
from evaluate.metrics.results import ByDocument, measurement_of
from store.mlp.forward import Mlp
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import Norm
from tests.making import make_mlp, make_norm, make_store
from tests.store.transcoders.making import make_transcoder

CPU = torch.device("cpu")
NO_NORM = Norm(kind="none", eps=0.0, gain=torch.ones(2))


def by_hand() -> Transcoder:
    """Reads resid_mid as it is; latent 0 reads and writes the first dimension, latent 1 the second, twice as strongly."""
    config = TranscoderConfig(
        name="t",
        architecture="t",
        model="m",
        layer=1,
        view="raw",
        d_in=2,
        d_sae=2,
        d_out=2,
        k=1,
        prefix_sizes=(1, 2),
        store_fingerprint=None,
    )
    return Transcoder(
        config,
        W_enc=torch.eye(2),
        b_enc=torch.zeros(2),
        W_dec=torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        b_dec=torch.zeros(2),
        threshold=torch.zeros(2),
    )


def test_a_transcoder_answers_by_its_active_latents_alone():
    t = by_hand()
    resid = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    on = active(t, NO_NORM, resid)
    assert on.tolist() == [[True, True], [True, False]]
    v = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert answer(t, NO_NORM, resid, v, on).tolist() == [[1.0, 2.0], [1.0, 0.0]]


def test_the_figure_is_what_hand_sums_are():
    """The MLP answers (1, 1) and (1, 0), the transcoder (1, 2) and (1, 0): errors 1 and 0 of sizes 2 and 1."""
    true = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    found = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    sums = compared(found, true, torch.tensor([True, True]))
    assert (sums.error.tolist(), sums.size.tolist(), sums.rows.tolist()) == ([1.0, 0.0], [2.0, 1.0], [1.0, 1.0])
    assert sums.cosine.tolist() == pytest.approx([3 / 10**0.5, 1.0])
    left_out = compared(found, true, torch.tensor([False, True]))
    assert (left_out.error.tolist(), left_out.size.tolist(), left_out.rows.tolist()) == ([0.0, 0.0], [0.0, 1.0], [0.0, 1.0])


def test_a_direction_is_a_drawn_active_latent_s_and_none_where_nothing_is_active():
    t = by_hand()
    resid = torch.tensor([[3.0, 4.0], [3.0, 4.0], [-1.0, 4.0], [-1.0, -1.0]])
    v = along_latents(t, NO_NORM, resid, active(t, NO_NORM, resid), torch.tensor([0.1, 0.9, 0.99, 0.5]))
    assert v.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    assert as_long_as(resid, v).norm(dim=1).tolist() == pytest.approx([5.0, 5.0, 17**0.5, 0.0])


def float64_mlp(mlp: Mlp, resid: torch.Tensor) -> torch.Tensor:
    """One row, written again in float64."""
    w = {name: array.double() for name, array in mlp.weights.items()}
    assert mlp.post_norm is not None
    x = resid * torch.rsqrt(resid.square().mean() + mlp.norm.eps) * mlp.norm.gain.double()
    gate, up = w["W_gate"] @ x + w["b_gate"], w["W_up"] @ x + w["b_up"]
    gate = gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) / 2
    out = w["W_down"] @ (gate * up) + w["b_down"]
    return out * torch.rsqrt(out.square().mean() + mlp.post_norm.eps) * mlp.post_norm.gain.double()


def float64_view(view: str, resid: torch.Tensor) -> torch.Tensor:
    if view == "raw":
        return resid
    x = resid * torch.rsqrt(resid.square().mean() + 1e-6)
    return x * make_norm().gain.double() if view == "normed" else x


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(tmp_path, 4, mlp=make_mlp(), targets="recomputed", dtype="float32", shard_sequences=32)


@pytest.mark.parametrize(
    ("view", "activation"),
    [
        *(("raw", "topk"), ("rms", "threshold"), ("normed", "topk")),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("raw", "threshold"), ("rms", "topk"), ("normed", "threshold"))
        ),
    ],
)
def test_figures_equal_dense_float64_jacobians(store, view, activation):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 9, 20), skip=view == "rms", view=view)
    t = replace(t, config=t.config.model_copy(update={"activation": activation}))
    found = jacobian_agreement(t, store, CPU)
    assert list(found) == ["4", "9", "20"]
    [shard] = store.manifest.of_split("heldout")
    rows = store.array(shard, "resid_mid")[: shard.kept]
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(len(rows), generator=generator)
    random = torch.randn(rows.shape, generator=generator)
    of_mlp = [jacrev(lambda x: float64_mlp(make_mlp(), x))(r) for r in rows.double()]
    of_view = [jacrev(lambda x: float64_view(view, x))(r) for r in rows.double()]
    for size, agreement in found.items():
        prefix, sums = t.prefix(int(size)), torch.zeros(2, 4, dtype=torch.float64)
        on = active(prefix, store.norm, rows)
        for row, r in enumerate(rows.double()):
            J_m, J_v = of_mlp[row], of_view[row]
            W_enc, W_dec = prefix.W_enc.double(), prefix.W_dec.double()
            J_t = W_dec[on[row]].T @ W_enc[:, on[row]].T @ J_v
            if prefix.W_skip is not None:
                J_t = J_t + prefix.W_skip.double() @ J_v
            latents = on[row].nonzero().squeeze(1)
            directions = [None, random[row].double()]
            if len(latents):
                latent = latents[int(share[row] * len(latents))]
                directions[0] = W_enc[:, latent] @ J_v
            for kind, v in enumerate(directions):
                if v is not None:
                    v = v / v.norm() * r.norm()
                    one, other = J_t @ v, J_m @ v
                    sums[kind] += torch.stack(
                        [
                            (one - other).square().sum(),
                            other.square().sum(),
                            one @ other / one.norm() / other.norm(),
                            one.new_ones(()),
                        ]
                    )
        expected = {
            "jacobian_latents": 1 - sums[0, 0] / sums[0, 1],
            "jacobian_latents_cosine": sums[0, 2] / sums[0, 3],
            "jacobian_random": 1 - sums[1, 0] / sums[1, 1],
        }
        for key, value in expected.items():
            assert agreement.value(key) == pytest.approx(float(value), rel=1e-4)


def test_the_mlp_itself_written_as_a_transcoder_agrees_with_itself(tmp_path):
    """A plain relu MLP behind a norm is a transcoder whose latents are its neurons."""
    d = 12
    generator = torch.Generator().manual_seed(1)
    W_in, W_out = torch.randn(20, d, generator=generator), torch.randn(10, 20, generator=generator)
    mlp = Mlp(kind="plain", activation="relu", norm=make_norm(), post_norm=None, W_up=W_in, W_down=W_out)
    store = make_store(tmp_path, 4, mlp=mlp)
    t = make_transcoder(d_in=d, d_out=10, d_sae=20, prefix_sizes=(5, 20), view="normed")
    t = replace(t, W_enc=W_in.T, b_enc=torch.zeros(20), W_dec=W_out.T, threshold=torch.zeros(20))
    found = jacobian_agreement(t, store, CPU)["20"]
    for key in ("jacobian_latents", "jacobian_latents_cosine", "jacobian_random", "jacobian_random_cosine"):
        assert found.value(key) == pytest.approx(1, abs=1e-5)
    assert jacobian_agreement(t, store, CPU)["5"].value("jacobian_random") < 0.9


def test_what_has_no_mlp_of_its_own_is_not_measured(store, tmp_path):
    t = make_transcoder(d_in=12, d_out=10)
    assert jacobian_agreement(t, make_store(tmp_path / "without"), CPU) == {}
    assert jacobian_agreement(t, replace(store, target=store), CPU) == {}
    sae = replace(t, config=t.config.model_copy(update={"target_site": "resid_mid"}))
    assert jacobian_agreement(sae, store, CPU) == {}
    silent = replace(t, b_enc=torch.full((10,), -1e3))
    found = jacobian_agreement(silent, store, CPU)["10"]
    assert not found.has("jacobian_latents")
    assert found.value("jacobian_random") == pytest.approx(0)


def test_the_figures_stand_in_a_measurement_by_prefix_and_of_the_whole(store):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 20), view="rms")
    (accumulator,), facts = measure_rows([t], store, "heldout", 64, CPU)
    table = ByDocument.of([accumulator], facts)
    result = add_latents(measurement_of(accumulator, facts, store, "heldout", table, 0), t, store, CPU)
    expected = jacobian_agreement(t, store, CPU)
    assert result.jacobian_latents == expected["20"].jacobian_latents
    assert result.per_prefix["4"].jacobian_random_cosine == expected["4"].jacobian_random_cosine


def test_an_accelerator_measures_the_same(store, accelerator):
    t = make_transcoder(d_in=12, d_out=10, d_sae=20, prefix_sizes=(4, 20), skip=True)
    found, expected = (jacobian_agreement(t, store, torch.device(device)) for device in (accelerator, "cpu"))
    for size, agreement in expected.items():
        assert found[size].figures() == pytest.approx(agreement.figures(), rel=1e-4)
