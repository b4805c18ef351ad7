"""A folder of several layers' stores stands for the one that is meant, in every room."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate.config import EvaluateConfig
from evaluate.runs import store_of
from harvest.config import HarvestConfig
from harvest.info import info
from harvest.store_config import InfoConfig
from store.config import VerifyConfig
from store.disk.remote import Remote
from store.errors import Refused
from store.parents import layer_folder
from store.verify import verify
from tests.making import make_store
from train.config import TrainConfig


@pytest.fixture
def parent(tmp_path) -> Path:
    for layer in (1, 3):
        make_store(tmp_path / f"layer{layer}", layer=layer)
    return tmp_path


def test_the_layer_is_found_in_a_parent_and_a_store_is_itself(parent):
    assert layer_folder(parent, 3) == parent / "layer3"
    assert layer_folder(parent / "layer1", 3) == parent / "layer1"
    assert layer_folder(parent / "nothing", 3) == parent / "nothing"


def test_the_only_layer_of_a_parent_needs_no_name(tmp_path):
    make_store(tmp_path / "layer1")
    assert layer_folder(tmp_path, 8) == tmp_path / "layer1"


def test_which_layer_is_refused_in_one_line_that_lists_them(parent):
    with pytest.raises(
        Refused, match=f"{re.escape(str(parent))} holds the stores of layers 1, 3, but none of layer 8"
    ) as e:
        layer_folder(parent, 8)
    assert "\n" not in str(e.value)


def test_the_layer_is_found_at_a_url():
    make_store(Remote("memory://parents/layer3"), layer=3)
    assert layer_folder(Remote("memory://parents"), 3) == Remote("memory://parents/layer3")
    assert layer_folder(Remote("memory://parents"), 8) == Remote("memory://parents")


def test_every_room_takes_a_parent(parent):
    assert str(parent / "layer3") in verify(VerifyConfig(store=parent, layer=3))
    assert str(parent / "layer3") in info(InfoConfig(store=parent, layer=3, batch_rows=2))
    assert TrainConfig(model="tiny", store=parent, layer=1).store_directory == parent / "layer1"
    both = TrainConfig(model="tiny", store=parent, layer=1, target_layer=3)
    assert (both.store_directory, both.target_directory) == (parent / "layer1", parent / "layer3")
    apart = replace(both, store=parent / "layer1")
    assert apart.target_directory == Path("data/tiny/layer3")
    assert store_of(EvaluateConfig(store=parent, layer=3)) == parent / "layer3"


def test_a_layer_is_harvested_beside_those_of_its_parent(parent, tmp_path):
    assert HarvestConfig(store=parent, layer=3).directory == parent / "layer3"
    assert HarvestConfig(store=parent, layer=8).directory == parent / "layer8"
    assert HarvestConfig(store=parent / "layer3", layer=8).directory == parent / "layer3"
    assert HarvestConfig(store=tmp_path / "new", layer=8).directory == tmp_path / "new"
