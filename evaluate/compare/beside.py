"""What is measured beside the transcoders of a comparison: nulls of the run, and runs of other seeds."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.compare.config import CompareConfig
from evaluate.siblings import share_out, siblings_of
from store.layout import WEIGHTS, nulls_in
from store.shards.reader import Store
from store.transcoders.layouts import load_run
from store.transcoders.transcoder import Transcoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beside:
    """The transcoders that show what chance does."""

    nulls: Mapping[str, Transcoder] = field(default_factory=dict)
    """By what keeps them from learning."""
    seeds: tuple[Mapping[str, Transcoder], Mapping[str, Transcoder]] = ({}, {})
    """By folder, the runs that differ in the seed alone from ours, and from the one that it is judged against."""


@dataclass(frozen=True)
class BesideFolders:
    """The folders of the same, found but not opened."""

    run: Path
    other: Path | None
    nulls: Sequence[Path]
    seeds: tuple[Sequence[Path], Sequence[Path]]

    @classmethod
    def of(cls, config: CompareConfig) -> "BesideFolders":
        """What lies beside the run and the first baseline. Refused for --seeds that are of neither."""
        run = config.run_directory
        judged = [run, *config.baseline[:1]]
        found = share_out(config.seeds, judged) if config.seeds else [siblings_of(folder) for folder in judged]
        return cls(
            run=run,
            other=config.baseline[0] if config.baseline else None,
            nulls=nulls_in(run) if config.trivial else [],
            seeds=(found[0], found[1] if len(found) > 1 else []),
        )

    @property
    def files(self) -> list[Path]:
        """The weights that a comparison depends on."""
        return [folder / WEIGHTS for folder in (*self.nulls, *self.seeds[0], *self.seeds[1])]

    def open(self, store: Store) -> Beside:
        """The transcoders. Those that were trained on another store are left out, with a warning."""
        ours, other = ({str(folder): load_run(folder) for folder in folders} for folders in self.seeds)
        return Beside(
            nulls=_of_this_store({folder.name: load_run(folder) for folder in self.nulls}, store),
            seeds=(_of_this_store(ours, store), _of_this_store(other, store)),
        )


def _of_this_store(found: Mapping[str, Transcoder], store: Store) -> dict[str, Transcoder]:
    kept = {}
    for name, transcoder in found.items():
        if transcoder.config.store_fingerprint == store.fingerprint:
            kept[name] = transcoder
        else:
            trained_on = transcoder.config.store_fingerprint
            log.warning("%s was trained on store %s and is left out: this is %s", name, trained_on, store.fingerprint)
    return kept
