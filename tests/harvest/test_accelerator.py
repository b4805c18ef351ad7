"""The harvest on the pretend accelerator: the rows and the metric of the host."""

from dataclasses import replace

import pytest
import torch

from harvest import loop
from harvest.loop import harvest
from harvest.metric.gradients import TOKENS_AT_ONCE
from harvest.model.loading import load_model
from harvest.planning import probe as probes
from harvest.planning.plan import plan
from harvest.pool import Lanes
from harvest.shard import run_shard
from harvest.text.tokens import PackedShard
from store.shards.metric import read_metric
from store.shards.reader import check_shards, open_store
from tests.pretend import DEVICE, Ghost, computing, counting


@pytest.fixture
def config(config):
    return replace(config, dtype="float32", layer=(1, 2), metric_sequences=6)


@pytest.mark.parametrize("room", [1 << 40, pytest.param(1 << 10, marks=pytest.mark.slow)])
def test_a_harvest_equals_the_hosts(config, tmp_path, accelerator, monkeypatch, room):
    monkeypatch.setattr("harvest.space.free_bytes", lambda device: room)
    write = loop.write_shard

    def write_there(*arguments):
        with computing():
            write(*arguments)

    monkeypatch.setattr(loop, "write_shard", write_there)
    monkeypatch.setitem(TOKENS_AT_ONCE, "cuda", 1)  # labels are drawn anew for each backward pass
    host = replace(config, store=tmp_path / "host")
    device = replace(host, store=tmp_path / "device", device=accelerator)
    harvest(host)
    harvest(device)
    for layer in (1, 2):
        one, other = open_store(host.directories[layer]), open_store(device.directories[layer])
        check_shards(other)
        for shard, same in zip(one.manifest.shards, other.manifest.shards, strict=True):
            assert (shard.summed_on, same.summed_on) == (None, DEVICE.type if room > 1 << 20 else None)
            for name in ("tokens", "token_index", "resid_mid", "mlp_out"):
                torch.testing.assert_close(other.array(same, name), one.array(shard, name), rtol=1e-4, atol=1e-5)
        found, expected = (read_metric(store, "mlp_out") for store in (other, one))
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found.fisher, expected.fisher, rtol=1e-3, atol=1e-7)


def test_a_shard_whose_rows_stay_on_the_device_waits_for_tokens_alone(config, accelerator):
    lanes = Lanes(load_model(config.model, 1, DEVICE, torch.float32))
    packed = PackedShard(tokens=torch.full((10, 32), 5, dtype=torch.int32), first_document=0, next_document=1)
    waits = {}
    for on_device in (True, False):
        run_shard(lanes, packed, config, (1,), 1, on_device=on_device)  # whatever is found out once
        with counting() as waits[on_device]:
            run_shard(lanes, packed, config, (1,), 1, on_device=on_device)
    batches = 2  # of five sequences
    assert waits[False] - waits[True] == {"to host": 2 * batches}
    assert waits[True]["to host"] == 0


def test_the_model_lies_on_the_device(config, accelerator):
    model = load_model(config.model, 1, DEVICE, torch.float32)
    assert model.device == DEVICE
    assert all(isinstance(parameter, Ghost) for parameter in model.whole.parameters())


@pytest.mark.parametrize("room", [1 << 40, 1 << 10])
def test_a_plan_measures_there_what_the_harvest_does(config, accelerator, monkeypatch, room):
    monkeypatch.setattr("harvest.space.free_bytes", lambda device: room)
    stays = room > 1 << 20
    run, write = probes.run_shard, probes.write_shard
    seen = []

    def running(lanes, *given, on_device):
        seen.append((lanes.models[0].plain is not None, on_device))
        return run(lanes, *given, on_device=on_device)

    def writing(writers, rows, number):
        [one] = rows.values()
        seen.append((one.tokens.numel(), one.device))
        write(writers, rows, number)

    monkeypatch.setattr(probes, "run_shard", running)
    monkeypatch.setattr(probes, "write_shard", writing)
    text = plan(replace(config, device=accelerator))
    assert set(seen) == {(True, stays), (config.tokens_a_shard, DEVICE.type if stays else None)}
    assert "while the model runs" in text
    assert ("GPU memory   about" in text) == stays
    assert "tokens/s measured without TransformerLens's bridge, 5 sequences at once" in text
