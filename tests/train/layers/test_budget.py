"""One budget of active latents over layers: who gets how much, what the pilots cost, and that it can be killed."""

import json
import math
from pathlib import Path

import pytest
import torch

from evaluate.metrics.results import evaluate
from store.errors import Damaged, Refused
from store.loader.batches import batches
from store.shards.metric import read_metric
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.child import forked
from tests.making import with_metric
from tests.train.layers.making import ACTIVE, sparse_store, stores_in
from tests.train.layers.making import budget_options as options
from tests.train.layers.making import options as plain_options
from tests.train.making import assert_same_run
from train.layers.budget import Fall, divided
from train.layers.command import train_layers
from train.layers.config import LayersTrainConfig
from train.loop import train


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    for layer in ACTIVE:
        sparse_store(folder / f"layer{layer}", layer)
    return folder


@pytest.fixture(scope="module")
def shared(stores, tmp_path_factory) -> tuple[LayersTrainConfig, str]:
    """A budget of 16 for both layers, trained, and what was said at its end."""
    config = options(stores, tmp_path_factory.mktemp("shared"), total_l0=16)
    return config, train_layers(config)


def k_of(config: LayersTrainConfig) -> list[int]:
    return [Transcoder.load(one.run_directory).config.k for one in config.configs]


def total_cost(stores: Path, config: LayersTrainConfig) -> float:
    """Estimated KL on held-out rows, of all layers together."""
    total = 0.0
    for one in config.configs:
        store = open_store(stores / f"layer{one.layer}")
        [found] = evaluate([Transcoder.load(one.run_directory)], store, "heldout", 512, torch.device("cpu"))
        total += found.as_json()["estimated_kl"]
    return total


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_layer_that_needs_more_latents_gets_them_and_the_total_cost_falls(stores, shared, tmp_path, seed):
    config, _ = shared
    if seed:
        config = options(stores, tmp_path / "shared", total_l0=16, seed=seed)
        train_layers(config)
    equal = options(stores, tmp_path / "equal", k=8, seed=seed)
    train_layers(equal)
    low, high = k_of(config)
    assert low + high == 16
    assert high >= low + 4
    assert total_cost(stores, config) < 0.95 * total_cost(stores, equal)


def test_the_table_says_what_the_pilots_cost_and_who_got_what(shared):
    config, said = shared
    low, high = k_of(config)
    head, *lines = said.split("\n\n")[1].splitlines()
    assert head.split() == ["layer", "k", "share", "pilot's", "KL,", "k", "4", "k", "16", "saved", "by", "doubling", "k"]
    assert [line.split()[:2] for line in lines] == [["1", str(low)], ["2", str(high)], ["all", "16"]]
    for layer, line in zip((1, 2), lines, strict=False):
        folder = config.configs[layer - 1].run_directory / "pilots/3840-tokens"
        found = json.loads((folder / "pilots.json").read_text())
        assert found["k"] == [4, 16]
        assert line.split()[3:5] == [f"{cost:.4f}" for cost in found["estimated_kl"]]
        assert sorted(path.parent.name for path in folder.glob("*/transcoder.safetensors")) == ["k16", "k4"]


def test_pilots_are_measured_densely_on_rows_after_theirs(stores, shared):
    """In float64, with rows taken from the stream one by one."""
    config, _ = shared
    folder = config.configs[1].run_directory / "pilots/3840-tokens"
    store = open_store(stores / "layer2")
    fisher = read_metric(store, "mlp_out").fisher
    for place, k in enumerate((4, 16)):
        made = Transcoder.load(folder / f"k{k}")
        total = 0.0
        for one in batches(store, "train", 1, view="raw", cursor=128 * 30, stop=128 * 30 + 8192):
            pre = one.source[0].double() @ made.W_enc.double() + made.b_enc
            active = pre * (pre > made.threshold)
            error = active @ made.W_dec.double() + made.b_dec - one.target[0]
            total += float(error @ fisher @ error) / 2
        assert json.loads((folder / "pilots.json").read_text())["estimated_kl"][place] == pytest.approx(
            total / 8192, rel=1e-4
        )


def test_each_layer_is_the_run_of_its_k_by_itself(stores, shared, tmp_path):
    config, _ = shared
    for one, k in zip(config.configs, k_of(config), strict=True):
        fields = {"store": stores / f"layer{one.layer}", "run": tmp_path / f"layer{one.layer}", "k": k}
        alone = type(one)(**(vars(one) | fields))
        train(alone)
        assert_same_run(one, alone)


def test_k_is_in_proportion_to_what_doubling_it_saves():
    """The sum of a - s log2(k) over layers is least where k is in proportion to s: 4 to 1 to 3 of 24 is 12, 3 and 9."""
    falls = [Fall(layer, (4, 16), (2.0, 2.0 - 2 * s)) for layer, s in enumerate((0.4, 0.1, 0.3))]
    assert divided(falls, 24, 999) == [11, 4, 9]  # 3 is below the pilots' 4, and the others share what is left
    assert divided([Fall(0, (2, 20), (1.0, 0.6)), Fall(1, (2, 20), (1.0, 0.4))], 20, 999) == [8, 12]
    without = [Fall(0, (2, 20), (1.0, 1.1)), Fall(1, (2, 20), (1.0, 0.4))]
    assert divided(without, 20, 999) == [2, 18]


