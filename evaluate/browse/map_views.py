"""What a map over layers says on a run's and on a feature's page: the parts of an activation, reads from, writes to."""

import os
from dataclasses import dataclass
from pathlib import Path

from evaluate.browse.folder import RunFolder, open_folder, run_folders
from evaluate.circuit.reader import Circuit, Latent, changed_weights, open_circuit, shares
from evaluate.circuit.summary import CircuitSummary, LayerParts, read_circuit
from store.errors import Damaged
from store.layout import CIRCUIT, CIRCUIT_SUMMARY

LABELS = {
    "features": "latents of earlier layers",
    "error": "their errors",
    "skip": "their skip connections",
    "biases": "biases",
    "rest": "the rest (attention, embedding, other MLPs)",
}
"""Of the parts of a pre-activation, as pages name them."""

OF_ONE_LAYER = LABELS | {"features": "its latents", "error": "its errors", "skip": "its skip connection"}
"""Of the parts that come from one earlier layer."""


@dataclass(frozen=True, kw_only=True)
class RunMap:
    """A map that holds a run, opened."""

    folder: Path
    summary: CircuitSummary
    circuit: Circuit
    layer: int
    """The run's."""
    runs: dict[int, RunFolder]
    """By layer, the map's runs that the browser knows."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def parts(self) -> LayerParts:
        """Of the run's layer."""
        return next(parts for parts in self.summary.layers if parts.layer == self.layer)

    def layer_shares(self) -> list[tuple[str, float]]:
        """What makes the run's latents active, by label."""
        return labelled(self.parts.shares())

    def earlier_shares(self) -> list[tuple[int, list[tuple[str, float]]]]:
        """By earlier layer, what it adds to that."""
        parts = self.parts
        whole = sum(parts.parts.values()) - sum(parts.everywhere.values()) or 1.0
        found = []
        for each in parts.earlier:
            rise = {kind: (value - each.everywhere[kind]) / whole for kind, value in each.parts.items()}
            found.append((each.layer, labelled(rise, OF_ONE_LAYER)))
        return found

    def example(self, latent: Latent) -> dict | None:
        """A few words about a latent's strongest firing; None where they were not collected."""
        run = self.runs.get(latent[0])
        if run is None or not run.has_features:
            return None
        try:
            return run.features().brief(latent[1])["example"]
        except (Damaged, IndexError):  # the run's own page says so
            return None


@dataclass(frozen=True, kw_only=True)
class LatentMap:
    """What the map says of one latent."""

    map: RunMap
    shares: list[tuple[str, float]]
    """By label; empty for a latent that never fires."""
    reads: list[dict]
    writes: list[dict]
    """Edges of edges.parquet; each also has `other`, the latent at its other end, and that one's `example`."""


def map_or_problem(results: Path, run: RunFolder) -> tuple[RunMap | None, str]:
    """The newest map that holds a run, below the results folder, and why it cannot be shown; None and an empty text where
    there is none."""
    try:
        return map_of(results, run), ""
    except Damaged as error:
        return None, str(error)


def map_of(results: Path, run: RunFolder) -> RunMap | None:
    """The newest map that holds a run. Damaged when it cannot be read, or was made from other weights."""
    for folder in map_folders(results, run.folder):
        summary = read_circuit(folder)
        assert summary is not None
        by_layer = {each.layer: Path(os.path.realpath(folder / each.folder)) for each in summary.runs}
        own = [layer for layer, path in by_layer.items() if path == Path(os.path.realpath(run.folder))]
        if not own:
            continue
        for each in summary.runs:
            if changed_weights(by_layer[each.layer], each.weights):
                raise Damaged(
                    f"{folder} was made from other weights of layer {each.layer} than {by_layer[each.layer]} has; "
                    "make it again with make circuit"
                )
        known = {os.path.realpath(path): (name, path) for name, path in run_folders(results).items()}
        runs = {layer: open_folder(*known[str(path)]) for layer, path in by_layer.items() if str(path) in known}
        circuit = open_circuit(folder, summary)
        return RunMap(folder=folder, summary=summary, circuit=circuit, layer=own[0], runs=runs)
    return None


def map_folders(results: Path, run: Path) -> list[Path]:
    """Folders of maps beside the folders that hold a run, within the results folder; the newest first."""
    inside = [parent for parent in run.parents if parent == results or results in parent.parents]
    found = [path for parent in inside for path in parent.glob(f"{CIRCUIT}/*/{CIRCUIT_SUMMARY}")]
    return [path.parent for path in sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path))]


def latent_map(run_map: RunMap, latent: int) -> LatentMap:
    """What the map says of one latent of its run."""
    own = (run_map.layer, latent)
    parts = run_map.circuit.parts(own)
    return LatentMap(
        map=run_map,
        shares=labelled(shares(parts)),
        reads=[edge | other_end(run_map, edge["from"]) for edge in run_map.circuit.reads(own)],
        writes=[edge | other_end(run_map, edge["to"]) for edge in run_map.circuit.writes(own)],
    )


def other_end(run_map: RunMap, latent: Latent) -> dict:
    run = run_map.runs.get(latent[0])
    return {"other": latent, "run": run if run and run.has_features else None, "example": run_map.example(latent)}


def labelled(by_kind: dict[str, float], labels: dict[str, str] = LABELS) -> list[tuple[str, float]]:
    """Shares by label, biases together; skip connections are left out where there are none."""
    if not by_kind:
        return []
    together = dict(by_kind)
    together["biases"] = together.pop("decoder_bias", 0.0) + together.pop("encoder_bias", 0.0)
    shown = [kind for kind in labels if together.get(kind) or (kind in together and kind != "skip")]
    return [(labels[kind], together[kind]) for kind in shown]
