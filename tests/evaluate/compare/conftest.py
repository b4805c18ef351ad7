"""Two transcoders to compare where the language model can be run."""

import shutil
from pathlib import Path

import pytest

from evaluate.compare.config import CompareConfig
from harvest.config import HarvestConfig
from harvest.loop import harvest
from store.shards.reader import open_store
from tests.store.transcoders.making import make_transcoder


@pytest.fixture(scope="session")
def harvested_once(tiny_models, text_file, tmp_path_factory) -> Path:
    """Two transcoders of one width on a harvest whose tokens are characters, so that no token is a word."""
    folder = tmp_path_factory.mktemp("harvested")
    model = str(tiny_models["gemma2"])
    harvest(
        HarvestConfig(
            model=model,
            layer=1,
            dataset=str(text_file),
            tokens=2048,
            shard_tokens=512,
            context=32,
            heldout_every=2,
            store=folder / "store",
            device="cpu",
            dtype="float32",
            compute_dtype="float32",
        )
    )
    fingerprint = open_store(folder / "store").fingerprint
    for name, k in (("run", 3), ("other", 4)):
        t = make_transcoder(
            d_in=16, d_out=16, d_sae=20, prefix_sizes=(4, 20), model=model, k=k, store_fingerprint=fingerprint
        )
        t.save(folder / name)
    return folder


@pytest.fixture
def config(tiny_models, harvested_once, tmp_path) -> CompareConfig:
    """A comparison of the two, in a folder of its own."""
    folder = shutil.copytree(harvested_once, tmp_path / "copy")
    return CompareConfig(
        model=str(tiny_models["gemma2"]),
        layer=1,
        store=folder / "store",
        run=folder / "run",
        baseline=(folder / "other",),
        device="cpu",
        sequences=4,
    )
