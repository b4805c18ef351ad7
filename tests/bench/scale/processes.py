"""What each of several processes reads, tokenizes and sends, counted in forks of this one that meet over gloo."""

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

import harvest.loop
from harvest.loop import harvest as run_harvest
from harvest.text.together import TokenSharing
from store.loader.batches import Reader, batches
from store.shards.reader import Store
from tests.bench.scale.harvesting import config_of, make_model, make_text
from tests.bench.scale.steps import LR, store_of
from tests.bench.scale.tables import SHARED_OUT, Costs, Table
from tests.making import make_store
from train.config import TrainConfig
from train.parallel import join
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

TOKENS = 4096 * 80
"""Of the harvest that processes share."""
Found = dict[str, float]


def tables(small: bool) -> list[Table]:
    worlds = [1, 2] if small else [1, 2, 4]
    with TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "store", 24)
        model = make_model(folder / "model", 1, 16)
        text = make_text(folder / "text.jsonl", 2 * TOKENS)
        shared, sent = Costs(), Costs()
        for world in worlds:
            asked = replace(config_of(folder / f"harvest-{world}", model, text, 1, 4096), tokens=TOKENS)
            read = in_processes(world, lambda: read_together(store), folder)
            made = in_processes(world, lambda asked=asked: tokenized(asked), folder)
            step = in_processes(world, lambda: step_together(store_of(folder, 64)), folder)
            parted = in_processes(world, lambda: step_together(store_of(folder, 64), shard_dictionary=True), folder)
            shared.note("KB read by a process", most(read, "read") / 1e3)
            shared.note("tokens tokenized by a process", most(made, "tokens"))
            shared.note("KB of weights and Adam, --shard-dictionary", most(parted, "state") / 1e3)
            sent.note("KB that a process gives to all-reduce in a step", most(step, "summed") / 1e3)
            sent.note("KB that a process gathers in a step", most(step, "gathered") / 1e3)
        two_and_more = [world for world in worlds if world > 1]
        found = [Table("processes", worlds, shared, SHARED_OUT)]
        if len(two_and_more) > 1:
            alone = {name: costs[1:] for name, costs in sent.items()}
            found.append(Table("processes, as many rows for each", two_and_more, alone))
        return found


def most(found: Iterable[Found], name: str) -> float:
    return max(each[name] for each in found)


def in_processes(world: int, act: Callable[[], Found], folder: Path) -> list[Found]:
    """What `act` finds in each of `world` forks, which have the environment that torchrun gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    meeting |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "bench"}
    paths = [folder / f"found-{rank}.json" for rank in range(world)]
    pids = []
    for rank, path in enumerate(paths):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                path.write_text(json.dumps(act()))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    endings = [os.waitpid(pid, 0)[1] for pid in pids]
    assert endings == [0] * world, endings
    return [json.loads(path.read_text()) for path in paths]


def read_together(store: Store) -> Found:
    """Bytes that this process reads while all read an epoch."""
    n_bytes = 0
    real = Reader._read

    def counted(self: Reader, column, number: int, first: int, into: memoryview) -> None:
        nonlocal n_bytes
        n_bytes += into.nbytes
        real(self, column, number, first, into)

    Reader._read = counted  # type: ignore[method-assign]
    ranks = join("cpu")
    rows = 64 // ranks.world
    stop = store.manifest.n_rows("train") // 64 * 64
    for _ in batches(store, "train", rows, rank=ranks.rank, world=ranks.world, sharing=ranks.sharing, stop=stop):
        pass
    return {"read": n_bytes}


def tokenized(config) -> Found:
    """Tokens that this process makes of the text while all harvest."""
    sharings: list[TokenSharing] = []
    encoded = 0

    class Counted(TokenSharing):
        def __init__(self, rank) -> None:
            super().__init__(rank)
            sharings.append(self)

    real = harvest.loop.packed_from

    def alone(*words, **options) -> Iterator:
        nonlocal encoded
        for shard in real(*words, **options):
            encoded += shard.tokens.numel()
            yield shard

    harvest.loop.TokenSharing = Counted  # type: ignore[misc]
    harvest.loop.packed_from = alone
    run_harvest(config)
    return {"tokens": sharings[0].made if sharings else encoded}


def step_together(store: Store, shard_dictionary: bool = False) -> Found:
    """Bytes that this process gives to others in one step of 256 rows of its own, and those of its state."""
    ranks = join("cpu", shard_dictionary)
    config = TrainConfig(
        model="tiny",
        layer=1,
        d_sae=2048,
        k=16,
        batch_rows=256 * ranks.world,
        tokens=10**6,
        lr=LR,
        device="cpu",
        shard_dictionary=shard_dictionary,
    )
    module = TrainingTranscoder(config, store.manifest, store.norm, "float32", ranks=ranks)
    optimizer = make_optimizer(module, LR)
    rows = torch.randn(2, 256, 64, generator=torch.Generator().manual_seed(ranks.rank))
    sent = {"summed": 0, "gathered": 0}
    with torch.no_grad():
        train_step(module, optimizer, *rows, LR)
        count(sent, "all_reduce", "summed", 0)
        count(sent, "all_gather", "gathered", 1)
        train_step(module, optimizer, *rows, LR, 1)
    tensors = [*module.state_dict().values(), *(each for state in optimizer.state.values() for each in state.values())]
    return {**sent, "state": sum(tensor.nbytes for tensor in tensors)}


def count(sent: dict[str, int], name: str, key: str, place: int) -> None:
    """Has the bytes counted that a collective of this name is given, for each other process that they go to."""
    real = getattr(dist, name)

    def counted(*words, **options):
        sent[key] += words[place].nbytes * (1 if place == 0 else dist.get_world_size() - 1)
        return real(*words, **options)

    setattr(dist, name, counted)
