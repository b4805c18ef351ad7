"""`python -m tests.harvest.kills FOLDER KILLS SEED TARGETS`: a harvest that dies at random file operations, and is resumed.

An exception that nothing catches stands in for SIGKILL: after it, no file operation of that life succeeds any more.
"""

import gc
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Literal

import torch

import harvest.loop
import harvest.opening
import store.shards.safetensors_files
from harvest.config import SITES, HarvestConfig
from harvest.text.corpus import Corpus
from store.mlp.forward import Mlp
from store.views import Norm
from tests.killed import Killed, Life, files_of


class Tokenizer:
    bos_token_id, eos_token_id, pad_token_id = 2, 1, 0
    bos_token = "<bos>"

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3 + ord(character) % 90 for character in text] for text in texts]}


class Model:
    """Sites that depend on the tokens alone, at once."""

    revision, tokenizer_hash, d_model, tokenizer, device = "r", "t", 4, Tokenizer(), torch.device("cpu")
    devices = {device}  # noqa: RUF012

    def check_sites(self, sites, layers) -> None:
        """It has them all."""

    def sites_of(self, layers) -> tuple[str, ...]:
        """All of them."""
        return tuple(SITES)

    def without_bridge(self, tokens, layers) -> "Model":
        """There is none."""
        return self

    def norm_of(self, layer: int) -> Norm:
        return Norm(kind="rms", eps=1e-6, gain=torch.ones(4))

    def mlp_of(self, layer: int) -> Mlp:
        """relu(resid_mid) / 2, which is what `run_layers` has, without a norm."""
        one = torch.eye(4)
        norm = Norm(kind="none", eps=0.0, gain=torch.ones(4))
        return Mlp(kind="plain", activation="relu", norm=norm, post_norm=None, W_up=one, W_down=one / 2)

    def run_layers(self, tokens, layers, sites) -> dict:
        pre = tokens.float()[..., None] * torch.linspace(1, 2, 4)
        made = {"resid_pre": pre, "attn_out": pre, "resid_mid": 2 * pre, "mlp_out": pre, "resid_post": 3 * pre}
        return {layer: {site: made[site] * 2.0**layer for site in sites} for layer in layers}


def corpus_of(texts: list[str]) -> Corpus:
    return Corpus("c", "1", lambda start: iter(texts[start:]))


def main(folder: Path, kills: int, seed: int, targets: Literal["stored", "recomputed"]) -> None:
    life, draw, model = Life(), random.Random(seed), Model()
    texts = [f"document {number} " * (number % 7 + 1) for number in range(200)]
    harvest.opening.load_model = lambda *args, **options: model  # type: ignore[assignment]
    harvest.opening.open_corpus = lambda config: corpus_of(texts)
    os.fsync = life.mortal(lambda descriptor: None)
    Path.replace, Path.unlink = life.mortal(Path.replace), life.mortal(Path.unlink)
    store.shards.safetensors_files.reserve = life.mortal(store.shards.safetensors_files.reserve)

    def run(name: str) -> None:
        harvest.loop.harvest(
            HarvestConfig(
                metric_sequences=0,
                model="m",
                layer=(0, 1),
                dataset="c",
                tokens=4 * 64,
                shard_tokens=64,
                context=8,
                heldout_every=2,
                device="cpu",
                compute_dtype="float32",
                store=folder / name,
                targets=targets,
            )
        )

    life.begin()
    run("whole")
    operations, whole, killed, stores = life.seen, files_of(folder / "whole"), 0, 0
    gc.collect()
    gc.freeze()
    while killed < kills:
        finished = False
        while not finished:
            life.begin(draw.randrange(operations))
            try:
                run("cut")
                finished = True
            except Killed:
                killed += 1
            gc.collect()  # a dead process holds no lock: neither may what the exception still refers to
        assert files_of(folder / "cut") == whole, f"after {killed} kills"
        stores += 1
        life.begin()
        shutil.rmtree(folder / "cut")
    print(f"{killed} kills at {operations} operations, {stores} stores: all byte-identical")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])  # type: ignore[arg-type]
