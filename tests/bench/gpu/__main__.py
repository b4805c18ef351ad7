"""`make gpu-check`: what an accelerator reaches, what it should reach, and whether its numbers are right.

Random weights and a synthetic store of Gemma-2-2B's shapes: no language model and no network. Each part runs in a process
of its own under a time limit, so that one that hangs or crashes takes no other with it. Writes a table for people and JSON.
With `--small --device cpu` every part runs anywhere.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from store.cli import one_line_errors
from store.devices import resolve_device
from store.errors import Refused
from tests.bench.gpu.bench import SMALL, Bench, Sizes, Table
from tests.bench.step import synthetic


@dataclass(frozen=True)
class Part:
    place: str
    """module:function, of this package; imported by the process that runs it, since some need the model's libraries."""
    seconds: int
    """After which it is stopped."""


PARTS = {
    "estimate": Part("counted:estimate", 10),
    "floor": Part("steps:floor", 20),
    "kernels": Part("kernels:kernels", 50),
    "tuning": Part("kernels:tuning", 60),
    "dense": Part("kernels:dense", 30),
    "numerics": Part("checks:numerics", 60),
    "determinism": Part("checks:determinism", 60),
    "step": Part("steps:step", 80),
    "profile": Part("steps:profile", 40),
    "loader": Part("pipeline:loader", 20),
    "writer": Part("pipeline:writer", 20),
    "harvest": Part("pipeline:harvesting", 70),
    "checkpoints": Part("pipeline:checkpoints", 20),
}
"""In the order in which they run; the limits add up to nine minutes. A new part is a function of a Bench that returns a
Table, and its line here."""

SMALL_SECONDS = 600
"""The limit of every part under --small, which asks whether parts run, not how fast: other work may have the cores."""


def sizes_of(options: argparse.Namespace) -> Sizes:
    if options.small:
        return SMALL
    return Sizes(options.d, options.d_sae, options.k, options.batch, options.steps)


def run_here(name: str, options: argparse.Namespace) -> None:
    """Runs one part in this process and writes what it found to options.json."""
    bench = Bench(sizes_of(options), resolve_device(options.device), Path(options.store), options.small)
    module, _, function = PARTS[name].place.partition(":")
    table = getattr(import_module(f"tests.bench.gpu.{module}"), function)(bench)
    found = {"columns": table.columns, "rows": table.rows, "note": table.note}
    Path(options.json).write_text(json.dumps(found))


def run_apart(name: str, options: argparse.Namespace, folder: str) -> dict:
    """What one part found in a process of its own, or why it found nothing."""
    path = Path(folder) / f"{name}.json"
    given = [f"--{key}={getattr(options, key)}" for key in ("device", "d", "d_sae", "k", "batch", "steps")]
    given = [each.replace("d_sae", "d-sae") for each in given] + (["--small"] if options.small else [])
    command = [sys.executable, "-m", "tests.bench.gpu", "--here", name, "--store", folder, "--json", str(path), *given]
    limit = (SMALL_SECONDS if options.small else PARTS[name].seconds) * options.patience
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        error = None if done.returncode == 0 else done.stderr.strip()[-2000:] or f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit:.0f} seconds"
    seconds = time.perf_counter() - start
    if error:
        return {"error": error, "seconds": seconds}
    return json.loads(path.read_text()) | {"seconds": seconds}


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    full = Sizes()
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu ...")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"those to run, of {', '.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU runs in seconds")
    parser.add_argument("--d", type=int, default=full.d)
    parser.add_argument("--d-sae", type=int, default=full.d_sae)
    parser.add_argument("--k", type=int, default=full.k)
    parser.add_argument("--batch", type=int, default=full.batch)
    parser.add_argument("--steps", type=int, default=full.steps, help="that are timed from the store")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on every part's time limit")
    parser.add_argument("--json", default=None, help="file to write all results to")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = options_of()
    with one_line_errors("gpu-check"), tempfile.TemporaryDirectory() as folder:
        if options.here:
            run_here(options.here, options)
            return
        names = options.parts.split(",")
        unknown = [name for name in names if name not in PARTS]
        if unknown:
            raise Refused(f"there is no part {unknown[0]!r}; give {', '.join(PARTS)}")
        device = resolve_device(options.device)
        sizes = sizes_of(options)
        print(f"{machine(device)}: d {sizes.d}, d_sae {sizes.d_sae}, k {sizes.k}, batch {sizes.batch}", flush=True)
        synthetic(Path(folder), sizes.d)
        results = {}
        for name in names:
            results[name] = found = run_apart(name, options, folder)
            print(f"\n### {name} ({found['seconds']:.0f} s)\n", flush=True)
            if "error" in found:
                print(f"FAILED: {found['error']}", flush=True)
            else:
                print(Table(found["columns"], found["rows"], found["note"]).markdown(), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps({"machine": machine(device), "parts": results}, indent=1))
        sys.exit(any("error" in found for found in results.values()))


if __name__ == "__main__":
    main()
