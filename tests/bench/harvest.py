"""`python -m tests.bench.harvest`: harvesting against the bare forward of the same tokens, in one run, interleaved.

The harvest tokenizes, checks, shuffles, sums, checksums and writes; the bare forward stops at the same
layer and keeps nothing.
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

from harvest import embedded
from harvest.config import HarvestConfig
from harvest.corpus import Corpus, open_corpus
from harvest.loop import harvest
from harvest.model import load_model, resolve_compute_dtype
from harvest.tokens import SpecialTokens, pack, tokenize
from store.devices import resolve_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--shard-tokens", type=int, default=4096)
    options = parser.parse_args()
    config = HarvestConfig(
        model=embedded.NAME, layer=9, dataset="pip:docstrings", tokens=options.shards * options.shard_tokens,
        shard_tokens=options.shard_tokens, batch_sequences=8,
    )  # fmt: skip
    device = resolve_device(config.device)
    model = load_model(config.model, 9, device, resolve_compute_dtype("auto", device))
    opened = open_corpus(config)
    texts = list(islice(opened.documents(0), 4000))
    corpus = Corpus(opened.name, opened.revision, lambda start: iter(texts[start:]))
    documents = tokenize(texts, model.tokenizer)
    stream = pack(documents, 0, SpecialTokens.of(model.tokenizer), config.shard_sequences, config.context)
    packed = [shard.tokens.long().to(device) for shard in islice(stream, options.shards)]

    @torch.no_grad()
    def bare() -> None:
        for tokens in packed:
            for batch in tokens.split(config.batch_sequences):
                model.bridge(batch, return_type=None, stop_at_layer=10)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def harvested() -> None:
        with tempfile.TemporaryDirectory() as folder:
            harvest(replace(config, store=Path(folder) / "store"))

    times: dict[str, list[float]] = {"bare forward": [], "harvest": []}
    with patch("harvest.loop.load_model", lambda *args: model), patch("harvest.loop.open_corpus", lambda config: corpus):
        bare()
        for _ in range(options.rounds):
            for name, run in (("bare forward", bare), ("harvest", harvested)):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    n_tokens = sum(tokens.numel() for tokens in packed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:14s} {n_tokens / seconds:8,.0f} tokens/s  {medians['bare forward'] / seconds:5.2f} x bare forward")


if __name__ == "__main__":
    main()
