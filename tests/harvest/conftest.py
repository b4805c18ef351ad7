import pytest

from harvest.config import HarvestConfig


@pytest.fixture
def config(tiny_models, text_file, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        metric_sequences=0,
        model=str(tiny_models["gemma2"]),
        layer=1,
        dataset=str(text_file),
        tokens=3 * 512,
        shard_tokens=512,
        context=32,
        heldout_every=2,
        batch_sequences=5,
        store=tmp_path / "store",
        device="cpu",
        compute_dtype="float32",
    )
