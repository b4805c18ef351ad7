"""The trainers that `make bench-peers` compares: ours, and three others, each in a process of its own."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from store.cli import parse
from store.loader.batches import batches
from store.shards.manifest import Split
from store.shards.reader import Store
from store.views import ViewName
from train.config import TrainConfig
from train.presets import expand

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
SIZES = dict(d_sae=8192, k=64, prefixes=[1024, 2048, 4096, 6144, 8192])


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


def first_rows(store: Store, split: Split, rows: int, sites: tuple[str, str], seed: int = 0) -> dict[str, Tensor]:
    """The first rows of our training stream of this seed, or of the held-out shards."""
    stream = batches(store, split, rows, view=view_of(sites), sites=sites, shuffle=split == "train", stop=rows, seed=seed)
    batch = next(stream)
    stream.close()
    return {"source": batch.source, "target": batch.target}


def view_of(sites: tuple[str, str]) -> ViewName:
    return "raw" if sites == SAE else "rms"


def config_of(store: Store, sites: tuple[str, str], **changes: object) -> TrainConfig:
    """The demo's recipe with changes."""
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
