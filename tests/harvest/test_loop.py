import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch

from harvest import loop, opening
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.loading import load_model
from store.disk.lock import WRITER_LOCK, WriterLock
from store.shards.reader import check_shards, open_store
from store.shards.writer import StoreWriter
from tests.child import forked
from tests.harvest.making import instant_harvest, store_files
from tests.making import BOS, EOS, PAD


@pytest.fixture
def asked(tiny_models, tmp_path, monkeypatch) -> HarvestConfig:
    return instant_harvest(tiny_models["gemma2"], tmp_path / "whole", monkeypatch)


def test_stored_rows_are_the_models_sites_at_their_tokens(config):
    harvest(config)
    store = open_store(config.directory)
    check_shards(store)
    model = load_model(config.model, 1, torch.device("cpu"), torch.float32)
    assert [shard.split for shard in store.manifest.shards] == ["train", "heldout", "train"]
    for shard in store.manifest.shards:
        tokens, index = store.array(shard, "tokens"), store.array(shard, "token_index").long()
        sites = model.run(tokens)
        for site in ("resid_mid", "mlp_out"):
            expected = sites[site].flatten(0, 1)[index].bfloat16()
            torch.testing.assert_close(store.array(shard, site), expected, rtol=2**-7, atol=1e-6)
        special = torch.isin(tokens.flatten()[index], torch.tensor([BOS, EOS, PAD]))
        assert not special[: shard.kept].any()
        assert special[shard.kept :].all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_model_run_in_bfloat16_gives_nearly_the_rows_of_float32(config, tmp_path, dtype):
    low = replace(config, compute_dtype="bfloat16", dtype=dtype, store=tmp_path / "low")
    harvest(replace(config, dtype=dtype))
    harvest(low)
    one, other = open_store(config.directory), open_store(low.directory)
    assert one.fingerprint != other.fingerprint
    for mine, theirs in zip(one.manifest.shards, other.manifest.shards, strict=True):
        a, b = one.array(mine, "mlp_out").float(), other.array(theirs, "mlp_out").float()
        assert torch.equal(one.array(mine, "token_index"), other.array(theirs, "token_index"))
        assert 0 < (a - b).norm() / a.norm() < 0.05


def test_extending_continues_the_same_store(config, tmp_path):
    harvest(config)
    before = store_files(config.directory)
    longer = replace(config, tokens=5 * 512)
    harvest(longer)
    whole = replace(longer, store=tmp_path / "whole")
    harvest(whole)
    assert store_files(config.directory) == store_files(whole.directory)
    assert all(store_files(config.directory)[name] == data for name, data in before.items() if "manifest" not in name)


def test_finished_harvest_does_nothing(config, monkeypatch):
    manifests = harvest(config)
    monkeypatch.setattr("harvest.opening.load_model", None)
    assert harvest(config) == manifests


def test_a_data_set_named_otherwise_is_the_same_one_and_another_split_is_not(config, monkeypatch):
    text = Path(config.dataset)
    monkeypatch.chdir(text.parent)
    named = replace(config, dataset=f"./{text.name}")
    manifests = harvest(named)
    assert harvest(named) == harvest(replace(config, dataset=text.name)) == manifests
    with pytest.raises(ValueError, match="dataset_split: 'train' != 'test'"):
        harvest(replace(named, split="test"))


def test_a_harvest_that_got_nowhere_may_be_begun_otherwise(config, tmp_path):
    with pytest.raises(ValueError, match="give more text or a smaller --shard-tokens"):
        harvest(replace(config, shard_tokens=1 << 20))
    harvest(config)
    harvest(replace(config, store=tmp_path / "whole"))
    assert store_files(config.directory) == store_files(tmp_path / "whole")


@pytest.mark.parametrize("tokens", [3 * 512, 5 * 512])
def test_a_store_that_lacks_a_shard_is_neither_called_finished_nor_extended(config, tokens):
    (manifest,) = harvest(config)
    lost = config.directory / manifest.shards[-1].name
    lost.unlink()
    with pytest.raises(ValueError, match=rf"{lost.name} is missing, the manifest says \d+; run `make repair`"):
        harvest(replace(config, tokens=tokens))


@pytest.mark.parametrize("change", [{"layer": 2}, {"sites": ("mlp_out",)}, {"dtype": "float32"}])
def test_store_of_another_harvest_is_refused(config, change):
    harvest(config)
    before = store_files(config.directory)
    with pytest.raises(ValueError, match="holds another harvest"):
        harvest(replace(config, **change))
    assert store_files(config.directory) == before


