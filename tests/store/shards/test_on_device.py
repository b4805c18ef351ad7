"""A shard whose rows lie on a device: shuffled and added up there, and the same file."""

import json
from dataclasses import replace

import pytest
import torch

from harvest.shard import check_finite
from store.shards.writer import StoreWriter
from tests.making import files_of, make_mlp, make_norm, make_recipe, make_rows
from tests.pretend import DEVICE, counting

SUMS = 6
"""Arrays of sums: two for each of two sites, and for the rms view."""


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        pytest.param({}, {"to device": 2, "to host": 2 + SUMS}, id="plain"),
        pytest.param({"exclude_norm": 2.0}, {"to device": 2, "to host": 2 + SUMS + 1}, id="far rows left out"),
        pytest.param({"targets": "recomputed"}, {"to device": 2, "to host": 1 + SUMS + 1}, id="targets recomputed"),
    ],
)
def test_a_shard_on_the_device_is_the_file_of_the_hosts(tmp_path, accelerator, changes, copies):
    mlp = make_mlp() if "targets" in changes else None
    recipe = make_recipe(**changes)
    places = {"host": torch.device("cpu"), "device": DEVICE}
    for name, device in places.items():
        with StoreWriter(tmp_path / name, recipe, make_norm(), mlp=mlp) as writer:
            for number in range(2):
                rows = make_rows(number, recipe)
                if mlp is not None:
                    rows.sites["mlp_out"] = mlp(rows.sites["resid_mid"].to(recipe.torch_dtype))
                there = {site: values.to(device) for site, values in rows.sites.items()}
                with counting() as waits:
                    entry = writer.append(replace(rows, sites=there))
                assert entry.summed_on == (None if name == "host" else DEVICE.type)
                assert waits == (copies if name == "device" else {})
    host, device = files_of(tmp_path / "host"), files_of(tmp_path / "device")
    assert host.keys() == device.keys()
    for name in host:
        if name.endswith(".json"):
            one, other = (json.loads(files[name]) for files in (host, device))
            assert [shard.pop("summed_on") for shard in other["shards"]] == [DEVICE.type] * len(one["shards"])
            assert one == other
        else:
            assert host[name] == device[name]


def test_values_on_the_device_are_checked_by_one_figure_a_site(accelerator):
    values = torch.randn(4, 8, 16).bfloat16()
    sites = {"resid_mid": values.to(DEVICE), "mlp_out": values.to(DEVICE)}
    with counting() as waits:
        check_finite(sites, "shard 7", 0)
    assert waits == {"item": 2}
    values[1, 3, 2] = torch.inf
    with pytest.raises(ValueError, match="mlp_out is not finite in shard 7, sequence 1, token 3"):
        check_finite({"mlp_out": values.to(DEVICE)}, "shard 7", 0)
