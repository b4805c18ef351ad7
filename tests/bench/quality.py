"""What our recipes and three other trainers learn from the same rows: the second part of `make bench-peers`.

Each trains on the same rows in the same order, batch by batch; another seed draws other weights and another order. FVU is
ours, in float64, on held-out rows. KL and delta CE are those of the language model with each put into it. Where thresholds
choose the latents, each has the one at which a mean of k is active on the held-out rows measured, ours too: L0 is equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from tests.bench.metric import Scored, print_table, score
from tests.bench.trainers import PEERS, RATES, SAE, SIZES, Peer, config_of, first_rows, view_of
from train.loop import train

PLAIN, FISHER = "plain target", "Fisher view"
OURS = {
    f"ours, BatchTopK, {FISHER} (the default)": {"activation": "batchtopk", "target_view": "fisher"},
    f"ours, TopK, {FISHER}": {"activation": "topk", "target_view": "fisher"},
    f"ours, BatchTopK, {PLAIN}": {"activation": "batchtopk", "target_view": "raw"},
    f"ours, TopK, {PLAIN}": {"activation": "topk", "target_view": "raw"},
    f"ours, BatchTopK, {FISHER}, k from 4 k": {"activation": "batchtopk", "target_view": "fisher", "k_start": 4.0},
}
"""Our recipes, as changes of the demo's. The Fisher view knows what an error costs the language model; the plain target is
what the peers have."""
HELDOUT_ROWS = 8192


class Quality:
    """Trains and scores on one store; what was trained is kept in a folder, and not trained again.

    rows, batch: to train on, and of a step. sequences: on which the language model is run.
    """

    def __init__(self, store: Store, python: Path, folder: Path, rows: int, batch: int, sequences: int) -> None:
        self.store = store
        self.python = python
        self.folder = folder
        self.rows = rows
        self.batch = batch
        self.sequences = sequences
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, names: Sequence[str], seeds: int) -> None:
        """Prints a table for each pair of sites, after each seed again. The first seed has every learning rate of the
        peers; the others have that of the least KL."""
        for sites in sorted({PEERS[name] for name in names}):
            peers = [name for name in names if PEERS[name] == sites]
            tried = [(name, lr) for name in peers for lr in RATES[name]]
            by_seed = [self.scores(sites, tried, 0)]
            self.show(sites, by_seed)
            best = [min(RATES[name], key=lambda lr, name=name: by_seed[0][label(name, lr)].spliced("kl")) for name in peers]
            for seed in range(1, seeds):
                by_seed.append(self.scores(sites, list(zip(peers, best, strict=True)), seed))
                self.show(sites, by_seed)

    def show(self, sites: tuple[str, str], by_seed: Sequence[Mapping[str, Scored]]) -> None:
        print(f"{' to '.join(sites)}, {self.rows} rows in batches of {self.batch}, {len(by_seed)} seeds")
        print_table({name: [scored[name] for scored in by_seed if name in scored] for name in by_seed[0]})

    def scores(self, sites: tuple[str, str], tried: Sequence[tuple[str, float]], seed: int) -> dict[str, Scored]:
        """Ours and the peers at their learning rates, by name."""
        made = {name: self.ours(sites, name, seed) for name in OURS}
        made |= {label(name, lr): self.peer(name, lr, seed) for name, lr in tried}
        rows = first_rows(self.store, "heldout", HELDOUT_ROWS, sites)["source"]
        at_k = [with_k(transcoder, rows) for transcoder in made.values()]
        return dict(zip(made, score(at_k, self.store, self.sequences, HELDOUT_ROWS), strict=True))

    def ours(self, sites: tuple[str, str], name: str, seed: int) -> Transcoder:
        slug = name.removeprefix("ours, ").replace(", ", "-").replace(" ", "-")
        run = self.folder / f"{sites[0]}-{self.rows}-seed{seed}" / slug
        return train(
            config_of(self.store, sites, run=run, tokens=self.rows, batch_rows=self.batch, seed=seed, **OURS[name])
        )

    def peer(self, name: str, lr: float, seed: int) -> Transcoder:
        """A peer's weights as a transcoder of ours."""
        sites = PEERS[name]
        folder = self.folder / f"{sites[0]}-{self.rows}-seed{seed}"
        path = folder / f"{name}-{lr}.safetensors"
        if not path.exists():
            steps = self.rows // self.batch
            rows = folder / "rows.safetensors"
            save_file(first_rows(self.store, "train", steps * self.batch, sites, seed), rows)
            warm = config_of(self.store, sites, tokens=self.rows, batch_rows=self.batch).n_warmup_steps
            setting = {"rows": str(rows), "batch": self.batch, "steps": steps, "lr": lr, "warm": warm, "seed": seed}
            with Peer(self.python, name, **setting) as peer:
                for _ in tqdm(range(steps), unit="step", desc=f"{name}, {lr}, seed {seed}"):
                    peer.ask(do="step")
                peer.ask(do="save", path=str(folder / "unfinished"))
            (folder / "unfinished").rename(path)
        arrays = load_file(path)
        d_in, d_sae = arrays["W_enc"].shape
        config = TranscoderConfig(
            name=name,
            architecture=name,
            activation="threshold" if sites == SAE else "topk",
            model=self.store.manifest.recipe.model,
            layer=self.store.manifest.recipe.layer,
            source_site=sites[0],
            target_site=sites[1],
            view=view_of(sites),
            d_in=d_in,
            d_sae=d_sae,
            d_out=arrays["W_dec"].shape[1],
            k=SIZES["k"],
            prefix_sizes=tuple(SIZES["prefixes"]),
        )
        return Transcoder(config, **arrays, threshold=torch.zeros(d_sae))


def label(name: str, lr: float) -> str:
    return f"{name}, {lr}"


@torch.no_grad()
def with_k(transcoder: Transcoder, rows: torch.Tensor) -> Transcoder:
    """The transcoder with one threshold, at which a mean of k latents is active on these rows; TopK as it is."""
    if transcoder.config.activation == "topk":
        return transcoder
    pre_acts = torch.addmm(transcoder.b_enc, rows, transcoder.W_enc).flatten()
    threshold = pre_acts.kthvalue(len(pre_acts) - SIZES["k"] * len(rows)).values
    return replace(transcoder, threshold=threshold.expand(transcoder.config.d_sae).clone())
