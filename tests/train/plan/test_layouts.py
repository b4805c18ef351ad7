"""Which layout a plan chooses, and what it says of it, by hand."""

import re
from dataclasses import replace

import pytest

from store.errors import Refused
from train.plan.config import PlanConfig
from train.plan.layouts import best, layout_of, layouts_of
from train.plan.sizes import hours_of, plan, sizes_of

WIDE = PlanConfig(
    d_model=4608, tokens=1_000_000_000, d_sae=131_072, batch_rows=4096, gpus=8, train_rate=50_000.0, link_rate=450.0
)
WEIGHTS = 4 * (131_072 * (2 * 4608 + 2) + 4608)
"""Bytes of its weights; the plan also counts which latents fired, a number each."""
STEPS = 1_000_000_000 / 4096


def chosen(config: PlanConfig) -> str:
    return best(config, layouts_of(config)).name


def test_a_wide_dictionary_shares_latents_within_a_machine():
    found = best(WIDE, layouts_of(WIDE))
    assert found.name == "latents over 8"
    decoded = 2 * 7 / 8 * 4 * (5 + 1) * 4096 * 4608  # five prefixes and AuxK
    read = 4096 / 8 * 7 * 4 * 4608
    assert found.sent == pytest.approx(decoded + read)
    assert found.seconds_of_exchange(WIDE) == pytest.approx(STEPS * (decoded + read) / 450e9)
    rows = layout_of(WIDE, 1, 8)
    read = 4096 / 8 * 7 / 8 * 4 * 4608
    assert rows.sent == pytest.approx(2 * 7 / 8 * (WEIGHTS + 4 * 131_072) + read, rel=1e-6)
    assert rows.sent > 9 * found.sent


def test_a_narrow_dictionary_and_a_large_batch_share_rows():
    assert chosen(replace(WIDE, d_model=512, d_sae=4096, batch_rows=65_536)) == "rows over 8"


def test_layers_on_gpus_of_their_own_exchange_nothing():
    for config in (replace(WIDE, layers=8), replace(WIDE, layers=3, keep_shards=32)):
        [found] = layouts_of(config)
        assert (found.name, found.sent) == ("one GPU a layer", 0)


def test_a_network_so_slow_that_one_machine_trains_faster_than_eight():
    """Beside 0.7 h of computing on 8 GPUs, and 0.1 h on 64, gradients of all weights take an hour and more."""
    far = replace(WIDE, gpus=64, nodes=8, network_rate=400.0)
    assert chosen(far) == "latents over 8"
    assert "change       8 of a layer's 64 GPUs train it faster than all" in plan(far)
    assert chosen(replace(far, network_rate=4000.0)) == "latents over 8 x rows over 8"


def test_a_slow_link_is_worse_than_one_gpu():
    assert chosen(replace(WIDE, link_rate=0.5)) == "one GPU a layer"
    assert chosen(replace(WIDE, link_rate=0.5, train_rate=None)) == "latents over 8"


def test_latents_within_machines_and_rows_across_send_least_over_the_network():
    """Rings of one GPU of each machine add up gradients of an eighth of the weights, all of them as much as the weights;
    one ring through both machines would send 15/8 times the weights."""
    two = replace(WIDE, gpus=16, nodes=2, network_rate=400.0, train_rate=None)
    found = best(two, layouts_of(two))
    assert found.name == "latents over 8 x rows over 2"
    assert found.gradients.network == pytest.approx(WEIGHTS + 4 * 131_072, rel=1e-4)
    assert layout_of(two, 1, 16).gradients.network == pytest.approx(15 / 8 * (WEIGHTS + 4 * 131_072))
    assert chosen(replace(two, link_rate=None, network_rate=None)) == found.name
    assert found.command(two) == "torchrun --nnodes 2 --nproc-per-node 8 -m train --shard-dictionary 8"


def test_a_sharded_optimizer_keeps_the_part_of_adam_that_is_a_gpus_own():
    whole, sharded = layout_of(WIDE, 1, 4), layout_of(WIDE, 1, 4, shards_optimizer=True)
    assert whole.need.state == 4 * WEIGHTS + 12 * 4608**2
    assert sharded.need.state == pytest.approx((2 + 2 / 4) * WEIGHTS + 12 * 4608**2, rel=1e-3)
    assert sharded.sent == whole.sent


