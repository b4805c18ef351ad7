"""`python -m tests.compiled`: every Triton kernel compiled for a GPU that need not be there, with what its assembler says.

Prints JSON: for each kernel its registers a thread and the bytes that do not fit into them (spills).
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from store.sparse import triton_search
from store.sparse.triton_jit import COLUMNS, ENTRIES
from train.step import triton_decode, triton_gradients

BLOCK = {"BLOCK": triton_search.ROWS}
TILE = {"E": ENTRIES, "D": COLUMNS}
KERNELS = {
    "count_above": (triton_search.count_above, BLOCK, 4),
    "write_above": (triton_search.write_above, BLOCK, 4),
    "pair_dots": (triton_search.pair_dots, TILE | {"E": triton_search.PAIRS}, 4),
    "segment_sums": (triton_search.segment_sums, {"BLOCK": 256}, 1),
    "errors_and_gradients": (
        triton_decode.errors_and_gradients,
        TILE | {"WEIGHTED": True, "DETACHED": False, "KEEP": True},
        4,
    ),
    "sums_over_entries": (triton_gradients.sums_over_entries, TILE, 4),
}
"""By name: the kernel, its constants, and its warps."""

TABLES = {"pair_dots": {"x", "encoder"}, "errors_and_gradients": {"decoder"}, "sums_over_entries": {"x", "grad_bags"}}
"""By kernel: what it gathers, which may be bfloat16."""
LOW = ", bfloat16"
"""After the name of a kernel that gathers bfloat16."""

WHOLE = {"row", "latent", "bag", "order", "starts", "row_out", "latent_out", "found"}
"""Arguments that point to int64."""

NUMBERS = {"rows", "room", "base", "n", "groups", "width", "latents", "d_in", "d_out", "segments"}
"""Arguments that are numbers."""

DIVISIBLE = {"width", "d_in", "d_out", "rows"}
"""Numbers that 16 divides, as in Gemma's shapes: rows are then loaded 16 bytes at a time."""


def type_of(name: str) -> str:
    if name in NUMBERS:
        return "i32"
    if name in WHOLE:
        return "*i64"
    return {"counts": "*i32", "scores": "*bf16", "limit": "*bf16"}.get(name, "*fp32")


def compiled(name: str, capability: int) -> dict[str, int]:
    kernel = name.removesuffix(LOW)
    function, constants, warps = KERNELS[kernel]
    names = [argument for argument in function.arg_names if argument not in constants]
    signature = {argument: type_of(argument) for argument in names} | dict.fromkeys(constants, "constexpr")
    if name != kernel:
        signature |= dict.fromkeys(TABLES[kernel], "*bf16")
    aligned = [i for i, argument in enumerate(function.arg_names) if argument in names and argument not in NUMBERS]
    aligned += [i for i, argument in enumerate(function.arg_names) if argument in DIVISIBLE]
    source = ASTSource(function, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(made.asm["ptx"])
        architecture = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        command = [ptxas, "-v", f"--gpu-name={architecture}", ptx, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    loads = re.findall(r"ld\.global\S*\.v(\d)\.b32", made.asm["ptx"])
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spills": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "widest_load": 4 * max((int(width) for width in loads), default=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90)
    options = parser.parse_args()
    names = [*KERNELS, *(name + LOW for name in TABLES)]
    print(json.dumps({name: compiled(name, options.capability) for name in names}))


if __name__ == "__main__":
    main()
