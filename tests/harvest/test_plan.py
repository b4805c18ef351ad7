import shutil
import time
from collections import Counter, namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.plan import SpeedProbe, measure, plan
from harvest.space import metric_bytes, shard_bytes, shards_on_disk
from tests.making import make_recipe, on_threads


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


def test_a_plan_adds_up_what_happens_one_after_the_other():
    speeds = dict(tokens_per_second=100.0, bytes_per_second=1000.0, text_seconds=0.01, shard_seconds=0.02)
    model, text, writing = 500 / 100, 500 * 0.01, 500 * 0.02 + 4000 / 1000
    on_cpu = SpeedProbe(**speeds, start_seconds=20.0, one_after_the_other=True)
    assert on_cpu.seconds(500, 4000) == pytest.approx(20 + model + text + writing)
    assert SpeedProbe(**speeds, start_seconds=20.0).seconds(500, 4000) == pytest.approx(20 + max(model, text, writing))


def test_a_plan_says_the_start_and_what_waits(config):
    lines = dict(line.split(maxsplit=1) for line in plan(config).splitlines() if line.startswith(("start", "writing")))
    assert "for libraries, the model and the first text" in lines["start"]
    assert lines["writing"].endswith("while the model waits")


SHAPES = {
    "small shards": dict(tokens=48 * 512),
    "two layers": dict(layer=(0, 1), tokens=32 * 512),
    "large shards and batches": dict(tokens=10 * 4096, shard_tokens=4096, context=64, batch_sequences=16),
    "a metric, at once": dict(tokens=16 * 512, metric_sequences=40, batch_sequences=16),
    "compressed": dict(tokens=10 * 4096, shard_tokens=4096, format="zarr", compression="zstd"),
    "every site, so that the bridge runs": dict(
        tokens=24 * 512, sites=("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    ),
}
TIMED = ("harvest.plan", "harvest.metric.gradients")


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.slow] * (n > 1)) for n, each in enumerate(SHAPES)])
def test_planned_seconds_are_those_of_a_harvest(config, monkeypatch, name):
    """By the time of the processor, with one thread, in one of three tries: other work on the machine moves that too."""
    for module in TIMED:
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=time.process_time))
    asked = replace(config, **SHAPES[name])
    off: list[float] = []
    with on_threads(1):
        plan(asked)  # imports, and whatever is made once
        while not off or (min(off) > 0.25 and len(off) < 3):
            planned = measure(asked, time.process_time())
            start = time.process_time()
            harvest(asked)
            seconds = time.process_time() - start
            off.append(abs(planned.speed.seconds(planned.tokens, planned.n_bytes) / seconds - 1))
            shutil.rmtree(asked.store)
    assert min(off) <= 0.25, off


@pytest.mark.parametrize(
    ("changes", "one_after_the_other", "expected"),
    [
        ({}, False, "the model's speed"),
        ({"text_seconds": 0.02}, False, "reading and tokenizing the text"),
        ({"shard_seconds": 0.03}, False, "shuffling rows and adding them up, on the host's processor"),
        ({"bytes_per_second": 100.0}, False, "the disk's speed"),
        ({"shard_seconds": 0.008, "bytes_per_second": 1333.0}, False, "shuffling rows and adding them up"),
        ({"shard_seconds": 0.008, "bytes_per_second": 1333.0}, True, "the model's speed"),
    ],
)
def test_a_plan_names_what_the_time_goes_by(changes, one_after_the_other, expected):
    """500 tokens of 4000 bytes: 5 s in the model; a part that others wait for counts with them."""
    speeds = dict(tokens_per_second=100.0, bytes_per_second=4000.0, text_seconds=0.001, shard_seconds=0.001) | changes
    probe = SpeedProbe(**speeds, one_after_the_other=one_after_the_other)
    assert probe.limit(500, 4000).startswith(expected)
