"""`python -m tests.bench.ablation STORE`: what each choice of the default buys, on held-out rows.

The demo's recipe on fewer rows (of another width, too), and the same with one choice changed. A change within CLOSE of the
default, and the default itself, are trained with three seeds and compared seed by seed. What is finished is kept in
--results, and not done again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from evaluate.metrics.results import evaluate
from store.cli import one_line_errors, parse
from store.counts import parse_count
from store.disk.files import write_text
from store.loader.batches import batches
from store.shards.reader import Store, open_store
from store.sparse.scan import Entries
from train.activations.base import Selection
from train.checkpoint import identity
from train.config import Activation, TrainConfig
from train.export import export
from train.loop import run_to_the_end, start
from train.parallel import Ranks
from train.presets import expand
from train.run import Run, Strand

CLOSE = 0.005
"""Held-out FVU: seeds differ by up to 0.002."""
FIGURES = ("estimated_kl", "fvu")
SEEDS = (0, 1, 2)
SEED = 99
"""Of the order of the rows that `from_data` takes."""
CPU = torch.device("cpu")
ROWS, HELDOUT_ROWS = 2048, 8192
RESULT = "measured.json"
TURNS = 50
"""Steps in which every latent has had its turn to fire, under MinFire."""
CALIBRATED, AVERAGE = "calibrated", "average"
"""How the threshold was found: on training rows afterwards, or by the moving average of training."""
DEFAULT, MOVING = "the default", "threshold from the moving average"


def tied(run: Run) -> None:
    """The encoder starts as the decoder's transpose (arXiv 2406.04093)."""
    run.module.encoder.copy_(run.module.decoder)


def from_data(run: Run) -> None:
    """Latent i starts by reading the direction of training row i's source, and writing that of its target."""
    module, config = run.module, run.config
    stream = batches(
        run.store,
        "train",
        config.d_sae,
        view=config.input_view,
        sites=(config.source_site, config.target_site),
        seed=SEED,
        stop=config.d_sae,
    )
    [batch] = stream
    for weight, rows in zip((module.encoder, module.decoder), module.normalise(batch.source, batch.target), strict=True):
        weight.copy_(torch.nn.functional.normalize(rows, dim=1))


def scaled_encoder(factor: float, run: Run) -> None:
    run.module.encoder.mul_(factor)


def centre_nothing(run: Run) -> None:
    """The view as it is, at the same mean square."""
    module = run.module
    variance = 1 / module.input_scale**2
    module.input_scale.copy_((variance + module.input_mean.square().mean()).rsqrt())
    module.input_mean.zero_()


def free_decoder(run: Run) -> None:
    """Decoder rows of any norm, selection by the pre-activations alone."""
    run.module.renormalise = lambda: None


def fold_norms(run: Run) -> None:
    """Decoder rows' norms go to the encoder and its bias instead of being dropped: the function stays what it was."""
    module = run.module

    def renormalise() -> None:
        norm = torch.linalg.vector_norm(module.decoder, dim=1)
        module.decoder.div_(norm[:, None])
        module.encoder.mul_(norm[:, None])
        module.b_enc.mul_(norm)

    module.renormalise = renormalise


def min_fire(run: Run) -> None:
    """MinFire: latents in turn fire on the row where their pre-activation is largest, in the place of the batch's smallest
    latents, until 90% of training (the BatchTopK recipe of a sweep over 209 autoencoders of SynthSAEBench)."""
    activation = run.module.activation
    select = activation.select
    n_latents = run.config.d_sae
    turn = math.ceil(n_latents / TURNS)

    def selected(x: Tensor, encoder: Tensor, b_enc: Tensor, step: int, may_sync: bool) -> Selection:
        selection = select(x, encoder, b_enc, step, may_sync)
        if step >= 0.9 * run.config.n_steps:
            return selection
        entries = selection.entries
        theirs = torch.arange(step * turn, (step + 1) * turn) % n_latents
        theirs = theirs[~torch.isin(theirs, entries.latent)]
        value, row = torch.addmm(b_enc[theirs], x, encoder[theirs].T).max(0)
        fires = value > 0
        kept = entries.largest(len(entries) - int(fires.sum()))
        parts = (
            torch.cat([kept.value, value[fires]]),
            torch.cat([kept.row, row[fires].to(kept.row.dtype)]),
            torch.cat([kept.latent, theirs[fires].to(kept.latent.dtype)]),
        )
        order = (parts[2] * len(x) + parts[1]).argsort()
        entries = Entries(*(part[order] for part in parts))
        return Selection(entries, entries.value)

    activation.select = selected


