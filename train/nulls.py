"""The nulls of a run: dictionaries that cannot learn, trained beside it on the same rows."""

from dataclasses import replace

from store.layout import null_folder
from train.config import NULLS, TrainConfig


def with_nulls(config: TrainConfig) -> list[TrainConfig]:
    """The options, and after them those of the nulls that are to be trained beside."""
    found = [config]
    for null in NULLS if config.nulls else ():
        folder = null_folder(config.run_directory, null)
        found.append(replace(config, null=null, nulls=False, run=folder, features_every=0))
    return found
