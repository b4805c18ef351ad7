"""`make bench-peers`: our training step and what it learns against SAELens, dictionary_learning and sparsify.

Each peer runs in a process and an environment of its own (tests/bench/peer.py, versions in tests/bench/peers.txt), one at a
time: the steps alternate round by round (two of each, of which the second counts), and the rows, sizes, dtype of the
weights and number of threads are the same. For quality each trains on the same rows in the same order; FVU is ours, in
float64, on held-out rows, and KL and delta CE are those of the language model with each put into it. Thresholds give a
mean of k active latents: ours on training rows, the peers' on those that are measured, which can only help them. SAELens
and dictionary_learning cannot train transcoders, so there mlp_out predicts itself.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from evaluate.metrics.results import evaluate
from evaluate.model.splice import splice
from harvest.model.language_model import LanguageModel
from harvest.model.loading import model_of
from store.cli import one_line_errors, parse
from store.counts import parse_count
from store.loader.batches import batches
from store.shards.manifest import Split
from store.shards.reader import Store, open_store
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import ViewName
from tests.bench.step import DEMO
from train.checkpoint import candidates
from train.config import TrainConfig
from train.loop import train
from train.presets import expand
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer, train_step

WORKER = Path(__file__).with_name("peer.py")
SAE, TRANSCODER = ("mlp_out", "mlp_out"), ("resid_mid", "mlp_out")
PEERS = {"saelens": SAE, "dictionary_learning": SAE, "sparsify": TRANSCODER}
"""The peers, and what each reads and predicts here."""
RATES = {
    "saelens": (3e-4, 1e-3, 3e-3),
    "dictionary_learning": (2.8e-4, 1e-3, 2.8e-3),
    "sparsify": (7.1e-3, 2.1e-3, 2.1e-2),
}
"""The learning rate that each recommends for this width, and two others, since these runs are short."""
OURS = ("batchtopk", "topk")
EQUAL_TIME = 2
"""Ours trains on this many times the rows as well: less time than any peer takes, while the ratios above are larger."""
OUR_LR, N_BATCHES = 4e-3, 8
WARM_STEPS = {"ours": 30, "peers": 2}
HELDOUT_ROWS = 8192
SPLICED = 32
"""Held-out sequences on which each is put into the language model."""
SIZES = dict(d_sae=8192, k=64, prefixes=[1024, 2048, 4096, 6144, 8192])
CPU = torch.device("cpu")


class Peer:
    """A peer's process: told in lines of JSON what to do, it answers in lines of JSON."""

    def __init__(self, python: Path, name: str, **setting: object) -> None:
        command_line = [str(python), str(WORKER), name, json.dumps(SIZES | setting)]
        self.process = subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = name

    def ask(self, **request: object) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise ValueError(f"{self.name} ended; its error is above")
        return json.loads(answer)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()


def first_rows(store: Store, split: Split, rows: int, sites: tuple[str, str]) -> dict[str, Tensor]:
    """The first rows of our training stream, or of the held-out shards."""
    stream = batches(store, split, rows, view=view_of(sites), sites=sites, shuffle=split == "train", stop=rows)
    batch = next(stream)
    stream.close()
    return {"source": batch.source, "target": batch.target}


def view_of(sites: tuple[str, str]) -> ViewName:
    return "raw" if sites == SAE else "rms"


def config_of(store: Store, sites: tuple[str, str], **changes: object) -> TrainConfig:
    recipe = store.manifest.recipe
    demo = parse(TrainConfig, "bench", expand(["--preset", "demo"]))
    return replace(
        demo,
        model=recipe.model,
        layer=recipe.layer,
        store=store.directory,
        source_site=sites[0],
        target_site=sites[1],
        device="cpu",
        heldout_every=0,
        checkpoint_every=10**9,
        **changes,
    )


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
                Peer(python, name, rows=str(folder / sites[0]), batch=batch_rows, steps=1000, warm=0, lr=RATES[name][0])
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


