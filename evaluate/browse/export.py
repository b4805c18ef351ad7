"""`python -m evaluate browse-export`: the browser's pages as files that any web host serves."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from evaluate.browse.config import BrowseExportConfig
from evaluate.browse.folder import find_runs
from evaluate.browse.links import INDEX, FileLinks
from evaluate.browse.map_views import map_or_problem
from evaluate.browse.pages import Pages
from evaluate.browse.places import open_results
from evaluate.browse.server import STATIC
from store.disk.files import write_text
from store.errors import Damaged, Refused
from store.layout import REPORT

log = logging.getLogger(__name__)


def export(config: BrowseExportConfig) -> Path:
    """Writes a static site and returns its folder. Refused when the folder holds something else."""
    out = config.out
    if out.exists() and any(out.iterdir()) and not (out / "static" / "browse.css").exists():
        raise Refused(f"{out} is not empty and not an earlier export; give another --out")
    results = open_results(config.results)
    links = FileLinks(config.features)
    pages = Pages(results, links, notes=config.notes)
    shutil.copytree(STATIC, out / "static", dirs_exist_ok=True)

    def write(file: str, make: Callable[[], str]) -> None:
        links.here = file
        try:
            page = make()
        except Damaged as error:
            log.warning("%s: %s", file, error)
            page = pages.message("Cannot be shown", str(error))
        write_text(out / file, page)

    write(INDEX, lambda: pages.runs({}))
    for run in find_runs(results).values():
        name = run.name
        write(links.file("run", name), partial(pages.run, name))
        for kind in run.reports:
            copy = out / links.file("report", name, kind)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.folder / kind / REPORT, copy)
        if run.has_features:
            write(links.file("features", name), partial(pages.features, name, {}))
            write(links.file("tree", name), partial(pages.tree, name, {}))
            with contextlib.suppress(Damaged):  # the two pages before say so
                exported = min(config.features, len(run.features()))
                if exported < len(run.features()):
                    every = f"--features {len(run.features())}"
                    words = "%s: only the first %s of %s features get a page; %s writes all (ARGS='%s' for make)"
                    log.warning(words, name, f"{exported:,}", f"{len(run.features()):,}", every, every)
                for latent in tqdm(range(exported), desc=name, unit="feature"):
                    write(links.file("feature", name, latent), partial(pages.feature, name, latent))
                if map_or_problem(results, run)[0] is not None:
                    for latent in tqdm(range(exported), desc=f"{name}, graphs", unit="graph"):
                        write(links.file("graph", name, latent), partial(pages.graph, name, latent))
    return out
