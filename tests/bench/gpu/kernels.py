"""Each kernel beside what it replaces, on entries as uneven as a trained dictionary's; and the dense alternative."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from store.sparse.fixed import scan_largest, scan_to
from store.sparse.scan import Bags, Entries, cut_into_bags, pre_activations, sums_by_latent
from store.sparse.switch import kernels_for
from tests.bench.gpu.bench import Bench, Table, using
from train.step.sparse import decode_nested, weight_gradients

DENSEST = 0.9
"""Share of the rows on which the most frequent latent fires."""
POWER = 0.7
"""Latents fire in proportion to rank ** -POWER."""


@dataclass(frozen=True)
class Problem:
    """One step's inputs and entries."""

    x: Tensor
    target: Tensor
    encoder: Tensor
    decoder: Tensor
    b_enc: Tensor
    b_dec: Tensor
    entries: Entries
    group_of: Tensor
    bags: Bags
    groups: int


def problem(bench: Bench) -> Problem:
    """Entries whose latents fire as unevenly as a trained dictionary's: rank ** -0.7, the densest on 90% of the rows."""
    s, device = bench.sizes, bench.device
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    share = torch.arange(10, s.d_sae + 10, device=device, dtype=torch.float32) ** -POWER
    rate = (share / share.sum() * s.k).clamp_max(DENSEST)
    rate = (rate * s.k / rate.sum()).clamp_max(DENSEST)
    fires = torch.rand(s.d_sae, s.batch, device=device, generator=generator) < rate[:, None]
    latent, row = fires.nonzero().unbind(1)
    entries = Entries(torch.rand(len(row), device=device, generator=generator) + 1, row.contiguous(), latent.contiguous())
    sizes = torch.tensor(s.prefixes, device=device)
    group_of = torch.bucketize(torch.arange(s.d_sae, device=device), sizes, right=True)
    bags = cut_into_bags(entries, group_of, len(s.prefixes), s.batch)
    unit = torch.nn.functional.normalize
    return Problem(
        x=randn(s.batch, s.d),
        target=randn(s.batch, s.d),
        encoder=unit(randn(s.d_sae, s.d), dim=1),
        decoder=unit(randn(s.d_sae, s.d), dim=1),
        b_enc=torch.zeros(s.d_sae, device=device),
        b_dec=torch.zeros(s.d, device=device),
        entries=entries,
        group_of=group_of,
        bags=bags,
        groups=len(s.prefixes),
    )


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, over the whole tensor."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


