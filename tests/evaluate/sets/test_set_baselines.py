"""What others put in the MLPs' place: a set of circuit-tracer's, a copy of a Gemma Scope repository, linear maps."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evaluate.compare import trivial
from evaluate.sets.command import compare_set
from evaluate.sets.layers import linear_maps, open_set
from evaluate.sets.result import SetResult, SetSide, read_set
from store.errors import Refused
from tests.evaluate.sets.making import CPU, D_SAE, LAYERS, Case, D, figures_by_hand, write_scope
from tests.store.transcoders.making import write_circuit_tracer

WAYS = {"recomputed": False, "frozen": True}


def sides_of(case: Case, **changes) -> tuple[SetResult, list[SetSide]]:
    result = read_set(compare_set(case.config(**changes)))
    assert result is not None
    return result, list(result.sides)


def assert_costs(
    case: Case, side: SetSide, predict: Callable[[int], Callable[[Tensor], Tensor]], least: float = 1e-4
) -> None:
    """Every figure of a side is that of plain transformers with the given rows in the MLPs' place.

    least: what every KL is above: something is replaced.
    """
    for way, frozen in WAYS.items():
        found = side.attention[way]
        for cost in (*found.from_bottom[1:], *found.from_top[1:], *found.alone):
            expected = figures_by_hand(case, cost.layers, frozen, predict)
            assert expected["kl"] > least
            for name in ("delta_ce", "kl", "top1"):
                assert getattr(cost, name).value == pytest.approx(expected[name], rel=1e-4, abs=1e-6), (cost.layers, name)


def test_a_set_of_circuit_tracers_is_measured_as_its_arrays_say(gemma, tmp_path):
    """Its transcoders read the normed stream, and have a skip connection."""
    folder = write_circuit_tracer(tmp_path / "their-set", LAYERS, d=D, d_sae=D_SAE, model_name=gemma.model.name)

    def predict(layer: int) -> Callable[[Tensor], Tensor]:
        arrays = load_file(folder / f"layer_{layer}.safetensors")
        norm = gemma.plain.model.layers[layer].pre_feedforward_layernorm

        def mlp_out(rows: Tensor) -> Tensor:
            x = norm(rows)
            pre = x @ arrays["W_enc"].T + arrays["b_enc"]
            latents = torch.where(pre > arrays["activation_function.threshold"], pre, 0.0)
            return latents @ arrays["W_dec"] + arrays["b_dec"] + x @ arrays["W_skip"].T

        return mlp_out

    _, [ours, theirs] = sides_of(gemma, baseline=folder, linear=False, name="circuit-tracer")
    assert (theirs.side, theirs.name) == ("baseline", "their-set (jumprelu)")
    assert [(member.layer, member.d_sae) for member in theirs.members] == [(0, D_SAE), (2, D_SAE)]
    assert_costs(gemma, theirs, predict)
    for way in WAYS:
        whole, other = ours.attention[way].whole, theirs.attention[way].whole
        assert other.minus_ours["kl"].value == pytest.approx(other.kl.value - whole.kl.value, rel=1e-6)


def test_of_a_copy_of_gemma_scope_each_layers_nearest_l0_is_taken(gemma, tmp_path):
    """The case's runs were made for an L0 of 3. Gemma Scope 1 reads the norm without its gain."""
    l0s = {0: (2, 9, 90), 2: (4, 8)}
    written = {layer: [write_scope(tmp_path / "scope", layer, l0) for l0 in each] for layer, each in l0s.items()}

    def predict(layer: int) -> Callable[[Tensor], Tensor]:
        arrays = written[layer][0]
        eps = gemma.plain.model.layers[layer].pre_feedforward_layernorm.eps

        def mlp_out(rows: Tensor) -> Tensor:
            x = rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt()
            pre = x @ arrays["W_enc"] + arrays["b_enc"]
            return torch.where(pre > arrays["threshold"], pre, 0.0) @ arrays["W_dec"] + arrays["b_dec"]

        return mlp_out

    _, [_, theirs] = sides_of(gemma, baseline=tmp_path / "scope", linear=False, name="scope")
    assert [member.source for member in theirs.members] == [
        str(tmp_path / f"scope/layer_{layer}/width_16k/average_l0_{l0s[layer][0]}") for layer in LAYERS
    ]
    assert theirs.name == "scope (jumprelu)"
    assert_costs(gemma, theirs, predict)


