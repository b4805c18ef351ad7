"""`make interop`: the tools of other projects load what `export` writes, and their outputs are held against the run's.

They run in an environment of their own (tests/bench/interop_tool.py, versions in interop.txt). Without --run, tiny runs are
written, with a skip connection and with TopK; features are checked where the run's are collected. The official
circuit-tracer is on no package index: the package of that name is a fork, whose loader of JumpReLU files is the same.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evaluate.features.reader import open_features
from evaluate.publish.command import export_features
from evaluate.publish.config import ExportFeaturesConfig
from store.cli import one_line_errors
from store.config import ExportConfig, ExportSetConfig
from store.errors import Refused
from store.exports.export import export
from store.exports.gate import sample_of
from store.exports.opening import of_a_run
from store.exports.sets import export_set
from store.layout import FEATURES, SAMPLES
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from store.views import ViewName
from tests.store.exports.making import run_of_layer

WORKER = Path(__file__).with_name("interop_tool.py")
TOLERANCE = 1e-5
TINY = {"JumpReLU, skip": {"skip": True}, "JumpReLU": {}, "TopK, skip": {"skip": True, "activation": "topk"}}
"""Tiny runs by name, and what is particular about each."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    what: str
    tool: str
    outcome: str
    """The relative difference, or why there is none."""
    well: bool


@dataclass(frozen=True)
class Job:
    """What a tool reads, and what it should give."""

    what: str
    tool: str
    place: Path
    x: torch.Tensor
    y: torch.Tensor
    limit: float = TOLERANCE


class Tools:
    """The tools' Python, what they are to read, and rows that need no tool."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python = python
        self.folder = folder
        self.jobs: list[Job] = []
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """The rows of all jobs, which one process does."""
        listed = []
        for number, job in enumerate(self.jobs):
            files = {name: str(self.folder / f"{name}{number}.safetensors") for name in ("x", "out")}
            save_file({"x": job.x.contiguous()}, files["x"])
            listed.append({"tool": job.tool, "folder": str(job.place)} | files)
        (self.folder / "jobs.json").write_text(json.dumps(listed))
        done = subprocess.run([self.python, WORKER, self.folder / "jobs.json"], capture_output=True, text=True)
        said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(said) < len(listed):
            raise Refused((done.stderr.strip() or "the tools ended without a word").splitlines()[-1])
        return [self._row(job, answer, files["out"]) for job, answer, files in zip(self.jobs, said, listed, strict=True)]

    def _row(self, job: Job, answer: dict[str, str], out: str) -> Row:
        if "error" in answer:
            return Row(job.what, job.tool, f"not run: {answer['error']}", False)
        y = load_file(out)["y"][: len(job.y)].reshape(job.y.shape)
        error = float((y - job.y).norm() / job.y.norm())
        return Row(job.what, answer["version"], f"{error:.1e}", error <= job.limit)


def check_layouts(tools: Tools, run: Path, name: str, given: Path | None = None) -> None:
    """Every layout that holds this run."""
    ours, store = of_a_run(run, given)
    assert store is not None
    sample = sample_of(ours, store)
    y = ours(ours.view(sample.resid, store.norm))
    layouts: dict[str, tuple[str, ...]] = {
        "saelens": ("saelens",),
        "circuit-tracer": ("circuit-tracer-layer",),
        "gemma-scope-1": ("gemma-scope-1",),
        "gemma-scope-2": ("gemma-scope-2",),
        "sparsify": ("sparsify",),
    }
    for layout, readers in layouts.items():
        place = tools.folder / name / layout
        try:
            export(ExportConfig(run=run, layout=layout, out=place, store=store.directory))
        except Refused as error:
            tools.rows.append(Row(f"{name}: {layout}", "-", f"refused: {error}", True))
            continue
        view: ViewName = json.loads((place / "export.json").read_text())["view"]
        x = seen(ours, view, sample.resid, store)
        for reader in readers:
            tools.jobs.append(Job(f"{name}: {layout}", reader, place, x, y))
    check_delphi(tools, run, ours, store, name)


def seen(ours: Transcoder, view: ViewName, resid: torch.Tensor, store: Store) -> torch.Tensor:
    """What the tool's hook would hold."""
    return replace(ours, config=ours.config.model_copy(update={"view": view})).view(resid, store.norm)


