"""A step's operations by counting: bytes and FLOPs from shapes, and the time they take at given rates."""

from dataclasses import dataclass

from tests.bench.gpu.bench import Bench, Sizes, Table

ADAM_BYTES = 28
"""A weight's gradient, value and two moments are read; value and moments are written."""
FLOAT, LOW = 4, 2
"""Bytes of a float32 and of a bfloat16."""


LAUNCH = 2.5e-6
"""Seconds that a kernel takes however small it is: a guess."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    name: str
    flops: float
    """bfloat16, on tensor cores."""
    memory: float
    """Bytes, copied from and to memory."""
    cache: float
    """Bytes, gathered from the L2 cache."""


H200 = Rates("H200", 790e12, 4.3e12, 5.5e12)
"""bfloat16 and copy as measured by others; the cache's rate is a guess."""


@dataclass(frozen=True)
class Operation:
    name: str
    flops: float = 0
    memory: float = 0
    """Bytes from and to memory."""
    cache: float = 0
    """Bytes gathered from the L2 cache."""
    share: float = 1
    """Of the rate of bfloat16 products that its products have."""
    launches: int = 0
    """Kernels so small that their launch is what they take."""

    def seconds(self, rates: Rates) -> float:
        """The slowest of its parts: they overlap."""
        return self.launches * LAUNCH + max(
            self.flops / rates.flops / self.share, self.memory / rates.memory, self.cache / rates.cache
        )


def operations(s: Sizes, groups: int = 5, table: int = FLOAT) -> list[Operation]:
    """A BatchTopK step without dead latents, by Triton's kernels. table: bytes of a number that is gathered."""
    weights = 2 * s.d * s.d_sae
    scores = s.batch * s.d_sae
    rows = s.batch * s.d * FLOAT
    gathered = s.entries * s.d * table
    rounding = (weights / 2 + groups * s.batch * s.d) * (FLOAT + LOW) if table == LOW else 0
    found = 1.2 * gathered  # SLACK lets about a fifth more through than are kept
    return [
        Operation("batch: gather, view, normalise", memory=2 * 4 * rows),
        Operation("bfloat16 copies of x and encoder", memory=(rows + weights / 2 * FLOAT) * 1.5),
        Operation("scores", flops=2 * scores * s.d, memory=scores * LOW),
        Operation("K1 count_above, write_above", memory=2 * scores * LOW),
        Operation("K2 pair_dots", cache=found, memory=weights / 2 * table),
        Operation("selection (topk of the values)", memory=40 * 1.5 * s.entries),
        Operation("bags (sort of int16)", memory=60 * s.entries),
        Operation("K3 errors_and_gradients", cache=2 * gathered, memory=weights / 2 * table + (2 * groups + 2) * rows),
        Operation("K4 sums_over_entries", cache=2 * gathered, memory=weights * FLOAT + (groups + 1) * rows),
        *([Operation("bfloat16 copies of decoder and errors", memory=rounding)] if rounding else []),
        Operation("b_dec, losses, watch", memory=3 * rows),
        Operation("about 100 small kernels", launches=100),
        Operation("Adam", memory=ADAM_BYTES * weights),
        Operation("decoder rows to norm 1", memory=3 * weights / 2 * FLOAT),
    ]


def aux_operations(s: Sizes, dead: float = 0.1) -> Operation:
    """AuxK with this share of the latents dead: five products. TF32 has half the rate of bfloat16."""
    return Operation(f"AuxK, {dead:.0%} dead, TF32", flops=5 * 2 * s.batch * s.d * dead * s.d_sae, share=0.5)


def floor_seconds(s: Sizes, flops: float, bandwidth: float) -> float:
    """Two encoder products (scores; the encoder's gradient, were it dense), three passes over the entries' decoder rows in
    bfloat16, and Adam's bytes."""
    matmuls = 2 * 2 * s.batch * s.d * s.d_sae
    gathers = 3 * s.entries * s.d * LOW
    return matmuls / flops + (gathers + 2 * s.d * s.d_sae * ADAM_BYTES) / bandwidth


def estimate(bench: Bench) -> Table:
    """The step by counting; nothing is run."""
    rows = []
    for operation in operations(bench.sizes):
        counted = (operation.flops / 1e9, operation.memory / 1e9, operation.cache / 1e9)
        rows.append((operation.name, *counted, 1e3 * operation.seconds(H200)))
    total = sum(operation.seconds(H200) for operation in operations(bench.sizes))
    low = sum(operation.seconds(H200) for operation in operations(bench.sizes, table=LOW))
    rows.append(("whole step", "", "", "", 1e3 * total))
    rows.append(("whole step with --tables bfloat16", "", "", "", 1e3 * low))
    aux = aux_operations(bench.sizes)
    rows.append((aux.name, aux.flops / 1e9, 0, 0, 1e3 * aux.seconds(H200)))
    return Table(
        ("operation", "GFLOP", "GB, memory", "GB, L2", "ms, estimated, not run"),
        rows,
        f"Rates: {H200.flops / 1e12:.0f} TFLOP/s in bfloat16, {H200.memory / 1e12} TB/s of memory, {H200.cache / 1e12} "
        f"TB/s of L2 and {1e6 * LAUNCH} us a small kernel (guesses). {bench.sizes.batch / total:,.0f} rows/s, "
        f"{bench.sizes.batch / low:,.0f} with --tables bfloat16.",
    )
