"""Hours of a harvest on one GPU and on many, by hand."""

import pytest

from harvest.planning.config import PlanConfig
from harvest.planning.timing import (
    DISK,
    IDS,
    MODEL,
    NETWORK,
    ROWS,
    TEXT,
    Cluster,
    SpeedProbe,
    Work,
    limit_of,
    parts_of,
    seconds_of,
)

ALONE = Cluster()
WORK = Work(tokens=500, n_bytes=4000, shards=1)


def test_what_happens_one_after_the_other_adds_up():
    speeds = dict(tokens_per_second=100.0, bytes_per_second=1000.0, text_seconds=0.01, shard_seconds=0.02)
    model, text, writing = 500 / 100, 500 * 0.01, 500 * 0.02 + 4000 / 1000
    on_cpu = SpeedProbe(**speeds, start_seconds=20.0, one_after_the_other=True)
    assert seconds_of(on_cpu, WORK, ALONE) == pytest.approx(20 + model + text + writing)
    on_gpu = SpeedProbe(**speeds, start_seconds=20.0)
    assert seconds_of(on_gpu, WORK, ALONE) == pytest.approx(20 + max(model, text, writing))


@pytest.mark.parametrize(
    ("changes", "one_after_the_other", "expected"),
    [
        ({}, False, MODEL),
        ({"text_seconds": 0.02}, False, TEXT),
        ({"shard_seconds": 0.03}, False, ROWS),
        ({"bytes_per_second": 100.0}, False, DISK),
        ({"shard_seconds": 0.008, "bytes_per_second": 1333.0}, False, ROWS),
        ({"shard_seconds": 0.008, "bytes_per_second": 1333.0}, True, MODEL),
    ],
)
def test_the_limit_is_what_the_time_goes_by(changes, one_after_the_other, expected):
    """500 tokens of 4000 bytes: 5 s in the model; a part that others wait for counts with them."""
    speeds = dict(tokens_per_second=100.0, bytes_per_second=4000.0, text_seconds=0.001, shard_seconds=0.001) | changes
    assert limit_of(SpeedProbe(**speeds, one_after_the_other=one_after_the_other), WORK, ALONE) == expected


MUCH = Work(tokens=100_000, n_bytes=8_000_000, shards=100)
"""100 shards of 1,000 tokens, 80 kB each."""
FAST = SpeedProbe(
    tokens_per_second=100.0,
    bytes_per_second=1e6,
    text_seconds=0.001,
    shard_seconds=0.002,
    start_seconds=30.0,
    metric_seconds=50.0,
)


def spent(cluster: Cluster, speed: SpeedProbe = FAST) -> dict[str, float]:
    return {name: seconds for part in parts_of(speed, MUCH, cluster) for name, seconds in part.items()}


def test_shards_and_text_are_shared_out_and_the_disk_is_not():
    assert spent(ALONE) == pytest.approx({MODEL: 1000, TEXT: 100, ROWS: 200, DISK: 8})
    assert spent(Cluster(gpus=4)) == pytest.approx({MODEL: 250, TEXT: 25, ROWS: 50, DISK: 8})
    assert seconds_of(FAST, MUCH, Cluster(gpus=4)) == pytest.approx(30 + 250 + 50)


def test_the_busiest_process_has_whole_shards():
    """100 shards on 8: four processes have 13 and four have 12. On 200: each of 100 has one."""
    assert spent(Cluster(gpus=8))[MODEL] == pytest.approx(130)
    assert spent(Cluster(gpus=8))[ROWS] == pytest.approx(26)
    assert spent(Cluster(gpus=200))[MODEL] == pytest.approx(10)


def test_a_given_disk_is_all_processes_together():
    found = spent(Cluster(gpus=50, disk_rate=100_000.0))
    assert found[DISK] == pytest.approx(80)
    assert limit_of(FAST, MUCH, Cluster(gpus=50, disk_rate=100_000.0)) == DISK


def test_rows_leave_each_machine_over_its_network():
    """10 GPUs on 2 machines: each sends 4 MB of rows, and gets the ids of half the tokens, 5 bytes each."""
    found = spent(Cluster(gpus=10, nodes=2, network_rate=40_000.0))
    assert found == pytest.approx({MODEL: 100, TEXT: 10, ROWS: 20, NETWORK: 100, IDS: 250_000 / 40_000})
    assert limit_of(FAST, MUCH, Cluster(gpus=10, nodes=2, network_rate=40_000.0)) == NETWORK
    assert DISK in spent(Cluster(gpus=10, nodes=2, network_rate=1e9))


def test_on_a_cpu_each_process_does_all_in_turn():
    on_cpu = SpeedProbe(**vars(FAST) | {"one_after_the_other": True})
    assert seconds_of(on_cpu, MUCH, Cluster(gpus=4)) == pytest.approx(30 + 250 + 25 + 50 + 8 + 50)


def test_nothing_left_takes_no_time_but_the_start():
    nothing = Work(tokens=0, n_bytes=0, shards=0)
    assert seconds_of(FAST, nothing, Cluster(gpus=4)) == pytest.approx(80)


def test_options_become_bytes_a_second():
    config = PlanConfig(gpus=16, nodes=2, disk_rate=500.0, network_rate=50.0)
    assert config.cluster == Cluster(gpus=16, nodes=2, disk_rate=5e8, network_rate=5e10)
    with pytest.raises(ValueError, match="gpus is 9 and nodes 2; give --gpus a multiple of --nodes"):
        PlanConfig(gpus=9, nodes=2)
    with pytest.raises(ValueError, match="gpus is 2, but device_map gives one process all GPUs"):
        PlanConfig(gpus=2, device_map="auto")