def check_delphi(tools: Tools, run: Path, ours: Transcoder, store: Store, name: str) -> None:
    """Its cache against the run's latents, by their sums over each held-out token and over each latent; float16 rounds."""
    of_token, of_latent = [], torch.zeros(ours.config.d_sae)
    for shard in store.manifest.of_split("heldout"):
        rows = store.array(shard, ours.config.source_site)[: shard.kept]
        sums = torch.zeros(shard.rows)
        for part, place in zip(rows.split(1024), store.array(shard, "token_index")[: shard.kept].split(1024), strict=True):
            latents = ours.encode(ours.view(part, store.norm))
            sums[place.long()] = latents.sum(1)
            of_latent += latents.sum(0)
        of_token.append(sums)
    place = tools.folder / name / "delphi"
    export(ExportConfig(run=run, layout="delphi", out=place, store=store.directory))
    y = torch.cat([*of_token, of_latent])
    tools.jobs.append(Job(f"{name}: delphi (float16)", "delphi", place, torch.zeros(ours.config.d_sae, 1), y, 2**-10))


def check_set(tools: Tools, folder: Path) -> None:
    """A set of circuit-tracer's with a silent layer."""
    runs = {layer: run_of_layer(folder, layer, skip=layer == 2) for layer in (0, 2)}
    export_set(ExportSetConfig(runs=tuple(folder / f"run{layer}" for layer in runs), out=folder / "set"))
    x = torch.randn(64, 12)
    y = torch.stack([runs[0](x), torch.zeros(64, 12), runs[2](x)])
    for reader in ("circuit-tracer", "circuit-tracer-lazy"):
        tools.jobs.append(Job(f"set of 3 layers, 1 silent ({reader})", reader, folder / "set", x, y))


def check_features(tools: Tools, run: Path) -> None:
    """Feature files, where the run's features are collected."""
    path = run / SAMPLES / FEATURES
    if not path.exists():
        tools.rows.append(Row("features", "-", f"not run: {run} has none; make features RUN={run}", True))
        return
    most = torch.tensor(open_features(path, path.stat().st_mtime_ns).columns["max_activation"]).float()
    for layout, reader in (("circuit-tracer", "viewer"), ("neuronpedia", "neuronpedia")):
        place = tools.folder / "features" / layout
        export_features(ExportFeaturesConfig(runs=(run,), layout=layout, out=place, model_id="model"))
        tools.jobs.append(Job(f"features: {layout}", reader, place, most[:, None], most, 1e-4))


def table(rows: list[Row]) -> str:
    widths = [max(len(getattr(row, name)) for row in rows) for name in ("what", "tool")]
    lines = []
    for row in rows:
        lines.append(f"{'ok  ' if row.well else 'FAIL'} {row.what:<{widths[0]}}  {row.tool:<{widths[1]}}  {row.outcome}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with one_line_errors("interop"), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tools = Tools(options.python, Path(folder))
        for name, changes in TINY.items():
            place = Path(folder) / f"tiny {name}"
            place.mkdir()
            run_of_layer(place, 1, **changes)
            check_layouts(tools, place / "run1", name)
        check_set(tools, Path(folder))
        if options.run is not None:
            check_layouts(tools, options.run, options.run.name, options.store)
            check_features(tools, options.run)
        rows = [*tools.run(), *tools.rows]
        print(table(rows))
        if not all(row.well for row in rows):
            raise Refused("a tool does not give the run's outputs")


if __name__ == "__main__":
    main()
