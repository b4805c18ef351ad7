"""A run whose store lies behind a network."""

from dataclasses import replace

from store.disk import remote
from store.disk.remote import parse_store_path
from tests.distant import Network, behind
from tests.making import make_store
from tests.train.making import assert_same_run, run_config
from train.loop import train


def test_a_run_from_an_object_store_has_the_bits_of_one_from_disk(tmp_path):
    store = make_store(tmp_path / "store", 12)
    config = run_config(store.directory, tmp_path / "local")
    train(config)
    network = Network()
    remote.filesystem.cache_clear()
    distant = replace(config, store=parse_store_path(behind(network, store.directory)), run=tmp_path / "distant")
    train(distant)
    remote.filesystem.cache_clear()
    assert_same_run(config, distant)
    assert network.requests["write"] == 0