def test_a_store_that_another_process_writes_is_refused_before_the_model_is_loaded(config, monkeypatch):
    harvest(config)
    before = store_files(config.directory)
    monkeypatch.setattr("harvest.opening.load_model", lambda *args, **options: pytest.fail("loaded"))
    with WriterLock(config.directory / WRITER_LOCK), pytest.raises(ValueError, match=f"pid {os.getpid()} on .* is writing"):
        harvest(replace(config, tokens=4 * 512))
    assert store_files(config.directory) == before


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(config, monkeypatch, tmp_path):
    monkeypatch.setattr("harvest.opening.load_model", lambda *args, **options: pytest.fail("loaded"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is read-only for you"):
        harvest(replace(config, store=tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_on_a_gpu_a_shard_is_written_while_the_next_is_computed_and_no_more_wait(asked, tmp_path, monkeypatch):
    harvest(asked)  # on a CPU one is written, then the next computed
    computed, written, append, compute = [Event() for _ in range(16)], [], StoreWriter.append, loop.run_shard

    def run(lanes, packed, config, layers, number, *others):
        assert len(written) >= number - 1
        rows = compute(lanes, packed, config, layers, number, *others)
        computed[number].set()
        return rows

    def write(writer, rows, number):
        assert number == 15 or computed[number + 1].wait(600)
        written.append(append(writer, rows, number))

    monkeypatch.setitem(opening.load_model().__dict__, "device", torch.device("cuda"))  # its values stay on the host
    monkeypatch.setattr(loop, "run_shard", run)
    monkeypatch.setattr(StoreWriter, "append", write)
    harvest(replace(asked, store=tmp_path / "gpu", batch_sequences=3))
    assert len(written) == 16
    found, expected = store_files(tmp_path / "gpu"), store_files(asked.directory)
    for name in ("manifest.json", "manifest.previous.json"):  # a GPU's entries say how many sequences ran at once
        one, other = json.loads(found.pop(name)), json.loads(expected.pop(name))
        assert {shard.pop("batch_sequences") for shard in one["shards"]} == {3}
        assert one == other
    assert found == expected


def test_too_little_text_for_one_shard_is_refused(config, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("hello")
    with pytest.raises(ValueError, match="does not fill one shard of 512 tokens"):
        harvest(replace(config, dataset=str(path)))


def test_text_that_ends_early_keeps_what_there_is(config, caplog):
    with caplog.at_level(logging.WARNING):
        (manifest,) = harvest(replace(config, shard_tokens=8192, tokens=20 * 8192, batch_sequences=64))
    assert manifest.exhausted
    assert 3 <= len(manifest.shards) < 10
    assert "the text ended after" in caplog.text


KILLER = """
import os, shutil, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from harvest.config import HarvestConfig
from harvest.store_config import RepairConfig
import harvest.text.corpus, harvest.loop, harvest.model.language_model, harvest.model.loading, harvest.repair
from tests.harvest.making import damage, shards_of
from tests.killed import ending_of

config = HarvestConfig(
    model=sys.argv[1], layer=(0, 1), dataset=sys.argv[2], tokens=3 * 512, shard_tokens=512, context=32, heldout_every=2,
    batch_sequences=5, device="cpu", compute_dtype="float32", metric_sequences=0,
)
model = harvest.model.loading.load_model(config.model, 1, torch.device("cpu"), torch.float32)
corpus = harvest.text.corpus.open_corpus(config)
texts = list(corpus.documents(0))
corpus = harvest.text.corpus.Corpus(corpus.name, corpus.revision, lambda start: iter(texts[start:]))
for room in (harvest.opening, harvest.repair):
    room.load_model, room.open_corpus = lambda *args, **options: model, lambda config: corpus

def harvests(store):
    return lambda: harvest.loop.harvest(replace(config, store=Path(store)))

def repairs(store):
    return lambda: harvest.repair.repair(RepairConfig(store=Path(store), device="cpu", batch_sequences=5))

assert ending_of(harvests(sys.argv[3] + "/whole")) == 0
points = [(harvest.model.language_model.LanguageModel, "run_layers", n) for n in (1, 6)]
points += [(os, "fsync", n) for n in range(1, 32, 3)]
points += [(Path, "replace", n) for n in (2, 3, 5, 8, 11, 14, 16)]
points = points[:: int(sys.argv[4])]
for number, point in enumerate(points):
    go = harvests(f"{sys.argv[3]}/killed{number}")
    assert (first := ending_of(go, point)) == signal.SIGKILL, (point, first)
    assert (again := ending_of(go, point)) in (signal.SIGKILL, 0), (point, again)
    assert (last := ending_of(go)) == 0, (point, last)
for n in (1, 2, 3):
    store = f"{sys.argv[3]}/repaired{n}"
    damage(*shards_of(Path(shutil.copytree(sys.argv[3] + "/whole/layer1", store))))
    assert (first := ending_of(repairs(store), (os, "fsync", n))) == signal.SIGKILL, (n, first)
    assert (last := ending_of(repairs(store))) == 0, (n, last)
"""


@pytest.mark.parametrize(("every", "killed"), [(4, 5), pytest.param(1, 20, marks=pytest.mark.slow)])
def test_a_harvest_and_a_repair_killed_by_sigkill_and_begun_again_end_whole(
    tiny_models, text_file, tmp_path, every, killed
):
    places = map(str, (tiny_models["gemma2"], text_file, tmp_path, every))
    forked(KILLER, *places)
    for layer in ("layer0", "layer1"):
        whole = store_files(tmp_path / "whole" / layer)
        assert len([name for name in whole if name.startswith("shard-")]) == 3
        for number in range(killed):
            assert store_files(tmp_path / f"killed{number}" / layer) == whole
    for number in (1, 2, 3):
        assert store_files(tmp_path / f"repaired{number}") == whole


DEATHS = """
import sys
from pathlib import Path
from tests.harvest.kills import main

main(Path(sys.argv[1]), int(sys.argv[2]), 0, sys.argv[3])
"""


@pytest.mark.parametrize(
    ("deaths", "targets"),
    [
        ("15", "stored"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("15", "recomputed"), ("1000", "stored"), ("1000", "recomputed"))
        ),
    ],
)
def test_random_deaths_end_byte_identical(tmp_path, deaths, targets):
    assert "all byte-identical" in forked(DEATHS, str(tmp_path), deaths, targets)
