"""Products in 8-bit numbers, to find the few that are above a limit: x86 CPUs with AVX2, a third of the time of float32.

Rows and latents are rounded to whole numbers of a unit of their own; the error that this makes is known (roundings are
independent, so it is normal, unless a latent's weights are all of one size), and whatever is within `SIGMAS` of its
standard deviations of the limit is computed again in float32. Before that, inputs with large values are made smaller and
their weights larger (arXiv 2211.10438), as the few dimensions that dominate a residual stream would leave the others only
a few levels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj
from torch import Tensor

from store.sparse.kernels import LINE, compiled, in_parallel, listed, prefetch

SIGMAS = 4.0

ROW_LEVELS, LATENT_LEVELS = 63, 31
"""Rows lie in -63 ... 63 (stored 63 higher, without a sign), latents in -31 ... 31."""

LANE = 32
"""Inputs whose products are added up in 16 bits before they go on in 32."""

LANE_LEVELS = np.iinfo(np.int16).max // (2 * ROW_LEVELS) - LANE // 2
"""What the levels of a latent in a lane may add up to before they are rounded, so that 16 bits hold any row's sum."""

INPUTS = 2 * LANE

STEPS = INPUTS // 4

TILE_LATENTS, TILE_VECTORS = 4, 3

TILE_ROWS = 8 * TILE_VECTORS
"""A tile's sums fill the processor's 16 registers."""

BLOCK_LATENTS = 32
"""Latents whose sums with all rows stay in a core's cache."""

AHEAD = 2
"""Rows ahead of their use that are asked from memory."""

TINY, SMALLEST = 1e-30, 1e-12
"""What takes the place of a largest magnitude of 0, and of an input's share in the largest."""


def available() -> bool:
    """Whether this CPU has the instructions."""
    return torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}


@dataclass(frozen=True)
class Rows:
    """Rows in 8 bits: row = unit * level * factor, but for the rounding. Rows are padded to whole tiles."""

    levels: np.ndarray
    """int8, in the order in which `multiply_tile` reads them: tile of rows, step, row, four inputs."""
    factor: np.ndarray
    """[d_in] by which inputs were divided."""
    per_unit: np.ndarray
    """[rows] 1 / unit."""
    rounding: np.ndarray
    """[rows] squared norm of the levels / 12: the variance of a sum by the rounding of a latent's levels."""