@torch.no_grad()
def kernels(bench: Bench) -> Table:
    """Milliseconds of every pass by each kind of kernels, and how far each is from the first kind."""
    p = problem(bench)
    n = len(p.entries)
    dense = torch.addmm(p.b_enc, p.x, p.encoder.T)
    cutoff = 0.95 * dense.flatten()[:: max(1, dense.numel() // 2**20)].kthvalue(_rank(bench, dense)).values
    del dense
    room = min(int(1.5 * n), bench.sizes.batch * bench.sizes.d_sae)
    decoded = decode_nested(p.entries, p.entries.value, p.bags, p.decoder, p.b_dec, p.target, False)
    pre = torch.randn(n, device=bench.device)

    def gradients() -> Tensor:
        found = weight_gradients(p.entries, p.entries.value, p.bags, decoded.grad_bags, pre, None, p.x, len(p.encoder))
        return torch.cat([found.encoder.flatten(), found.decoder.flatten(), found.b_enc])

    def decode() -> Tensor:
        found = decode_nested(p.entries, p.entries.value, p.bags, p.decoder, p.b_dec, p.target, True)
        return torch.cat([found.grad_bags.flatten(), found.grad_latent])

    scores = p.encoder.bfloat16() @ p.x.bfloat16().T
    limit = (cutoff - p.b_enc).bfloat16()

    def candidates() -> Tensor:
        if kernels_for(p.x) != "triton":
            return torch.nonzero_static((scores > limit[:, None]).view(-1), size=room, fill_value=0).squeeze(1)
        from store.sparse.triton_search import list_above

        value = p.x.new_zeros(room)
        row, latent = (torch.zeros(room, dtype=torch.int64, device=value.device) for _ in range(2))
        end = torch.zeros_like(row[:1])
        list_above(scores, limit, p.b_enc, 0, end, (value, row, latent))
        return latent * len(p.x) + row

    work = {
        "candidates from scores": candidates,
        "search: scores, candidates, float32 values": lambda: (
            scan_to(p.x, p.encoder, p.b_enc, cutoff, "bfloat16", room).value
        ),
        "search and selection": lambda: scan_largest(p.x, p.encoder, p.b_enc, cutoff, "bfloat16", room, n)[0].value,
        "float32 values of n entries": lambda: pre_activations(p.x, p.encoder, p.b_enc, p.entries.row, p.entries.latent),
        "selection alone": lambda: p.entries.largest(n - n // 100).value,
        "bags": lambda: cut_into_bags(p.entries, p.group_of, p.groups, len(p.x)).order,
        "decode, errors, their gradients": decode,
        "gradients of the weights": gradients,
        "sums by latent": lambda: sums_by_latent(p.entries.latent, pre, len(p.encoder)),
    }
    rows = []
    for name, function in work.items():
        first = None
        for kind in bench.kernels():
            with using(kind):
                found = function()
                first = found if first is None else first
                rows.append((name, kind, 1e3 * bench.kernel_seconds(function), error(found, first)))
    low = (p.encoder.bfloat16(), p.x.bfloat16())
    rows.append(("scores in bfloat16 (cuBLAS)", "-", 1e3 * bench.kernel_seconds(lambda: low[0] @ low[1].T), 0.0))
    densest = int(torch.bincount(p.entries.latent).max())
    return Table(("pass", "kernels", "ms", "differs by"), rows, f"{n} entries, at most {densest} of one latent.")


@torch.no_grad()
def tuning(bench: Bench) -> Table:
    """Milliseconds of Triton's kernels with other tiles than they have."""
    columns = ("tile: entries, columns", "decode ms", "gradients ms", "float32 values ms")
    if "triton" not in bench.kernels():
        return Table(columns, [], "Triton's kernels are not timed here.")
    from store.sparse import triton_jit, triton_search
    from train.step import triton_decode, triton_gradients

    p = problem(bench)
    values = p.entries.value
    grad_bags = decode_nested(p.entries, values, p.bags, p.decoder, p.b_dec, p.target, False).grad_bags
    work = (
        lambda: decode_nested(p.entries, values, p.bags, p.decoder, p.b_dec, p.target, False),
        lambda: weight_gradients(p.entries, values, p.bags, grad_bags, values, None, p.x, len(p.encoder)),
        lambda: pre_activations(p.x, p.encoder, p.b_enc, p.entries.row, p.entries.latent),
    )
    rows = []
    for entries, width in itertools.product((8, 16, 32), (128, 256)):
        triton_jit.COLUMNS = width
        triton_decode.ENTRIES = triton_gradients.ENTRIES = triton_search.PAIRS = entries
        rows.append((f"{entries}, {width}", *(1e3 * bench.kernel_seconds(each) for each in work)))
    return Table(columns, rows)


def _rank(bench: Bench, dense: Tensor) -> int:
    """Rank, in a sample of the pre-activations, of the k * rows largest."""
    sample = len(range(0, dense.numel(), max(1, dense.numel() // 2**20)))
    return sample - int(sample * bench.sizes.k / bench.sizes.d_sae)


@torch.no_grad()
def dense(bench: Bench) -> Table:
    """The alternative without lists: latents as a dense matrix, a product for each group of a prefix. Its operands are in
    bfloat16 on a GPU, its sums in float32."""
    p = problem(bench)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    place = (p.entries.row, p.entries.latent)
    bounds = [0, *bench.sizes.prefixes]
    slices = [slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
    decoder = p.decoder.to(dtype)
    x = p.x.to(dtype)
    values = p.entries.value.to(dtype)
    by_latent = torch.zeros(len(p.x), len(decoder), device=bench.device, dtype=dtype)
    latents = torch.zeros_like(by_latent)

    def fill() -> None:
        latents.zero_()
        latents.index_put_(place, values)

    def decode() -> list[Tensor]:
        error = p.b_dec - p.target
        errors = []
        for group in slices:
            error = error + (latents[:, group] @ decoder[group]).float()
            errors.append(error)
        for number in range(len(errors) - 2, -1, -1):
            errors[number] = errors[number] + errors[number + 1]
        return [each.to(dtype) for each in errors]

    def gradient_of_latents() -> None:
        for group, each in zip(slices, errors, strict=True):
            torch.mm(each, decoder[group].T, out=by_latent[:, group])
        by_latent.mul_(latents != 0)

    def gradients() -> tuple[Tensor, Tensor]:
        of_decoder = torch.cat([latents[:, group].T @ each for group, each in zip(slices, errors, strict=True)])
        return by_latent.T @ x, of_decoder

    fill()
    errors = decode()
    work = {
        "latents into a matrix": fill,
        "decode, errors": decode,
        "gradient of the latents, masked": gradient_of_latents,
        "gradients of the weights": gradients,
    }
    rows = [(name, 1e3 * bench.kernel_seconds(function)) for name, function in work.items()]
    rows.append(("sum", sum(row[1] for row in rows)))
    sparse = decode_nested(p.entries, p.entries.value, p.bags, p.decoder, p.b_dec, p.target, False)
    off = error(torch.cat(errors), sparse.grad_bags)
    return Table(("dense alternative", "ms"), rows, f"Gradients by bags differ from the lists' by {off:.1e}.")
