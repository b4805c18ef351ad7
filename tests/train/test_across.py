"""From one layer to another, at the command line: two stores of one harvest, trained on, measured and compared."""

import json
from pathlib import Path

import pytest
import torch

from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder
from tests.command import run
from tests.making import make_store
from tests.train.making import store_of


@pytest.fixture
def stores(tmp_path) -> tuple[Store, Store]:
    return store_of(tmp_path / "layer8", 8), store_of(tmp_path / "layer12", 12)


def options(source: Store, target: Store, folder: Path, *more: str) -> list[str]:
    where = f"--model tiny --layer 8 --store {source.directory} --target-store {target.directory} --run {folder}"
    return [*where.split(), "--device", "cpu", *more]


TRAIN = [
    "--target-layer",
    "12",
    *f"--d-sae 40 --k 4 --tokens {32 * 250} --batch-rows 32 --lr 5e-3 --warmup-steps 5".split(),
]


@pytest.mark.slow
def test_a_transcoder_to_another_layer_is_trained_measured_and_compared(stores, tmp_path, monkeypatch, capsys):
    source, target = stores
    ours, plain = tmp_path / "ours", tmp_path / "plain"
    assert run(monkeypatch, capsys, "train", *options(*stores, ours, *TRAIN))[0] == 0
    assert run(monkeypatch, capsys, "train", *options(*stores, plain, *TRAIN, "--prefix-sizes", "none"))[0] == 0
    made = Transcoder.load(ours)
    assert made.config.architecture == "matryoshka_batchtopk_to_layer12"
    assert (made.config.layer, made.config.target_layer) == (8, 12)
    assert made.config.store_fingerprint == source.fingerprint
    assert made.config.target_store_fingerprint == target.fingerprint

    assert run(monkeypatch, capsys, "evaluate", "metrics", *options(*stores, ours))[0] == 0
    metrics = json.loads((ours / "evaluation" / "metrics.json").read_text())
    shard, other = source.manifest.of_split("heldout"), target.manifest.of_split("heldout")
    x = torch.cat([source.array(s, "resid_mid")[: s.kept] for s in shard]).float()
    y = torch.cat([target.array(s, "mlp_out")[: s.kept] for s in other]).double()
    error = made.decode(made.encode(made.view(x, source.norm))).double() - y
    assert metrics["fvu"] == pytest.approx(float(error.square().sum() / (y - y.mean(0)).square().sum()), rel=1e-4)
    assert metrics["fvu"] < 0.6
    assert metrics["target_store_fingerprint"] == target.fingerprint

    compare = ["evaluate", "compare", *options(*stores, ours, "--baseline", str(plain), "--no-probes")]
    code, errors = run(monkeypatch, capsys, *compare)
    assert code == 1
    assert "give --sequences 0" in errors
    assert run(monkeypatch, capsys, *compare, "--sequences", "0")[0] == 0
    comparison = json.loads((ours / "comparison" / "comparison.json").read_text())
    assert comparison["ours"]["fvu"] == pytest.approx(metrics["fvu"], rel=1e-6)
    assert target.fingerprint in (ours / "comparison" / "report.md").read_text()


def test_stores_that_do_not_belong_together_are_refused_in_one_line(stores, tmp_path, monkeypatch, capsys):
    source, target = stores
    other = store_of(tmp_path / "other", 12, n_shards=4, seed=1)

    def refusal(*command: str) -> str:
        code, errors = run(monkeypatch, capsys, *command)
        assert code == 1
        return errors

    errors = refusal("train", *options(source, other, tmp_path / "run", *TRAIN))
    assert source.fingerprint in errors
    assert other.fingerprint in errors
    assert "were not harvested together: layer: 8 != 12; seed: 0 != 1" in errors
    assert "holds tiny layer 8" in refusal("train", *options(source, source, tmp_path / "run", *TRAIN))
    assert "but of which layer" in refusal("train", *options(source, target, tmp_path / "run", *TRAIN[2:]))
    assert not (tmp_path / "run").exists()


def test_a_run_within_a_layer_takes_no_target_store(tmp_path, monkeypatch, capsys):
    store = make_store(tmp_path / "store")
    where = ["--model", "tiny", "--layer", "1", "--store", str(store.directory), "--run", str(tmp_path / "run")]
    assert run(monkeypatch, capsys, "train", *where, "--device", "cpu", *TRAIN[2:])[0] == 0
    code, errors = run(monkeypatch, capsys, "evaluate", "metrics", *where, "--target-store", str(store.directory))
    assert code == 1
    assert "predicts its own layer, 1; leave out --target-store" in errors
