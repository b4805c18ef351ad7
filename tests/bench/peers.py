"""`make bench-peers`: our training step and what it learns against SAELens, dictionary_learning and sparsify.

Each peer runs in a process and an environment of its own (tests/bench/peer.py, versions in tests/bench/peers.txt), one at a
time: the steps alternate round by round (two of each, of which the second counts), and the rows, sizes, dtype of the
weights and number of threads are the same. SAELens and dictionary_learning cannot train transcoders, so there mlp_out
predicts itself. What each learns is measured by quality.py.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from store.cli import one_line_errors
from store.counts import parse_count
from store.shards.reader import Store, open_store
from tests.bench.quality import Quality
from tests.bench.step import DEMO
from tests.bench.trainers import PEERS, RATES, SAE, TRANSCODER, Peer, config_of, first_rows
from train.checkpoint import candidates
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

OUR_LR, N_BATCHES = 4e-3, 8
WARM_STEPS = {"ours": 30, "peers": 2}


@torch.no_grad()
def speed(store: Store, python: Path, folder: Path, batch_rows: int, rounds: int) -> None:
    """Prints median milliseconds of one step of each, and the median of each round's ratio to ours."""
    config = config_of(store, TRANSCODER, batch_rows=batch_rows)
    module = TrainingTranscoder(config, store.manifest, store.norm, candidates(config, torch.device("cpu")))
    optimizer = make_optimizer(module, OUR_LR)
    for sites in (SAE, TRANSCODER):
        save_file(first_rows(store, "train", N_BATCHES * batch_rows, sites), folder / sites[0])
    data = load_file(folder / TRANSCODER[0])
    ours = list(zip(data["source"].split(batch_rows), data["target"].split(batch_rows), strict=True))
    for step in range(WARM_STEPS["ours"]):
        train_step(module, optimizer, *ours[step % N_BATCHES], OUR_LR)
    times: dict[str, list[float]] = {name: [] for name in ("ours", *PEERS)}
    with ExitStack() as stack:
        peers = [
            stack.enter_context(
                Peer(
                    python,
                    name,
                    rows=str(folder / sites[0]),
                    batch=batch_rows,
                    steps=1000,
                    warm=0,
                    lr=RATES[name][0],
                    seed=0,
                )
            )
            for name, sites in PEERS.items()
        ]
        for number in tqdm(range(-WARM_STEPS["peers"], rounds), unit="round", desc="speed"):
            for _ in range(2):  # the first finds the caches full of the others' weights, as no step of a whole run does
                start = time.perf_counter()
                train_step(module, optimizer, *ours[number % N_BATCHES], OUR_LR)
                seconds = {"ours": time.perf_counter() - start}
            for peer in peers:
                peer.ask(do="step")
                seconds[peer.name] = peer.ask(do="step")
            for name in times if number >= 0 else ():
                times[name].append(seconds[name])
    threads = torch.get_num_threads()
    print(f"one step, batch {batch_rows}, {rounds} rounds, {threads} threads\n| | ms | times ours |\n|---|---|---|")
    for name, own in times.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(own, times["ours"], strict=True))
        print(f"| {name} | {1e3 * statistics.median(own):.0f} | {ratio:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with the peers")
    parser.add_argument("--store", type=Path, default=DEMO)
    parser.add_argument("--rounds", type=int, default=5, help="of the steps that are timed; 0 for none")
    parser.add_argument("--batch", type=int, default=2048, help="rows in a step that is timed")
    parser.add_argument("--rows", type=parse_count, default=64 * 1024, help="to train on for quality; 0 for none")
    parser.add_argument("--quality-batch", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3, help="for quality")
    parser.add_argument("--sequences", type=int, default=32, help="held-out ones on which the language model is run")
    parser.add_argument("--results", type=Path, default=Path("build/quality"), help="keeps what was trained for quality")
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    with one_line_errors("bench-peers"), tempfile.TemporaryDirectory() as folder:
        store = open_store(options.store)
        if options.rounds:
            speed(store, options.python, Path(folder), options.batch, options.rounds)
        if options.rows:
            quality = Quality(
                store, options.python, options.results, options.rows, options.quality_batch, options.sequences
            )
            quality.run(options.only, options.seeds)


if __name__ == "__main__":
    main()
