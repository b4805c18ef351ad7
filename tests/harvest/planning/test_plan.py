from collections import Counter, namedtuple
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.planning.plan import plan
from harvest.planning.timing import Cluster
from harvest.space import metric_bytes, shard_bytes, shards_on_disk
from tests.making import make_recipe


def test_planned_bytes_are_those_written(config):
    config = replace(config, metric_sequences=4)
    (manifest,) = harvest(config)
    for shard in manifest.shards:
        assert 0 <= shard_bytes(config, 16) - shard.bytes < 4096
    files = [(config.directory / f"{name}.safetensors").stat().st_size for name in ("metric", "lens")]
    under_way = 8 * 2 * 5 * 16 * 16  # three squares of the metric's, two of the lens's, by site
    assert 0 <= metric_bytes(config, 16) - sum(files) - 2 * under_way < 5 * 4096
    assert metric_bytes(replace(config, metric_sequences=0), 16) == 0


def test_a_plan_measures_and_writes_nothing(config):
    text = plan(replace(config, layer=(0, 1), tokens=100_000_000))
    assert "195,313 a layer, 2 layers" in text
    assert "tokens/s measured" in text
    assert not (config.store / "layer0").exists()


def test_a_plan_counts_the_metric_that_the_harvest_will_estimate(config):
    without = plan(replace(config, metric_sequences=0))
    assert "metric, lens 0 s" in without
    lines = plan(replace(config, metric_sequences=100_000, tokens=100_000_000)).splitlines()
    [line] = [line for line in lines if line.startswith("metric, lens ")]
    assert "to run sequences back through the model" in line
    assert "metric, lens 0 s" not in line


def test_what_cannot_fit_is_refused_by_how_much(config, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("harvest.space.shutil.disk_usage", lambda folder: usage(10**9, 0, 5 * 10**6))
    monkeypatch.setattr("harvest.text.fit.COUNTED", 10 * 512)  # the text is taken to go on
    asked = replace(config, tokens=3000 * 512)
    needed = 3000 * shard_bytes(config, 16) + metric_bytes(config, 16)
    with pytest.raises(ValueError, match=f"{(needed - 5e6) / 1e9:.2f} GB too little"):
        harvest(asked)
    assert not config.store.exists()
    assert "will refuse to start" in plan(asked)


@pytest.mark.parametrize("size", [512, None])
def test_a_short_text_needs_no_more_room_than_it_fills(config, monkeypatch, size):
    """The text has 62 shards of 512 tokens; 3,000 do not fit, before the first and after it."""
    usage = namedtuple("usage", "total used free")
    room = 63 * shard_bytes(replace(config, shard_tokens=512), 16) + metric_bytes(config, 16)
    monkeypatch.setattr("harvest.space.shutil.disk_usage", lambda folder: usage(10**9, 0, room))
    asked = replace(config, tokens=3000 * 512, shard_tokens=size)
    begun = 0
    if size is not None:
        begun = len(harvest(replace(asked, tokens=512))[0].shards)
    told = plan(asked)
    [manifest] = harvest(asked)
    assert manifest.exhausted
    assert f"shards       {len(manifest.shards) - begun:,} to write" in told
    assert "will refuse to start" not in told


def test_a_ring_needs_room_for_its_shards_and_the_held_out_ones(config):
    ring = replace(config, tokens=100 * 512, heldout_every=10, keep_shards=4)
    assert shards_on_disk(ring, 0) == 4 + 10
    assert shards_on_disk(ring, 98) == 2
    assert shards_on_disk(replace(ring, keep_shards=None), 0) == 100


@given(shards=st.integers(2, 90), finished=st.integers(0, 99), every=st.integers(2, 9), keep=st.integers(2, 9))
def test_the_shards_of_a_ring_are_counted_as_they_are_written(shards, finished, every, keep):
    ring = HarvestConfig(tokens=shards * 512, shard_tokens=512, heldout_every=every, keep_shards=keep)
    splits = Counter(make_recipe(heldout_every=every).split_of(number) for number in range(finished, shards))
    assert shards_on_disk(ring, finished) == splits["heldout"] + min(keep, splits["train"])


def test_a_plan_for_another_harvest_s_store_is_refused(config):
    harvest(config)
    with pytest.raises(ValueError, match="holds another harvest .*layer: 1 != 2"):
        plan(replace(config, layer=2))


def test_a_plan_says_the_start_and_what_waits(config):
    lines = dict(line.split(maxsplit=1) for line in plan(config).splitlines() if line.startswith(("start", "writing")))
    assert "for libraries, the model and the first text" in lines["start"]
    assert lines["writing"].endswith("while the model waits")


def test_a_plan_for_many_gpus_says_how_shards_fall_to_them(config):
    asked = replace(config, tokens=100 * 512)
    lines = dict(line.split(maxsplit=1) for line in plan(asked, cluster=Cluster(gpus=8, nodes=2)).splitlines())
    assert lines["GPUs"].startswith("8 on 2 machines, taken to be as fast as this one; the busiest runs 13 of 100 shards")
    assert "so that 96% of their time is used" in lines["GPUs"]
    assert lines["model"].endswith("for all layers at once on 8 GPUs")
    assert "measured by one process, and taken for all together (--disk-rate)" in lines["writing"]
    assert "change" not in lines
    few = plan(asked, cluster=Cluster(gpus=80, disk_rate=1e8))
    assert "62% of their time is used" in few
    assert "100 MB/s given for all together" in few
    assert "change       --shard-tokens 160 gives each GPU four shards or more" in few