def test_a_sharded_optimizer_is_chosen_where_rows_do_not_fit_without_it():
    """Latents cannot be shared: the smallest prefix has one."""
    small = replace(WIDE, d_sae=8, d_model=65_536, batch_rows=8, k=1)
    free = layout_of(small, 1, 8).need.on_device() - layout_of(small, 1, 8, shards_optimizer=True).need.on_device()
    assert free == 2 * 7 / 8 * 4 * 8 * 2 * 65_536
    exact = (layout_of(small, 1, 8).need.on_device() + 0.8e9 - free / 2) / 1e9
    assert chosen(replace(small, gpu_gigabytes=exact, train_rate=None)) == "rows over 8, sharded optimizer"


def test_a_dictionary_too_wide_for_one_gpu_takes_as_many_as_it_needs():
    one = replace(WIDE, gpus=1, gpu_gigabytes=16.0)
    assert layout_of(one).need.on_device() > 15.2e9 > layout_of(one, 2).need.on_device()
    assert [layout.name for layout in layouts_of(one)] == ["latents over 2"]
    with pytest.raises(ValueError, match="gpu_gigabytes is 2, but of a dictionary shared by 64 .* smaller --batch-rows"):
        layouts_of(replace(one, gpu_gigabytes=2.0))


def test_a_plan_names_the_layouts_their_bytes_and_hours_and_what_to_type():
    text = plan(WIDE)
    said = "latents over 8: 4.32 GB a GPU, which sends 0.86 GB in a step: 0.1 h of the training"
    assert f"layout       {said}; `torchrun --nproc-per-node 8 -m train --shard-dictionary 8`" in text
    assert "or           rows over 8: " in text
    assert "which sends 8.47 GB in a step: 1.3 h of the training; `torchrun --nproc-per-node 8 -m train`" in text
    assert "training, 8 GPUs a layer" in text
    far = replace(WIDE, gpus=64, nodes=8, network_rate=400.0, train_rate=5000.0)
    assert "64 GPUs a layer exchange for longer than they compute: a larger --batch-rows" in plan(far)
    assert "change       --gradient-dtype bfloat16 sends 0.53 GB less of gradients" in plan(far)
    assert "not counted, give --network-rate" in plan(replace(far, network_rate=None))
    layers = replace(WIDE, layers=8)
    assert "one GPU a layer: " in plan(layers)
    assert "exchanges nothing; `torchrun --nproc-per-node 8 -m train --layer all`" in plan(layers)


def test_a_bounded_cache_plans_no_layout_that_following_refuses():
    wide = PlanConfig(d_model=4096, d_sae=2**20, gpus=16, layers=2, keep_shards=32)
    with pytest.raises(Refused, match="keep_shards is 32, whose training shares no dictionary, .*leave out --keep-shards"):
        plan(wide)
    assert "--shard-optimizer" not in plan(replace(WIDE, keep_shards=32))


def test_layers_of_three_gpus_take_turns_on_eight():
    config = PlanConfig(d_model=4096, d_sae=1_400_000, gpus=8, layers=5, tokens=16_384_000, train_rate=20_000.0)
    found = best(config, layouts_of(config))
    assert found.gpus == 3
    turns = hours_of(config, sizes_of(config), found)["training, 3 GPUs a layer"]
    assert turns == pytest.approx(3 * 16_384_000 / (20_000 * 3))  # two layers at once, and the fifth alone


@pytest.mark.parametrize(("gpus", "nodes", "layers"), [(24, 3, 2), (6, 3, 2), (16, 2, 1), (8, 1, 3)])
def test_the_command_starts_the_processes_of_its_layout(gpus, nodes, layers):
    config = replace(WIDE, gpus=gpus, nodes=nodes, layers=layers, batch_rows=6144, train_rate=None)
    for layout in layouts_of(config):
        said = re.search(r"(?:--nnodes (\d+) )?--nproc-per-node (\d+)", layout.command(config))
        started = int(said[1] or 1) * int(said[2]) if said else 1
        assert layout.gpus == 1 or started == layout.gpus, layout.name
