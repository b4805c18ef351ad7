"""Processes that torchrun started: one harvest together, byte for byte that of one process, and an end when one dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.ranks import Rank
from tests.child import OUTSIDE, PATIENCE, ROOT, TORCHRUN
from tests.harvest.making import options_of, store_files

SCRIPT = """
import sys, time
from datetime import timedelta
import harvest.ranks
rank = harvest.ranks.Rank.of_environment()
harvest.ranks.LIMIT = timedelta(seconds=3 if sys.argv[1] == "sleeps" else 600)
print(rank.gather({"from": rank.index}), flush=True)
if sys.argv[1] == "leaves" and rank.index:
    rank.close()
if sys.argv[1] == "ends" and rank.index:
    sys.exit()
if rank.index:
    time.sleep(600)
try:
    rank.gather(0)
except ConnectionError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "what", ["ends", pytest.param("leaves", marks=pytest.mark.slow), pytest.param("sleeps", marks=pytest.mark.slow)]
)
def test_a_process_that_ends_leaves_or_hangs_is_noticed_by_the_one_that_waits(what):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, what]
    first, second = (
        subprocess.Popen(
            command,
            env=OUTSIDE | shared | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    )
    try:
        said, _ = first.communicate(timeout=PATIENCE)
    finally:
        second.kill()
        second.communicate()
    gathered, told = said.splitlines()
    assert gathered == "[{'from': 0}, {'from': 1}]"
    assert told.startswith("another process of this harvest has ended, or cannot be reached (")
    assert told.endswith("then run the same command again")


@pytest.fixture
def asked(config, tmp_path) -> HarvestConfig:
    """Eighty shards of two layers, of text with many short documents."""
    path = tmp_path / "short.jsonl"
    documents = ["word " * (number % 7 + 1) + str(number) for number in range(3000)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return replace(config, layer=(0, 1), tokens=80 * 512, dataset=str(path))


def torchrun(config: HarvestConfig, world: int) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", *TORCHRUN[:-1], str(world), "-m", "harvest", *options_of(config, "0,1")]
    environment = OUTSIDE | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def end_of(process: subprocess.Popen) -> tuple[str, str]:
    """What a harvest that must end well writes to standard output and error."""
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-1000:]
    return said, errors


def assert_same(one: HarvestConfig, other: HarvestConfig) -> None:
    for layer, directory in one.directories.items():
        assert store_files(other.directories[layer]) == store_files(directory)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_processes_give_the_bytes_of_one_and_each_tokenizes_an_nth(asked, tmp_path, world):
    one = replace(asked, store=tmp_path / "one")
    harvest(one)
    said, errors = end_of(torchrun(asked, world))
    assert said.count("80 shards") == 2
    assert_same(one, asked)
    lines = re.findall(rf"process (\d) of {world} tokenized ([\d,]+) of the ([\d,]+) tokens read", errors)
    assert sorted(rank for rank, _, _ in lines) == [str(rank) for rank in range(world)]
    made = [int(tokens.replace(",", "")) for _, tokens, _ in lines]
    (whole,) = {int(tokens.replace(",", "")) for _, _, tokens in lines}
    assert sum(made) == whole
    assert whole > 80 * 31 * 16
    assert max(made) < 1.1 * whole / world


@pytest.mark.slow
@pytest.mark.parametrize(("world", "then"), [(2, 2), (4, 2), (2, 3)])
def test_a_rank_killed_and_other_processes_later_end_as_one_process_would(asked, tmp_path, world, then):
    one = replace(asked, store=tmp_path / "one")
    harvest(one)
    first = torchrun(asked, world)
    lock, finished = (asked.directories[0] / name for name in ("writer-1.lock", "shard-00009.safetensors"))
    while not finished.exists() and first.poll() is None:
        time.sleep(0.01)
    os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode != 0
    assert "SIGKILL" in errors or "another process of this harvest has ended" in errors
    kept = {path: path.stat().st_mtime_ns for path in asked.store.rglob("shard-0000[13].safetensors")}
    assert len(kept) == 4
    assert len(list(asked.store.rglob("shard-*.safetensors"))) < 160
    said, _ = end_of(torchrun(asked, then))
    assert said.count("80 shards") == 2
    assert_same(one, asked)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished shards were made again"


def test_processes_that_were_given_their_numbers_by_hand_exchange_nothing(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not Rank(1, 4).exchanges
    assert Rank(1, 4).gather("mine") == ["mine"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert Rank(1, 4).exchanges
    assert not Rank().exchanges
