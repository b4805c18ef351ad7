"""Options of `evaluate browse` and `browse-export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from store.cli import Options, Positive, Range
from store.errors import Refused


@dataclass(frozen=True, kw_only=True)
class BrowseConfig(Options):
    """Look at everything in a results folder in a web browser: runs, their features, two side by side.

    It writes nothing but notes.json beside a run: the stars, names and notes that you give to its features."""

    results: Path = Path("results")
    """Folder of the runs, one run, a pushed repository or an export; or hf://user/repo/path@revision."""
    host: str = "127.0.0.1"
    """Address to listen on. The default cannot be reached from other machines."""
    port: Annotated[int, Range(0, 65535)] = 0
    """Port to listen on. 0 takes a free one."""
    open: bool = True
    """Open the web browser."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise Refused(f"port is {self.port}; it must be 0 (any free one) to 65535")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class BrowseExportConfig(Options):
    """Write the browser's pages as files that any web host serves."""

    results: Path = Path("results")
    """The same places as of `browse`."""
    out: Path = Path("results-site")
    """Folder to write to: new, empty or an earlier export."""
    features: Positive = 1000
    """Features of each run that get a page, from the first prefix on."""
    notes: bool = True
    """Show stars, names and notes."""
