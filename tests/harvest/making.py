"""Harvests of made-up text, the files that they leave, and damage to these."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import harvest.opening
from harvest.config import HarvestConfig
from harvest.model.language_model import LanguageModel
from tests.command import words
from tests.harvest.kills import Model, corpus_of

TEXTS = [f"document {number} " * (number * 7 % 11 + 1) for number in range(200)]

REPAIR = ("harvest", "repair", "--device", "cpu", "--batch-sequences", "5", "--store")


class Instant(Model, LanguageModel):
    """The model that needs no time, for those who insist on a LanguageModel and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.__dict__["tokenizer"] = AutoTokenizer.from_pretrained(folder)

    __repr__ = object.__repr__


def instant_harvest(tokenizer: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> HarvestConfig:
    """Of TEXTS, by a model that needs no time."""
    model = Instant(tokenizer)
    monkeypatch.setattr(harvest.opening, "load_model", lambda *args, **options: model)
    monkeypatch.setattr(harvest.opening, "open_corpus", lambda config: corpus_of(TEXTS))
    return HarvestConfig(
        metric_sequences=0,
        model="m",
        layer=1,
        dataset="c",
        tokens=16 * 64,
        shard_tokens=64,
        context=8,
        heldout_every=4,
        device="cpu",
        compute_dtype="float32",
        store=store,
    )


def options_of(config: HarvestConfig, layer: str) -> list[str]:
    """The command line of a test's harvest, of layers as people write them."""
    return words(
        model=config.model,
        layer=layer,
        dataset=config.dataset,
        tokens=config.tokens,
        shard_tokens=512,
        context=32,
        heldout_every=2,
        batch_sequences=5,
        store=config.store,
        device="cpu",
        compute_dtype="float32",
        metric_sequences=config.metric_sequences,
    )


def store_files(directory: Path) -> dict[str, bytes]:
    """A store's files; a lock that a killed writer left is no part of it."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".lock"}


def shards_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("shard-*"))


def damage(flipped: Path, cut: Path, lost: Path) -> None:
    """Three shards, each in its own way."""
    content = bytearray(flipped.read_bytes())
    content[-100] ^= 1
    flipped.write_bytes(content)
    os.truncate(cut, 1000)
    lost.unlink()


def harvest_with_metric(model: Path, text: Path, store: Path) -> HarvestConfig:
    """A harvest of eight shards that estimates its metric and lens."""
    return HarvestConfig(
        model=str(model),
        layer=1,
        dataset=str(text),
        tokens=64 * 16,
        context=16,
        shard_tokens=128,
        heldout_every=4,
        device="cpu",
        dtype="float32",
        compute_dtype="float32",
        store=store,
        metric_sequences=12,
    )