@pytest.mark.slow
def test_a_baseline_with_the_layer_in_its_path_that_is_ours_costs_exactly_the_same(gemma):
    baseline = gemma.folder / "layer{layer}" / "run"
    _, [ours, same] = sides_of(gemma, baseline=baseline, linear=False, name="same")
    assert same.name == "run (test)"
    for way in WAYS:
        pairs = zip(ours.attention[way].from_bottom[1:], same.attention[way].from_bottom[1:], strict=True)
        for mine, other in pairs:
            assert other.kl == mine.kl
            assert {found.value for found in other.minus_ours.values()} == {0.0}
        for mine, other in zip(ours.attention[way].growth, same.attention[way].growth, strict=True):
            assert other.error.value == pytest.approx(mine.error.value, rel=1e-12)  # columns are summed in another order
    _, [_, named] = sides_of(gemma, baseline=baseline, linear=False, baseline_name="theirs", name="same")
    assert named.name == "theirs"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: write_circuit_tracer(folder, (0,), d=D),
            "layer 2: .* has layers 0, but not 2; give LAYER= of one",
        ),
        (lambda folder: write_circuit_tracer(folder, LAYERS, d=D + 1), "17"),
        (lambda folder: write_scope(folder, 0, 3), "layer 2: .* holds no transcoder for layer 2, but 1 for others"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused_before_the_model_is_loaded(gemma, tmp_path, monkeypatch, make, message):
    monkeypatch.setattr("evaluate.sets.command.model_that_made", None)
    make(tmp_path / "theirs")
    with pytest.raises(Refused, match=message) as refused:
        compare_set(gemma.config(baseline=tmp_path / "theirs", name="unfit"))
    assert "\n" not in str(refused.value)
    assert not gemma.config(name="unfit").folder.exists()


def test_one_run_for_all_layers_is_no_baseline(gemma, monkeypatch):
    monkeypatch.setattr("evaluate.sets.command.model_that_made", None)
    with pytest.raises(Refused, match="layer"):
        compare_set(gemma.config(baseline=gemma.folder / "layer0" / "run", name="unfit"))


def normed(case: Case, layer: int, rows: np.ndarray) -> np.ndarray:
    """What the MLP reads, in float64: Gemma's norm has 1 + weight as its gain."""
    norm = case.plain.model.layers[layer].pre_feedforward_layernorm
    gain = 1 + norm.weight.detach().double().numpy()
    return rows / np.sqrt(np.square(rows).mean(1, keepdims=True) + norm.eps) * gain


def test_linear_maps_are_those_of_numpys_least_squares_on_all_training_rows(gemma, tmp_path, monkeypatch):
    monkeypatch.setattr(trivial, "ROWS_PER_INPUT", 10**6)
    maps = linear_maps(open_set(gemma.config()), tmp_path, CPU)
    maps_again = linear_maps(open_set(gemma.config()), tmp_path, CPU)
    solved = {}
    for layer, store in gemma.stores.items():
        train = store.manifest.of_split("train")
        x, y = (
            np.concatenate([store.array(shard, site)[: shard.kept].double().numpy() for shard in train])
            for site in ("resid_mid", "mlp_out")
        )
        with_one = np.concatenate([normed(gemma, layer, x), np.ones((len(x), 1))], axis=1)
        solved[layer] = np.linalg.lstsq(with_one, y, rcond=None)[0]
        fitted = maps.transcoders[layer]
        assert fitted.W_skip.double().numpy() == pytest.approx(solved[layer][:-1].T, rel=1e-4, abs=1e-6)
        assert fitted.b_dec.double().numpy() == pytest.approx(solved[layer][-1], rel=1e-4, abs=1e-6)
        assert torch.equal(maps_again.transcoders[layer].W_skip, fitted.W_skip)

    def predict(layer: int) -> Callable[[Tensor], Tensor]:
        def mlp_out(rows: Tensor) -> Tensor:
            x = normed(gemma, layer, rows.double().numpy())
            return torch.from_numpy(x @ solved[layer][:-1] + solved[layer][-1]).float()

        return mlp_out

    _, [_, linear] = sides_of(gemma, name="linear")
    assert_costs(gemma, linear, predict, least=1e-6)
