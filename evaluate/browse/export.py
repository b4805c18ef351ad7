"""`python -m evaluate browse-export`: the browser's pages as files that any web host serves."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from evaluate.browse.config import ExportConfig
from evaluate.browse.folder import find_runs
from evaluate.browse.links import FileLinks
from evaluate.browse.pages import Pages
from evaluate.browse.server import STATIC
from store.disk.files import write_text
from store.errors import Damaged, Refused
from store.layout import REPORT

log = logging.getLogger(__name__)


def export(config: ExportConfig) -> Path:
    """The folder of a static site that any web host serves. Refused when it holds something else."""
    out = config.out
    if out.exists() and any(out.iterdir()) and not (out / "static" / "browse.css").exists():
        raise Refused(f"{out} is not empty and not an earlier export; give another --out")
    if not config.results.is_dir():
        raise Refused(f"{config.results} is not a folder; give --results, or make a run with make demo")
    links = FileLinks(config.features)
    pages = Pages(config.results, links)
    shutil.copytree(STATIC, out / "static", dirs_exist_ok=True)

    def write(make: Callable[[], str], *place: object) -> None:
        links.here = links.file(*map(str, place)) if place else "index.html"
        try:
            write_text(out / links.here, make())
        except Damaged as error:
            log.warning("%s: %s", links.here, error)
            write_text(out / links.here, pages.message("Cannot be shown", str(error)))

    write(lambda: pages.runs({}))
    for run in find_runs(config.results).values():
        write(lambda run=run: pages.run(run.name), "run", run.name)
        for kind in run.reports:
            (out / "report" / run.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(run.folder / kind / REPORT, out / "report" / run.name / f"{kind}.html")
        if run.has_features:
            write(lambda run=run: pages.features(run.name, {}), "features", run.name)
            write(lambda run=run: pages.tree(run.name, {}), "tree", run.name)
            with contextlib.suppress(Damaged):  # those two pages say so
                exported = min(config.features, len(run.features()))
                for latent in tqdm(range(exported), desc=run.name, unit="feature"):
                    write(lambda run=run, latent=latent: pages.feature(run.name, latent), "feature", run.name, latent)
    return out