def test_no_other_division_costs_less_by_the_pilots():
    falls = [Fall(layer, (4, 16), (1.0, 1.0 - 2 * s)) for layer, s in enumerate((0.10, 0.07, 0.05))]
    found = divided(falls, 24, 999)
    cost = {ks: sum(-f.by_doubling * math.log2(k) for f, k in zip(falls, ks, strict=True)) for ks in _divisions(24)}
    assert cost[tuple(found)] == pytest.approx(min(cost.values()), abs=2e-3)


def _divisions(total: int) -> list[tuple[int, int, int]]:
    return [(a, b, total - a - b) for a in range(4, 17) for b in range(4, 17) if 4 <= total - a - b <= 16]


def test_pilots_that_say_nothing_are_refused():
    falls = [Fall(0, (2, 8), (1.0, 1.1)), Fall(1, (2, 8), (1.0, 1.0))]
    with pytest.raises(Refused, match=r"doubling k saves no estimated KL .* give more than --pilot-tokens 999, or --k"):
        divided(falls, 8, 999)


def test_a_damaged_measurement_is_named(stores, tmp_path):
    config = options(stores, tmp_path, total_l0=12, tokens=128 * 40)
    train_layers(config)
    path = config.configs[0].run_directory / "pilots/1280-tokens/pilots.json"
    path.write_text("{")
    with pytest.raises(Damaged, match="pilots.json cannot be read .* delete it"):
        train_layers(config)
    path.unlink()
    before = k_of(config)
    train_layers(config)
    assert k_of(config) == before


KILLER = """
import signal, sys
from pathlib import Path
from tqdm import tqdm
from tests.killed import ending_of
from tests.train.layers.making import budget_options as options
from train import run
from train.layers.command import train_layers

stores, folder, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

tqdm.monitor_interval = 0
train_layers(options(stores, folder / "whole", total_l0=12, tokens=128 * 40))
points = [(run, "train_step", n) for n in (15, 41, 99)] + [(Path, "replace", n) for n in (3, 8, 13, 18, 23)]
points = points[::every]
for number, point in enumerate(points):
    go = lambda: train_layers(options(stores, folder / f"killed{number}", total_l0=12, tokens=128 * 40))
    assert (first := ending_of(go, point)) == signal.SIGKILL, (point, first)
    assert (last := ending_of(go)) == 0, (point, last)
print(len(points))
"""


@pytest.mark.parametrize("every", ["2", pytest.param("1", marks=pytest.mark.slow)])
def test_killed_anywhere_and_resumed_every_layer_has_the_same_bits(stores, tmp_path, every):
    for number in range(int(forked(KILLER, str(stores), str(tmp_path), every))):
        changes = dict(total_l0=12, tokens=128 * 40)
        whole = options(stores, tmp_path / "whole", **changes).configs
        killed = options(stores, tmp_path / f"killed{number}", **changes).configs
        for one, other in zip(whole, killed, strict=True):
            assert_same_run(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "jumprelu"}, "total_l0 needs batchtopk or topk, which have k active .* activation is jumprelu"),
        ({"layer": 1}, "total_l0 is 12, but for one layer; give several, or --k 12"),
        ({"total_l0": 129}, "total_l0 is 129, but 2 layers can have 2 to 128 active latents"),
        ({"total_l0": 1}, "total_l0 is 1, but 2 layers can have 2 to 128 active latents"),
        ({"follow": True}, "total_l0 needs the metrics of finished stores, which follow lacks"),
        ({"total_l0": None, "pilot_tokens": 9}, "pilot_tokens is 9, but only total_l0 has pilots"),
        ({"pilot_tokens": 127}, "tokens 127 do not fill one batch of 128 rows"),
        (
            {"pilot_tokens": 1279},
            "each pilot of total_l0 would have 9 steps of 128 rows.* give --pilot-tokens 1280 or more",
        ),
    ],
)
def test_what_cannot_share_a_budget_is_refused_at_the_door(stores, tmp_path, changes, message):
    with pytest.raises(Refused, match=message):
        options(stores, tmp_path, **({"total_l0": 12} | changes))


def test_a_layer_without_a_metric_is_refused_before_anything_is_made(tmp_path):
    stores_in(tmp_path / "stores")
    with_metric(open_store(tmp_path / "stores/layer3"))
    with pytest.raises(Refused, match=r"layer8 has no metric of mlp_out; run `make metric LAYER=8`, or give --k"):
        train_layers(plain_options(tmp_path / "stores", tmp_path / "runs", total_l0=12))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("k", "said"), [(96, False), (8, False), (30, True)])
def test_a_k_beside_a_budget_is_told_to_count_for_nothing(stores, tmp_path, caplog, k, said):
    """96 is what k is when it is not given, and 8 an equal share."""
    config = options(stores, tmp_path, total_l0=16, k=k, d_sae=128)
    assert [one.k for one in config.configs] == [8, 8]
    expected = [f"k is {k}, but total_l0 gives each layer a k of its own, 8 on average: leave k out"]
    assert caplog.messages == (expected if said else [])
