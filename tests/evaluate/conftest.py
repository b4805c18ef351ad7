"""A store, a run on it and a baseline in Google's layout, trained once; and a browser."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluate.compare.config import CompareConfig
from evaluate.compare.one_layer import compare_runs
from store.transcoders.gemma_scope import save_scope2
from tests.evaluate.making import launched
from tests.making import make_store
from train.config import TrainConfig
from train.loop import train


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser: it takes 1.3 CPU seconds to start."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a run on it, and a JumpReLU baseline in Google's layout."""
    folder = tmp_path_factory.mktemp("trained")
    make_store(folder / "store", 24, heldout_every=8)
    common = dict(
        model="tiny",
        layer=1,
        store=folder / "store",
        d_sae=40,
        k=4,
        tokens=32 * 100,
        batch_rows=32,
        lr=5e-3,
        warmup_steps=5,
        device="cpu",
    )
    train(TrainConfig(**common, run=folder / "run"))
    jump = dict(activation="jumprelu", prefix_sizes="none", view="normed")
    save_scope2(train(TrainConfig(**common, **jump, run=folder / "jump")), folder / "scope")
    return folder


def comparison_in(folder: Path) -> CompareConfig:
    return CompareConfig(
        model="tiny",
        layer=1,
        store=folder / "store",
        run=folder / "run",
        baseline=(folder / "scope",),
        baseline_name="a baseline",
        device="cpu",
        sequences=0,
        probes=False,
    )


@pytest.fixture
def trained(trained_once, tmp_path) -> CompareConfig:
    return comparison_in(shutil.copytree(trained_once, tmp_path / "copy"))


@pytest.fixture(scope="session")
def compared(trained_once, tmp_path_factory) -> Path:
    """The folder of a comparison, to be read only."""
    return compare_runs(comparison_in(shutil.copytree(trained_once, tmp_path_factory.mktemp("compared") / "copy")))


@pytest.fixture
def layers(trained, tmp_path) -> CompareConfig:
    """Layers 1 and 2 of one harvest, each with a run and a baseline."""
    second = make_store(tmp_path / "copy" / "layer2", 24, heldout_every=8, layer=2)
    common = dict(
        model="tiny",
        layer=2,
        store=second.directory,
        d_sae=40,
        k=4,
        tokens=32 * 40,
        batch_rows=32,
        lr=5e-3,
        warmup_steps=5,
        device="cpu",
    )
    folder = tmp_path / "copy"
    train(TrainConfig(**common, run=folder / "run2"))
    for old, new in (("store", "layer1"), ("run", "run1")):
        shutil.move(folder / old, folder / new)
    return replace(
        trained, layer=(1, 2), store=folder, run=folder / "run{layer}", baseline=(folder / "run{layer}",), trivial=False
    )
