"""A step's sparse passes by every kind of kernels, against dense float64 matrices."""

from dataclasses import dataclass

import pytest
import torch

from store.sparse.scan import Bags, Entries, cut_into_bags, sums_by_latent
from tests.train.making import assert_close
from train.step.sparse import decode_nested, weight_gradients

SIZES = {
    "odd": (7, 21, 16, 37),
    "wider than a slice of columns": (3, 8, 300, 270),
    "one of each": (1, 1, 1, 1),
}
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@dataclass
class Problem:
    dense: torch.Tensor
    """Latents [rows, d_sae], zero where a row has no entry."""
    entries: Entries
    group_of: torch.Tensor
    bags: Bags
    x: torch.Tensor
    decoder: torch.Tensor
    b_dec: torch.Tensor
    target: torch.Tensor


def problem(sizes: tuple[int, int, int, int], groups: int) -> Problem:
    """Latents of every third row are all silent, latent 3 is silent, latent 0 fires on every other row."""
    rows, d_sae, d_in, d_out = sizes
    generator = torch.Generator().manual_seed(rows + groups)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    active = torch.rand(rows, d_sae, generator=generator) < 0.3
    active[:, 0] = True
    active[:, 3:4] = False
    active[1::3] = False
    latent, row = active.T.nonzero().unbind(1)
    entries = Entries(randn(len(row)), row, latent)
    dense = torch.zeros(rows, d_sae).index_put_((row, latent), entries.value)
    group_of = torch.randint(groups, (d_sae,), generator=generator).sort().values
    bags = cut_into_bags(entries, group_of, groups, rows)
    return Problem(dense, entries, group_of, bags, randn(rows, d_in), randn(d_sae, d_out), randn(d_out), randn(rows, d_out))


@every_size
@pytest.mark.parametrize("groups", [1, 3, 5])
@pytest.mark.parametrize(("weighted", "detached", "keep"), [(False, False, True), (True, False, False), (True, True, True)])
def test_decoding_equals_dense_float64_products(kernels, sizes, groups, weighted, detached, keep):
    p = problem(sizes, groups)
    weights = torch.linspace(0.5, 2, groups) if weighted else None
    found = decode_nested(
        p.entries, p.entries.value, p.bags, p.decoder, p.b_dec, p.target, keep, weights=weights, detached=detached
    )
    recon = (p.b_dec - p.target).double()
    errors = []
    for group in range(groups):
        inside = (p.group_of == group).double()
        recon = recon + (p.dense.double() * inside) @ p.decoder.double()
        errors.append(recon)
    errors = torch.stack(errors)
    assert_close(found.sse, errors.square().sum((1, 2)))
    by_group = errors if weights is None else errors * weights.double()[:, None, None]
    if not detached:
        by_group = by_group.flip(0).cumsum(0).flip(0)
    assert_close(found.grad_bags, by_group.flatten(0, 1))
    own = by_group[p.group_of[p.entries.latent], p.entries.row]
    assert_close(found.grad_latent, (own * p.decoder.double()[p.entries.latent]).sum(1))
    assert (found.residual is None) == (not keep)
    if found.residual is not None:
        assert_close(found.residual, errors[-1])


@every_size
@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("own_bias", [False, True])
def test_weight_gradients_equal_dense_float64_products(kernels, sizes, groups, own_bias):
    p = problem(sizes, groups)
    n, d_sae = len(p.entries), p.dense.shape[1]
    grad_pre, grad_bias = torch.randn(n), torch.randn(n)
    grad_bags = torch.randn(groups * len(p.x), p.decoder.shape[1])
    found = weight_gradients(
        p.entries, p.entries.value, p.bags, grad_bags, grad_pre, grad_bias if own_bias else None, p.x, d_sae
    )
    place = (p.entries.row, p.entries.latent)
    pre = torch.zeros_like(p.dense, dtype=torch.float64).index_put(place, grad_pre.double())
    bias = torch.zeros_like(pre).index_put(place, grad_bias.double())
    assert_close(found.encoder, pre.T @ p.x.double())
    assert_close(found.b_enc, (bias if own_bias else pre).sum(0))
    by_latent = grad_bags.double().view(groups, len(p.x), -1)[p.group_of].transpose(1, 2) @ p.dense.double().T[:, :, None]
    assert_close(found.decoder, by_latent.squeeze(2))


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
def test_the_gradient_of_a_frozen_matrix_is_left_out(kernels, frozen):
    p = problem((4, 6, 5, 3), 1)
    arguments = (p.entries, p.entries.value, p.bags, torch.randn(4, 3), p.entries.value, None, p.x, 6)
    whole, without = weight_gradients(*arguments), weight_gradients(*arguments, frozen={frozen})
    assert getattr(without, frozen) is None
    for name in {"encoder", "decoder", "b_enc"} - {frozen}:
        assert torch.equal(getattr(without, name), getattr(whole, name))


@every_size
def test_sums_by_latent_equal_dense_float64_sums(kernels, sizes):
    p = problem(sizes, 1)
    assert_close(sums_by_latent(p.entries.latent, p.entries.value, p.dense.shape[1]), p.dense.double().sum(0))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_batch_without_any_entry_has_no_gradients(kernels, groups):
    p = problem((4, 6, 5, 3), groups)
    none = p.entries.where(torch.zeros(len(p.entries), dtype=torch.bool))
    bags = cut_into_bags(none, p.group_of, groups, 4)
    decoded = decode_nested(none, none.value, bags, p.decoder, p.b_dec, p.target, keep_residual=True)
    torch.testing.assert_close(decoded.residual, p.b_dec - p.target)
    assert decoded.grad_latent.shape == (0,)
    found = weight_gradients(none, none.value, bags, decoded.grad_bags, none.value, None, p.x, 6)
    assert not any(part.any() for part in (found.encoder, found.b_enc, found.decoder))
    assert not sums_by_latent(none.latent, none.value, 6).any()


@pytest.mark.parametrize("groups", [1, 30, 120])
def test_bags_are_the_same_with_keys_of_two_or_four_bytes(groups):
    """300 rows: 120 groups are more bags than two bytes can number."""
    latent, row = (torch.rand(400, 300) < 0.1).nonzero().unbind(1)
    group_of = torch.randint(groups, (400,)).sort().values
    bags = cut_into_bags(Entries(torch.ones(len(row)), row, latent), group_of, groups, 300)
    key = group_of[latent] * 300 + row
    assert torch.equal(bags.bag, key)
    assert torch.equal(bags.order, torch.argsort(key, stable=True))
    assert torch.equal(bags.starts, torch.searchsorted(key.sort().values, torch.arange(groups * 300)))
