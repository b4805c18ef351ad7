"""Everything that a repository on the hub is to hold, made in a folder of the run's."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.export import export as export_pages
from evaluate.estimates import read_result
from evaluate.metrics.measurement import Measurement
from evaluate.publish.card import Carded, card, licence_of
from evaluate.publish.config import PushConfig
from store.config import ExportConfig
from store.disk.suggest import command_line
from store.errors import Refused
from store.exports.export import export
from store.exports.fitting import layout_named
from store.layout import (
    COLLECTION_SUMMARY,
    COMPARISON,
    COMPARISON_FOLDER,
    CONFIG,
    EVALUATION,
    FEATURES,
    GOOGLE_METRICS,
    METRICS,
    NORM_FILE,
    ORIGIN,
    OTHER_METRICS,
    OURS_METRICS,
    PUSHED,
    REPORT,
    REPORT_MARKDOWN,
    SAMPLES,
    SUMMARY,
    TRAIN_CONFIG,
    TRAINING_LOG,
    WEIGHTS,
    default_store,
)
from store.shards.origin import Origin, Side, read_origin
from store.transcoders.layouts import load_run

CARD = "README.md"
TEXTS = (".html", ".json", ".jsonl", ".md", ".txt")
log = logging.getLogger(__name__)

OWN = (CONFIG, WEIGHTS, NORM_FILE, TRAIN_CONFIG, TRAINING_LOG)
"""Files of a run that travel as they are."""

RESULTS = {
    EVALUATION: (METRICS, SUMMARY, REPORT_MARKDOWN, REPORT),
    COMPARISON_FOLDER: (OURS_METRICS, OTHER_METRICS, GOOGLE_METRICS, COMPARISON, SUMMARY, REPORT_MARKDOWN, REPORT),
    SAMPLES: (FEATURES, COLLECTION_SUMMARY),
}
"""The same, by folder."""


@dataclass(frozen=True)
class Staged:
    """A folder that is what the repository is to be."""

    folder: Path
    card: str

    @property
    def files(self) -> list[Path]:
        """All files but none of the hub client's own, from the folder's top on."""
        found = (path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file())
        return [path for path in found if path.parts[0] != ".cache"]


def stage(config: PushConfig) -> Staged:
    """The folder `hub` of the run, made anew. Refused for a run that is not finished, or that was not measured."""
    run = config.run
    for name in config.layout_names:
        layout_named(name)
    transcoder = load_run(run)
    origin = read_origin(run)
    if origin is None:
        raise Refused(f"{run} does not say which store it was trained on (no {ORIGIN}): train it again, and push that run")
    measured = measured_in(run)
    folder = run / PUSHED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        if (run / SAMPLES / FEATURES).exists():
            export_pages(BrowseExportConfig(results=run, out=folder, features=config.features, notes=False))
        for name in OWN:
            _copy(run / name, folder / name)
        (folder / ORIGIN).write_text(without_places(origin).model_dump_json(indent=1) + "\n", encoding="utf-8")
        for inside, names in RESULTS.items():
            for name in names:
                _copy(run / inside / name, folder / inside / name)
        gates = {name: _write_layout(config, name, folder) for name in config.layout_names}
        staged = Staged(folder, "")
        facts = Carded(
            repo=config.repo,
            transcoder=transcoder,
            source=origin.store,
            options=json.loads((run / TRAIN_CONFIG).read_text()) if (run / TRAIN_CONFIG).exists() else {},
            measured=measured,
            licence=config.licence or licence_of(transcoder.config.model),
            layouts=config.layout_names,
            gates=gates,
            files=staged.files,
        )
        text = card(facts)
        (folder / CARD).write_text(text, encoding="utf-8")
        hide_places(folder, run)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Staged(folder, text)


def without_places(origin: Origin) -> Origin:
    """The same without folders of this machine: each store lies in the default folder of its model and layer."""
    moved = {
        name: side.model_copy(update=dict.fromkeys(("given", "absolute"), _default_place(side)))
        for name, side in (("store", origin.store), ("target_store", origin.target_store))
        if side is not None
    }
    return origin.model_copy(update=moved)


def _default_place(side: Side) -> str:
    return str(default_store(side.recipe.model, side.recipe.layer))


def hide_places(folder: Path, run: Path) -> None:
    """Takes the run's place on this machine out of all text files, and the user's home; warns of what a recipe names."""
    hidden = {str(run.resolve()): run.name, str(run.absolute()): run.name, f"{Path.cwd()}/": "", str(Path.home()): "~"}
    hidden = {place: name for place, name in hidden.items() if len(place) > 1}
    for path in folder.rglob("*"):
        if path.suffix in TEXTS and path.is_file() and path.name != ORIGIN:
            old = new = path.read_text(encoding="utf-8")
            for place, name in hidden.items():
                new = new.replace(place, name)
            if new != old:
                path.write_text(new, encoding="utf-8")
    recipe = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["store"]["recipe"]
    for name in ("model", "dataset"):
        if str(recipe[name]).startswith(("/", "~")):
            log.warning("the store's recipe names a place of this machine, and is published with it: %s", recipe[name])


def measured_in(run: Path) -> Measurement:
    """The run's figures: of `compare`, which knows more, or of `metrics`. Refused where neither was run."""
    places = ((COMPARISON_FOLDER, OURS_METRICS, "compare"), (EVALUATION, METRICS, "metrics"))
    for inside, name, command in places:
        if (run / inside / name).exists():
            return read_result(Measurement, run / inside / name, command_line("evaluate", command, run=run, force=True))
    raise Refused(f"{run} was not measured, and its card would say nothing: run make evaluate RUN={run} first")


def _copy(path: Path, to: Path) -> None:
    """A copy, where there is such a file."""
    if path.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)


def _write_layout(config: PushConfig, name: str, folder: Path) -> str:
    """The run in another project's layout; how well what was written agrees with it, in words."""
    said = export(ExportConfig(run=config.run, layout=name, out=folder / name, store=config.store))
    return said.strip().splitlines()[-1].strip()
