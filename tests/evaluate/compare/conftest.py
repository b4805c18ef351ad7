"""Two transcoders to compare where the language model can be run."""

import pytest

from evaluate.compare.config import CompareConfig
from harvest.config import HarvestConfig
from harvest.loop import harvest
from store.shards.reader import open_store
from tests.store.transcoders.making import make_transcoder


@pytest.fixture
def config(tiny_models, text_file, tmp_path) -> CompareConfig:
    """Two transcoders of one width on a harvest whose tokens are characters, so that no token is a word."""
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
            store=tmp_path / "store",
            device="cpu",
            dtype="float32",
            compute_dtype="float32",
        )
    )
    fingerprint = open_store(tmp_path / "store").fingerprint
    for name, k in (("run", 3), ("other", 4)):
        t = make_transcoder(
            d_in=16, d_out=16, d_sae=20, prefix_sizes=(4, 20), model=model, k=k, store_fingerprint=fingerprint
        )
        t.save(tmp_path / name)
    return CompareConfig(
        model=model,
        layer=1,
        store=tmp_path / "store",
        run=tmp_path / "run",
        baseline=(tmp_path / "other",),
        device="cpu",
        sequences=4,
    )
