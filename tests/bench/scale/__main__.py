"""`make bench-scale`: how costs grow with shards, rows, latents, layers and processes, as exponents: 1 is linear.

Everything is made here and small (rows of 12 numbers in stores): what is measured is the work around them. CPU seconds, not
time, as other work may share the machine; the least of some calls where a call is short. The exponent is that between the
last two sizes. Each part runs in a process of its own, so that the memory of one is not that of another.
"""

import argparse
import resource
import subprocess
import sys
import time
from importlib import import_module

import torch

from tests.bench.scale.tables import LIMIT, SHARED_OUT, Table

PARTS = ("stores", "order", "steps", "evaluation", "browsing", "harvesting", "processes")
"""Modules of this package. `tables` of each gives its tables, for sizes of a try of seconds if told so."""

ABOVE = 3
"""Exit status of a part in which a cost grows too fast."""


def run_here(part: str, small: bool) -> None:
    """Prints a part's tables; the process ends with ABOVE where a cost grows too fast."""
    torch.set_num_threads(1)
    tables: list[Table] = import_module(f"tests.bench.scale.{part}").tables(small)
    for table in tables:
        print(f"\n{table.markdown()}", flush=True)
    above = [name for table in tables for name in table.above()]
    if above:
        print(f"\ntoo fast: {'; '.join(above)}", flush=True)
        sys.exit(ABOVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes for a try")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        run_here(options.here, options.small)
        return
    ends = {}
    start = time.perf_counter()
    for part in options.parts:
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.scale", "--here", part]
        done = subprocess.run([*command, *["--small"] * options.small], stderr=subprocess.PIPE, text=True)
        ends[part] = done.returncode
        if done.returncode not in (0, ABOVE):
            print(f"\n{part} FAILED: {done.stderr[-3000:]}", flush=True)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    named = ", ".join(part for part, end in ends.items() if end)
    said = (
        f"too fast or failed: {named}"
        if named
        else f"none is above {LIMIT}, or {SHARED_OUT} of what is shared out, but what compares all pairs"
    )
    print(f"\n{said}; {seconds:,.0f} s, {used.ru_utime + used.ru_stime:,.0f} s of the processor's time")
    sys.exit(bool(named))


if __name__ == "__main__":
    main()
