"""Options of `python -m store`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from store.cli import Options, StoreOptions, StorePathOption


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(StoreOptions):
    """Read every shard of a store and name each that is missing, cut short or changed; exit code 1 then."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Options):
    """Write a finished run in the file layout of another project, read it back, and compare its outputs with the run's."""

    run: Positional[Path]
    """Folder of the run."""
    layout: str
    """gemma-scope-2 (Google's), saelens (sae-lens 6.54), or run (ours)."""
    out: Path
    """Folder to write; it must not hold anything yet."""
    store: StorePathOption | None = None
    """Folder or URL of the store that the run was trained on, for the norm's gain and for held-out rows; the one
    that the run records when not given, or data/MODEL/layerL if that is it. The run's own folder has the norm too."""
