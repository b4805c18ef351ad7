"""What --results names: runs, one run, a pushed repository, a transcoder in another layout; here, or on the hub."""

import posixpath
from collections.abc import Sequence
from pathlib import Path

from evaluate.browse.exports import WEIGHT_FILES
from evaluate.browse.folder import FILES, run_folders
from store.errors import Refused
from store.layout import COMPARISON_FOLDER, FEATURES, GOOGLE_METRICS, OTHER_METRICS, SAMPLES, TRAIN_CONFIG, WEIGHTS
from store.names import is_hub_url

SHOWN = (
    *FILES,
    f"{COMPARISON_FOLDER}/{OTHER_METRICS}",
    f"{COMPARISON_FOLDER}/{GOOGLE_METRICS}",
    f"{SAMPLES}/{FEATURES}",
)
"""Files of a run that the browser reads."""


def open_results(place: Path) -> Path:
    """The folder on this machine. Of hf://user/repo/path@revision, where the files that the browser shows were fetched to.

    Refused for what is no folder, and for a repository that has neither a run nor a transcoder there.
    """
    if is_hub_url(place):
        from store.hub import fetch  # the hub's client, which folders do without

        here = fetch(place, files_to_show, "run or transcoder")
        if not run_folders(here):
            raise Refused(f"what was fetched of {place} before is nothing to browse, and the hub was not asked; connect")
        return here
    if place.is_file():
        raise Refused(f"{place} is a file; give the folder that holds it: --results {place.parent}")
    if not place.is_dir():
        raise Refused(f"{place} is not a folder; give --results, or make a run with make demo")
    return place


def files_to_show(path: str, files: Sequence[str]) -> list[str]:
    """Which of a repository's files the browser needs: of runs no weights, where it knows the run without; of a transcoder
    in another layout all that lies directly in the folder."""
    below = [file for file in files if not path or file.startswith(f"{path}/")]
    runs = {posixpath.dirname(file) for file in below if posixpath.basename(file) in (WEIGHTS, TRAIN_CONFIG)}
    wanted = {posixpath.normpath(posixpath.join(run, name)) for run in runs for name in SHOWN}
    for run in runs:
        if posixpath.join(run, TRAIN_CONFIG) not in files:
            wanted.add(posixpath.join(run, WEIGHTS))
    if runs:
        return [file for file in files if file in wanted]
    beside = [file for file in below if posixpath.dirname(file) == path]
    return beside if any(file.endswith(WEIGHT_FILES) for file in beside) else []