def no_momentum(run: Run) -> None:
    """Adam's beta1 is 0 (Gemma Scope, arXiv 2408.05147)."""
    for group in run.optimizer.param_groups:
        group["betas"] = (0.0, 0.999)


@dataclass(frozen=True)
class Variant:
    """What is changed: fields of the config, or the run before its first step."""

    changes: dict[str, object]
    prepare: Callable[[Run], None] = lambda run: None
    lr_scale: float = 1.0


SLOW_JUMPRELU: dict[str, object] = {"activation": "jumprelu", "k_start": 4.0, "threshold_lr": 5.0, "l0_weight": 10.0}
VARIANTS = {
    DEFAULT: Variant({}),
    "view normed": Variant({"view": "normed"}),
    "view raw": Variant({"view": "raw"}),
    "input not centred": Variant({}, centre_nothing),
    "AuxK off": Variant({"aux_weight": 0.0}),
    "AuxK of 256 latents a step": Variant({"aux_latents": 256}),
    "dead after 20,000 tokens": Variant({"dead_after": 20_000}),
    "dead after 20,000 tokens, AuxK weight 1/4": Variant({"dead_after": 20_000, "aux_weight": 0.25}),
    "encoder starts as the decoder": Variant({}, tied),
    "both start from rows of data": Variant({}, from_data),
    "encoder starts at a tenth": Variant({}, partial(scaled_encoder, 0.1)),
    "encoder starts three times as large": Variant({}, partial(scaled_encoder, 3.0)),
    "decoder norms free": Variant({}, free_decoder),
    "decoder norms folded into the encoder": Variant({}, fold_norms),
    "learning rate halved": Variant({}, lr_scale=0.5),
    "learning rate doubled": Variant({}, lr_scale=2.0),
    "no warm-up": Variant({"warmup_steps": 0}),
    "learning rate constant after warm-up": Variant({"min_lr": 1.0}),
    "Adam without momentum": Variant({}, no_momentum),
    "batch 256": Variant({"batch_rows": 256}),
    "batch 1,024": Variant({"batch_rows": 1024}),
    "last prefix weighs 4 times": Variant({"prefix_weights": "1,1,1,1,4"}),
    "first prefix weighs 4 times": Variant({"prefix_weights": "4,1,1,1,1"}),
    "prefixes detached": Variant({"detach_prefixes": True}),
    "random prefixes": Variant({"random_prefixes": 5}),
    "not nested": Variant({"prefix_sizes": "none"}),
    "TopK": Variant({"activation": "topk"}),
    "JumpReLU": Variant({"activation": "jumprelu"}),
    "JumpReLU, gradients through the step": Variant({"activation": "jumprelu", "step_gradients": True}),
    "JumpReLU, penalty rises over 80%": Variant({"activation": "jumprelu", "l0_warmup": 0.8}),
    "JumpReLU, silent latents resampled": Variant({"activation": "jumprelu", "resample_every": 20}),
    "JumpReLU, k from 4 k": Variant({"activation": "jumprelu", "k_start": 4.0}),
    "JumpReLU, k from 4 k, slower thresholds": Variant(SLOW_JUMPRELU),
    "k from 2 k": Variant({"k_start": 2.0}),
    "k from 4 k": Variant({"k_start": 4.0}),
    "rate falls over the last fifth": Variant({"lr_decay": "last-fifth"}),
    "rate falls over the last fifth, and is halved": Variant({"lr_decay": "last-fifth"}, lr_scale=0.5),
    "silent latents resampled": Variant({"resample_every": 20}),
    "k from 2 k, silent latents resampled": Variant({"k_start": 2.0, "resample_every": 20}),
    "penalty on dense latents, weight 0.1": Variant({"dense_weight": 0.1}),
    "penalty on dense latents, weight 1": Variant({"dense_weight": 1.0}),
    "MinFire": Variant({}, min_fire),
    "bfloat16 tables": Variant({"tables": "bfloat16"}),
    "encoder rows start at norm 1": Variant({"encoder_norm": 1.0}),
}


