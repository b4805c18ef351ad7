import pytest

from store.shards.reader import Store
from tests.train.making import run_config
from train.config import TrainConfig


@pytest.fixture
def config(store: Store, tmp_path) -> TrainConfig:
    return run_config(store.directory, tmp_path / "run")
