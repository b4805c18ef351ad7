"""Runs that differ in nothing but the seed: how far chance moves a training shows in them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from store.errors import Damaged, Refused
from store.layout import TRAIN_CONFIG, WEIGHTS


def siblings_of(run: Path, among: Iterable[Path] | None = None) -> list[Path]:
    """The finished runs that differ from a run in the seed alone, one a seed, by their seed.

    run: the folder of a run. A transcoder that was made elsewhere has no siblings.
    among: folders to look at; those beside the run's own when not given.
    """
    own = options_of(run)
    if own is None:
        return []
    candidates = sorted(run.resolve().parent.iterdir()) if among is None else among
    by_seed: dict[int, Path] = {}
    for folder in candidates:
        options = options_of(folder)
        if options is not None and (folder / WEIGHTS).exists() and not differing(own, options):
            by_seed.setdefault(options["seed"], folder)
    by_seed.pop(own["seed"], None)
    return [by_seed[seed] for seed in sorted(by_seed)]


def share_out(given: Sequence[Path], runs: Sequence[Path]) -> list[list[Path]]:
    """For each of some runs, which of the given folders differ from it in the seed alone.

    Refused for a folder that does so from none of them.
    """
    shared = [siblings_of(run, given) for run in runs]
    taken = {folder for each in shared for folder in each}
    for folder in given:
        if folder not in taken:
            options = options_of(folder)
            own = options_of(runs[0])
            if options is None or own is None or not (folder / WEIGHTS).exists():
                raise Refused(f"{folder} or {runs[0]} is no finished run of ours; --seeds compares runs by their options")
            names = ", ".join(differing(own, options)) or "nothing, not even the seed, or its seed is given twice"
            raise Refused(f"{folder} differs from {runs[0]} in {names}; --seeds takes runs that differ in the seed alone")
    return shared


def differing(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The options but the seed in which two runs differ."""
    names = sorted((own.keys() | other.keys()) - {"seed"})
    return [name for name in names if own.get(name) != other.get(name)]


def options_of(run: Path) -> dict[str, Any] | None:
    """The options that a run was trained with; None where the folder holds no run of ours. Damaged when they cannot be
    read."""
    path = run / TRAIN_CONFIG
    if not path.is_file():
        return None
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error}); train that run again") from None
    return options if isinstance(options, dict) and "seed" in options else None