def measured(name: str, seed: int, store: Store, base: TrainConfig, results: Path) -> dict:
    """Trains a variant and measures it on held-out rows, unless that was done before."""
    variant = VARIANTS[name]
    kind = f"{base.tokens}_{base.lr}_{base.activation}_{base.d_sae}_{base.dead_after}"
    folder = results / kind / f"{name.replace(' ', '_').replace('/', '_')}_{seed}"
    if (folder / RESULT).exists():
        return json.loads((folder / RESULT).read_text())
    recipe = store.manifest.recipe
    config = replace(
        base,
        model=recipe.model,
        layer=recipe.layer,
        store=store.directory,
        run=folder,
        seed=seed,
        lr=base.lr * variant.lr_scale,
        device="cpu",
        heldout_every=0,
        checkpoint_every=10**9,
        **variant.changes,
    )
    run = start(config, store, CPU, identity(config, store, CPU), Ranks())
    variant.prepare(run)
    [[transcoder]] = run_to_the_end([Strand([run], store)], Ranks())
    made = {CALIBRATED: transcoder, AVERAGE: export(run.module, store.fingerprint, "")}
    found = evaluate(list(made.values()), store, "heldout", ROWS, CPU, limit=HELDOUT_ROWS)
    results = {key: one.as_json() for key, one in zip(made, found, strict=True)}
    write_text(folder / RESULT, json.dumps(results) + "\n")
    return results


def row(name: str, store: Store, base: TrainConfig, results: Path) -> str:
    """A line of the table: means over the seeds, and each seed's difference from the default's FVU."""

    def of(variant: str, seed: int) -> dict:
        if variant == MOVING:
            return measured(DEFAULT, seed, store, base, results)[AVERAGE]
        return measured(variant, seed, store, base, results)[CALIBRATED]

    def difference(key: str, seed: int) -> float:
        return of(name, seed)[key] - of(DEFAULT, seed)[key]

    seeds = SEEDS if abs(difference("fvu", 0)) < CLOSE else SEEDS[:1]
    found = [of(name, seed) for seed in seeds]
    cells = [name]
    for key in FIGURES:
        if key not in found[0]:
            cells += ["", ""]  # a store without a metric
            continue
        cells.append(f"{statistics.mean(result[key] for result in found):.4f}")
        cells.append("" if name == DEFAULT else ", ".join(f"{difference(key, seed):+.4f}" for seed in seeds))
    first = statistics.mean(next(iter(result["fvu_per_prefix"].values())) for result in found)
    l0, dead = (statistics.mean(result[key] for result in found) for key in ("l0_mean", "dead_fraction"))
    return f"| {' | '.join(cells)} | {first:.4f} | {l0:.1f} | {dead:.1%} |"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--tokens", type=parse_count, default=100_000)
    parser.add_argument("--lr", type=float, help="the demo's when not given")
    parser.add_argument("--d-sae", type=int, help="the demo's when not given")
    parser.add_argument("--dead-after", type=int, help="the demo's when not given")
    parser.add_argument("--activation", choices=get_args(Activation), default="batchtopk")
    parser.add_argument("--results", type=Path, default=Path("results/ablation"))
    parser.add_argument("--only", nargs="*", choices=[*VARIANTS, MOVING], default=[*VARIANTS, MOVING])
    options = parser.parse_args()
    with one_line_errors("ablation"):
        store = open_store(options.store)
        base = parse(TrainConfig, "ablation", expand(["--preset", "demo", "--tokens", str(options.tokens)]))
        base = replace(
            base,
            lr=options.lr or base.lr,
            d_sae=options.d_sae or base.d_sae,
            dead_after=options.dead_after or base.dead_after,
            activation=options.activation,
        )
        heads = ["changed", "estimated KL", "minus the default, by seed", "FVU", "minus the default, by seed"]
        heads += ["FVU of the smallest prefix", "L0", "dead"]
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for name in options.only:
            print(row(name, store, base, options.results), flush=True)


if __name__ == "__main__":
    main()