def round_rows(x: Tensor) -> Rows:
    """float32 rows [rows, d_in] in 8 bits."""
    peak = x.abs().amax(0).clamp_min(TINY)
    factor = (peak / peak.max()).clamp_min(SMALLEST).sqrt().numpy()
    tiles, width = -(-len(x) // TILE_ROWS), -(-x.shape[1] // INPUTS) * INPUTS
    rows = Rows(np.empty(tiles * TILE_ROWS * width, np.int8), factor, *np.zeros((2, tiles * TILE_ROWS), np.float32))
    in_parallel(_round_rows, tiles, x.numpy(), 1 / factor, rows.levels, rows.per_unit, rows.rounding)
    return rows


def blocks(encoder: Tensor) -> int:
    """How many blocks of latents there are to search."""
    return -(-len(encoder) // BLOCK_LATENTS)


def above(first: int, last: int, x: Tensor, encoder: Tensor, limit: Tensor, rows: Rows) -> list[Tensor]:
    """Values, rows and latents of the products encoder @ x.T above their latent's limit, ordered by (latent, row), of the
    blocks `first` to `last`."""
    arrays = (tensor.numpy() for tensor in (x, encoder, limit))
    found = _search(first, last, *arrays, rows.levels, rows.factor, rows.per_unit, rows.rounding)
    value, place = (torch.from_numpy(column) for column in found)
    latent = place // len(x)
    return [value, place - latent * len(x), latent]


@compiled
def _search(first, last, x, encoder, limit, levels, factor, per_unit, rounding):
    """Values and places (latent * rows + row) of what is above the limit."""
    width, mean_rounding = len(levels) // len(per_unit), rounding[: len(x)].mean()
    packed = np.zeros(BLOCK_LATENTS * width, np.int8)
    unit, middle, variance = np.empty((3, BLOCK_LATENTS), np.float32)
    sums = np.empty((BLOCK_LATENTS, len(per_unit)), np.int32)
    marks, near = np.zeros(len(per_unit), np.uint8), np.empty(len(per_unit), np.int64)
    value, place, found = np.empty(0, np.float32), np.empty(0, np.int64), 0
    for base in range(first * BLOCK_LATENTS, min(last * BLOCK_LATENTS, len(encoder)), BLOCK_LATENTS):
        block = encoder[base : base + BLOCK_LATENTS]
        _round_latents(block, factor, packed, unit, middle, variance)
        _multiply(packed, levels, width, sums)
        room = found + len(block) * len(x)
        if room > len(value):
            value, place = _grown(value, found, 2 * room), _grown(place, found, 2 * room)
        for i in range(len(block)):
            its_limit = limit[base + i]
            _mark(sums[i, : len(x)], its_limit / unit[i], middle[i], variance[i], mean_rounding, per_unit, rounding, marks)
            first_place, rows = (base + i) * len(x), near[: listed(marks, near)]
            found += _compute(x, rows, block[i], its_limit, first_place, value[found:], place[found:])
    return value[:found].copy(), place[:found].copy()


@compiled
def _compute(x, near, weights, limit, first_place, value, place) -> int:
    """Lists the products of a latent with these rows that are above the limit, and their places; returns how many."""
    found = 0
    for h in range(len(near)):
        if h + AHEAD < len(near):
            for c in range(0, x.shape[1], LINE):
                prefetch(x, near[h + AHEAD], c)  # type: ignore[call-arg]  # numba gives the context
        there, total = x[near[h]], np.float32(0)
        for c in range(x.shape[1]):
            total += there[c] * weights[c]
        if total > limit:
            value[found], place[found] = total, first_place + near[h]
            found += 1
    return found


@compiled
def _grown(column, filled, room):
    wider = np.empty(room, column.dtype)
    for i in range(filled):  # a slice would take three seconds more to compile
        wider[i] = column[i]
    return wider


@compiled
def _mark(sums, limit, middle, variance, mean_rounding, per_unit, rounding, marks):
    """Marks the rows whose sum may be above the limit, given in units of the latent.

    A sum's error has the variance v = variance + rounding; SIGMAS * sqrt(v) is at most SIGMAS / 2 * (v / t + t), and hardly
    less for a t that is the typical sqrt(v).
    """
    typical = np.sqrt(variance + mean_rounding)
    slope = np.float32(SIGMAS / 2) / typical
    base = middle - slope * variance - np.float32(SIGMAS / 2) * typical
    for j in range(len(sums)):
        marks[j] = np.float32(sums[j]) > limit * per_unit[j] + base - slope * rounding[j]


@compiled
def _round_rows(first, last, x, per_factor, levels, per_unit, rounding):
    """Writes the tiles `first` to `last` of the rows."""
    width = len(levels) // len(per_unit)
    scaled, rounded = np.zeros(width, np.float32), np.empty(width, np.int8)
    for row in range(first * TILE_ROWS, min(last * TILE_ROWS, len(x))):
        _scale(x[row], per_factor, scaled)
        unit = _largest(scaled) / np.float32(ROW_LEVELS)
        _round(scaled, unit, rounded)
        square = np.float32(0)
        for k in range(width):
            square += np.float32(rounded[k]) * np.float32(rounded[k])
            rounded[k] += ROW_LEVELS
        per_unit[row], rounding[row] = 1 / unit, square / np.float32(12)
        _lay_out(rounded, levels, row, TILE_ROWS)


@compiled
def _round_latents(weights, factor, packed, unit, middle, variance):
    """Writes a block of latents in 8 bits, in the order in which `multiply_tile` reads them: tile of latents, step, latent,
    four inputs; and of each its unit, what the rows' 63 add to its sums, and the variance of a sum by the rounding of a
    row's levels."""
    width = len(packed) // BLOCK_LATENTS
    scaled, rounded = np.zeros(width, np.float32), np.empty(width, np.int8)
    for i in range(len(weights)):
        _scale(weights[i], factor, scaled)
        peak, square, total = _largest(scaled), np.float32(0), 0
        for start in range(0, width, LANE):
            lane = np.float32(0)
            for k in range(start, start + LANE):
                lane += abs(scaled[k])
            peak = max(peak, lane * np.float32(LATENT_LEVELS / LANE_LEVELS))
        unit[i] = peak / np.float32(LATENT_LEVELS)
        _round(scaled, unit[i], rounded)
        for k in range(width):
            square += scaled[k] * scaled[k]
            total += rounded[k]
        middle[i], variance[i] = ROW_LEVELS * total, square / (12 * unit[i] * unit[i])
        _lay_out(rounded, packed, i, TILE_LATENTS)


@compiled
def _scale(numbers, factor, scaled):
    for k in range(len(numbers)):
        scaled[k] = numbers[k] * factor[k]


@compiled
def _largest(numbers):
    """The largest magnitude, found by its bits; a tiny one where all are 0."""
    bits, most = numbers.view(np.int32), np.full(1, TINY, np.float32)
    largest = most.view(np.int32)[0]
    for k in range(len(bits)):
        largest = max(largest, bits[k] & np.int32(0x7FFFFFFF))
    most.view(np.int32)[0] = largest
    return most[0]


@compiled
def _round(numbers, unit, rounded):
    per_unit = 1 / unit
    for k in range(len(numbers)):
        rounded[k] = np.int8(np.rint(numbers[k] * per_unit))


@compiled
def _lay_out(rounded, levels, number, tile):
    """Puts the levels of a row or latent of this number among those of its tile: step, number, four inputs."""
    pairs, places = rounded.view(np.int16), levels.view(np.int16)
    at = number // tile * tile * len(pairs) + number % tile * 2
    for start in range(0, len(pairs), LANE):
        for k in range(start, start + STEPS):
            places[at], places[at + 1] = pairs[k], pairs[k + STEPS]
            at += 2 * tile


@compiled
def _multiply(packed, levels, width, sums):
    """Sums [latents, rows] of the products of levels."""
    for row in range(0, sums.shape[1], TILE_ROWS):
        for latent in range(0, len(sums), TILE_LATENTS):
            multiply_tile(packed, latent * width, levels, row * width, width // INPUTS, sums,  # type: ignore[call-arg]
                          latent * sums.shape[1] + row, sums.shape[1])  # fmt: skip


@intrinsic
def multiply_tile(typing_context, latents, latents_at, rows, rows_at, blocks, sums, sums_at, stride):
    """Sums of TILE_LATENTS latents (levels from latents_at on) with TILE_ROWS rows (from rows_at on), written from sums_at
    on, a latent's `stride` apart.

    A step takes four inputs of every latent and row: 32 products a time, added in pairs and then over a lane in 16 bits.
    """
    byte, word = ir.IntType(8), ir.IntType(64)
    bytes_, lanes, wide = (ir.VectorType(ir.IntType(bits), 256 // bits) for bits in (8, 16, 32))
    tile = [(i, v) for i in range(TILE_LATENTS) for v in range(TILE_VECTORS)]

    def generate(context, builder, signature, arguments):
        def data(index):
            return arrayobj.make_array(signature.args[index])(context, builder, arguments[index]).data

        def at(pointer, offset, kind: ir.Type = byte):
            place = builder.gep(builder.bitcast(pointer, byte.as_pointer()), [offset])
            return builder.bitcast(place, kind.as_pointer())

        def instruction(name, result, operand):
            shape = ir.FunctionType(result, [operand, operand])
            return cgutils.get_or_insert_function(builder.module, shape, f"llvm.x86.avx2.{name}")

        def number(value):
            return ir.Constant(word, value)

        def cleared(kind):
            places = {place: cgutils.alloca_once(builder, kind) for place in tile}
            for place in tile:
                builder.store(ir.Constant(kind, None), places[place])
            return places

        def add(place, more):
            builder.store(builder.add(builder.load(place), more), place)

        def everywhere(four):
            one = builder.insert_element(ir.Constant(wide, ir.Undefined), four, ir.Constant(ir.IntType(32), 0))
            return builder.bitcast(builder.shuffle_vector(one, one, ir.Constant(wide, [0] * 8)), bytes_)

        pairs, halves = instruction("pmadd.ub.sw", lanes, bytes_), instruction("pmadd.wd", wide, lanes)
        latents, rows = at(data(0), arguments[1]), at(data(2), arguments[3])
        totals = cleared(wide)
        with cgutils.for_range(builder, arguments[4]) as block:
            sums16 = cleared(lanes)
            with cgutils.for_range(builder, number(STEPS)) as step:
                index = builder.add(builder.mul(block.index, number(STEPS)), step.index)
                its_rows = at(rows, builder.mul(index, number(4 * TILE_ROWS)))
                its_latents = at(latents, builder.mul(index, number(4 * TILE_LATENTS)))
                row_levels = [builder.load(at(its_rows, number(32 * v), bytes_), align=1) for v in range(TILE_VECTORS)]
                for i in range(TILE_LATENTS):
                    four = everywhere(builder.load(at(its_latents, number(4 * i), ir.IntType(32)), align=1))
                    for v in range(TILE_VECTORS):
                        add(sums16[i, v], builder.call(pairs, [row_levels[v], four]))
            for place in tile:
                ones = ir.Constant(lanes, [1] * 16)
                add(totals[place], builder.call(halves, [builder.load(sums16[place]), ones]))
        for i, v in tile:
            index = builder.add(builder.add(arguments[6], builder.mul(arguments[7], number(i))), number(8 * v))
            builder.store(builder.load(totals[i, v]), at(data(5), builder.mul(index, number(4)), wide), align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(latents, index, rows, index, index, sums, index, index), generate
