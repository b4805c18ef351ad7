"""Runs to be browsed, what their shards and weights say, and a server and a browser for them."""

import contextlib
import json
import math
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn

from evaluate.features import samples, split_text
from evaluate.features.config import FeaturesConfig
from evaluate.promoted import tokens as promoted
from harvest.model.output_weights import OutputWeights
from store.disk.files import write_text
from store.layout import FEATURES
from store.shards.reader import open_store
from store.transcoders.transcoder import Transcoder
from tests.evaluate.dense import Dense, dense
from tests.evaluate.making import PATIENCE
from tests.evaluate.report.making import measured
from tests.making import hash_of, make_store
from tests.store.transcoders.making import make_transcoder

SCRIPT, HEBREW = "<script>alert(1)</script>", "שלום"

RUN = "tiny/layer1/ours"

WORDS = (SCRIPT, HEBREW, " alpha", " beta")
"""What every fourth token says."""

UNEMBEDDING = torch.randn(98, 10, generator=torch.Generator().manual_seed(0))

SIZES, D_SAE, LEAST = (10, 40, 80), 80, 5


def make_results(folder: Path, tokenizer: Path) -> Path:
    """A measured run with features in which every fourth token is hostile, an empty run, and one with damaged files."""
    store = make_store(folder / "store", n_shards=8, context=64, shard_sequences=4, tokenizer_hash=hash_of(tokenizer))
    run = folder / "results" / RUN
    make_transcoder(d_in=12, d_out=10, d_sae=80, prefix_sizes=(10, 40, 80), name="ours").save(run)
    with pytest.MonkeyPatch.context() as patch:
        for module in (promoted, split_text):
            patch.setattr(module, "token_texts", lambda tokenizer, ids: [WORDS[index % 4] for index in ids])
        weights = OutputWeights(UNEMBEDDING, torch.ones(10))
        patch.setattr(promoted, "read_output_weights", lambda model, revision: weights)
        samples.collect_samples(FeaturesConfig(store=store.directory, run=run, tokenizer=tokenizer, device="cpu"))
    write_text(run / "evaluation" / "metrics.json", json.dumps(measured("ours", 0.25, store)))
    write_text(run / "comparison" / "google_metrics.json", json.dumps(measured("theirs", 0.4321, store)))
    write_text(run / "evaluation" / "report.html", "<p>the report</p>")
    log = [{"tokens": n * 100, "fvu": 1 / n, "fvu_max": 2 / n, "fvu_mean": 1.5 / n} for n in range(1, 9)]
    write_text(run / "training_log.jsonl", "".join(json.dumps(record) + "\n" for record in log))
    write_text(folder / "results" / "tiny" / "layer1" / "empty" / "train_config.json", "{}")
    damaged = folder / "results" / "tiny" / "layer1" / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "activation_samples" / FEATURES).write_bytes(b"PAR1 is not all of it")
    (damaged / "evaluation" / "metrics.json").write_text("{")
    write_text(folder / "secret" / "report.html", "outside")
    return folder / "results"


@dataclass
class Truth:
    """What the shards and the weights say."""

    d: Dense
    cosine: np.ndarray
    both: np.ndarray
    fired: np.ndarray
    n_rows: int
    logits: np.ndarray

    def together(self, a: int, b: int) -> float:
        return self.both[a, b] / math.sqrt(self.fired[a] * self.fired[b]) if self.both[a, b] >= LEAST else 0.0

    def refines(self, coarse: int, fine: int) -> float:
        """P(coarse | fine) - P(coarse), of latents of later prefixes."""
        if prefix_of(fine) <= prefix_of(coarse) or self.both[coarse, fine] < LEAST:
            return 0.0
        return self.both[coarse, fine] / self.fired[fine] - self.fired[coarse] / self.n_rows


def prefix_of(latent: int) -> int:
    return min(size for size in SIZES if size > latent)


def truth_of(results: Path) -> Truth:
    store, transcoder = open_store(results.parent / "store"), Transcoder.load(results / RUN)
    d = dense(store, transcoder)
    weights = transcoder.W_dec.double().numpy()
    cosine = np.array([[w @ v / math.sqrt((w @ w) * (v @ v)) for v in weights] for w in weights])
    fires = d.fired[~np.isnan(d.latents[:, 0])]
    both = np.zeros((D_SAE, D_SAE), int)
    for row in fires:
        on = np.flatnonzero(row)
        for latent in on:
            both[latent, on] += 1
    return Truth(d, cosine, both, both.diagonal().copy(), len(fires), weights @ UNEMBEDDING.double().numpy().T)


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # a browser that is there before the server waits for it
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def browsing(chromium, width: int = 1000, scheme: str = "light", failing: bool = False):
    """A page in a headless browser, in which nothing may be complained of but, if said so, an answer of 404 or 500."""
    complaints = []
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.set_default_timeout(PATIENCE)
    try:
        yield page
    finally:
        context.close()
    assert [text for text in complaints if not (failing and text.startswith("Failed to load resource"))] == []