def artefact(path: Path, name: str, store: Store) -> Transcoder:
    """A peer's weights as a transcoder of ours; but for TopK with the threshold that gives k on the rows measured."""
    arrays, sites = load_file(path), PEERS[name]
    d_in, d_sae = arrays["W_enc"].shape
    k, threshold = SIZES["k"], torch.zeros(d_sae)
    if sites == SAE:
        rows = first_rows(store, "heldout", HELDOUT_ROWS, sites)["source"]
        pre_acts = torch.addmm(arrays["b_enc"], rows, arrays["W_enc"]).flatten()
        threshold += pre_acts.kthvalue(len(pre_acts) - k * len(rows)).values
    config = TranscoderConfig(
        name=name,
        architecture=name,
        activation="threshold" if sites == SAE else "topk",
        model=store.manifest.recipe.model,
        layer=store.manifest.recipe.layer,
        source_site=sites[0],
        target_site=sites[1],
        view=view_of(sites),
        d_in=d_in,
        d_sae=d_sae,
        d_out=arrays["W_dec"].shape[1],
        k=k,
        prefix_sizes=tuple(SIZES["prefixes"]),
    )
    return Transcoder(config, **arrays, threshold=threshold)


@torch.no_grad()
def measured(transcoder: Transcoder, store: Store, model: LanguageModel) -> str:
    [found] = evaluate([transcoder], store, "heldout", 2048, CPU, limit=HELDOUT_ROWS, quiet=True)
    table = splice([transcoder], store, model, SPLICED, False)
    kl, ce = (table.estimate(table.statistic(0, key)).value for key in ("kl", "delta_ce"))
    return f"{found.fvu:.4f} | {kl:.4f} | {ce:+.4f} | {found.l0_mean:.1f} | {found.dead_fraction:.1%}"


def quality(store: Store, python: Path, folder: Path, rows: int, batch_rows: int, names: list[str]) -> None:
    """Prints what each is worth after the same rows, and ours after EQUAL_TIME times as many."""
    heads = ["", "rows", "learning rate", "FVU", "KL", "delta CE", "L0", "dead"]
    print(f"{rows} rows in batches of {batch_rows}\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    steps = rows // batch_rows
    model = model_of(store.manifest.recipe, CPU)
    for sites in sorted({PEERS[name] for name in names}):
        path = folder / f"{sites[0]}-quality.safetensors"
        save_file(first_rows(store, "train", steps * batch_rows, sites), path)
        for n_rows, activation in product((rows, EQUAL_TIME * rows), OURS):
            config = config_of(
                store,
                sites,
                run=folder / f"{sites[0]}-{n_rows}-{activation}",
                tokens=n_rows,
                batch_rows=batch_rows,
                activation=activation,
            )
            name = f"ours, {activation}, {' to '.join(sites)}"
            print(f"| {name} | {n_rows} | {config.lr} | {measured(train(config), store, model)} |", flush=True)
        for name in (name for name in names if PEERS[name] == sites):
            for lr in RATES[name]:
                with Peer(
                    python, name, rows=str(path), batch=batch_rows, steps=steps, lr=lr, warm=config.n_warmup_steps
                ) as peer:
                    for _ in tqdm(range(steps), unit="step", desc=f"{name}, {lr}"):
                        peer.ask(do="step")
                    peer.ask(do="save", path=str(folder / "peer.safetensors"))
                made = artefact(folder / "peer.safetensors", name, store)
                print(f"| {name} | {rows} | {lr} | {measured(made, store, model)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with the peers")
    parser.add_argument("--store", type=Path, default=DEMO)
    parser.add_argument("--rounds", type=int, default=5, help="of the steps that are timed; 0 for none")
    parser.add_argument("--batch", type=int, default=2048, help="rows in a step that is timed")
    parser.add_argument("--rows", type=parse_count, default=32 * 1024, help="to train on for quality; 0 for none")
    parser.add_argument("--quality-batch", type=int, default=512)
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    with one_line_errors("bench-peers"), tempfile.TemporaryDirectory() as folder:
        store = open_store(options.store)
        if options.rounds:
            speed(store, options.python, Path(folder), options.batch, options.rounds)
        if options.rows:
            quality(store, options.python, Path(folder), options.rows, options.quality_batch, options.only)


if __name__ == "__main__":
    main()
