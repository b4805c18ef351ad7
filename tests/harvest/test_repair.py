"""Repair: shards that are missing or damaged are made again, the same bytes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harvest import repair as care
from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.model.plain import PlainModel
from harvest.text import stream
from harvest.text.corpus import resuming
from store.disk.lock import WriterLock
from tests.command import run
from tests.harvest.making import REPAIR, damage, shards_of
from tests.making import files_of, make_store


@pytest.fixture
def config(config, text_file, tmp_path) -> HarvestConfig:
    """Of a text of its own, which a test may change."""
    text = tmp_path / "text.jsonl"
    text.write_bytes(text_file.read_bytes())
    return replace(config, dataset=str(text))


@pytest.mark.parametrize(("kind", "compression"), [("safetensors", "none"), ("zarr", "none"), ("zarr", "zstd")])
def test_repaired_shards_are_what_they_were_byte_for_byte(config, monkeypatch, capsys, kind, compression):
    config = replace(config, format=kind, compression=compression)
    harvest(config)
    before = files_of(config.store)
    damage(*shards_of(config.store))
    assert run(monkeypatch, capsys, *REPAIR, str(config.store))[0] == 0
    assert files_of(config.store) == before


def test_a_shard_that_comes_out_otherwise_is_not_replaced(config, monkeypatch, capsys):
    harvest(config)
    text = Path(config.dataset)
    damage(*shards_of(config.store))
    damaged = files_of(config.store)
    text.write_text(text.read_text().replace("words", "birds"))
    code, errors = run(monkeypatch, capsys, *REPAIR, str(config.store))
    assert code == 1
    assert "cannot be repaired here, its harvest differs: dataset_revision" in errors
    assert files_of(config.store) == damaged


def test_a_repair_beside_a_writer_is_refused_and_a_broken_stream_is_opened_again(config, monkeypatch, capsys):
    harvest(config)
    before = files_of(config.store)
    damage(*shards_of(config.store))
    damaged = files_of(config.store)
    with WriterLock(config.store / "writer.lock"):
        code, errors = run(monkeypatch, capsys, *REPAIR, str(config.store))
        assert code == 1
        assert f"pid {os.getpid()} on" in errors
    assert files_of(config.store) == damaged
    failures, opened = [1, 1], care.open_corpus

    def breaks(wanted):
        corpus = opened(wanted)

        def documents(start):
            for number, text in enumerate(corpus.documents(start)):
                if number == 2 and failures:
                    failures.pop()
                    raise ConnectionError("reset by peer")
                yield text

        return replace(corpus, documents=documents)

    monkeypatch.setattr(care, "open_corpus", breaks)
    monkeypatch.setattr(stream, "resuming", lambda corpus, start: resuming(corpus, start, lambda seconds: None))
    assert run(monkeypatch, capsys, *REPAIR, str(config.store))[0] == 0
    assert not failures
    assert files_of(config.store) == before


def test_a_repair_reads_the_data_set_and_commit_that_the_manifest_records(tmp_path):
    store = make_store(tmp_path, dataset="wikimedia/wikipedia:20231101.en", dataset_revision="b04c8d1")
    asked = care.harvest_config(care.RepairConfig(store=tmp_path), store.manifest)
    assert (asked.dataset, asked.subset, asked.dataset_revision) == ("wikimedia/wikipedia", "20231101.en", "b04c8d1")


def counted(monkeypatch) -> list[int]:
    """Grows with each batch that runs without the bridge."""
    seen: list[int] = []
    run_plain = PlainModel.run_layers

    def count(self, tokens, layers):
        seen.append(len(tokens))
        return run_plain(self, tokens, layers)

    monkeypatch.setattr(PlainModel, "run_layers", count)
    return seen


def test_a_repair_runs_the_model_as_the_harvest_does(config, monkeypatch, capsys):
    """A shard's 16 sequences are batches of 5, 5, 5 and 1. The first of all is compared with the
    bridge's, and then run by the bridge, which alone has the sites whose sum is checked."""
    harvest(config)
    before = files_of(config.store)
    damage(*shards_of(config.store))
    batches = counted(monkeypatch)
    assert run(monkeypatch, capsys, *REPAIR, str(config.store))[0] == 0
    assert sorted(batches) == [1] * 3 + [5] * 9
    assert files_of(config.store) == before


def test_what_comes_out_otherwise_without_the_bridge_is_repaired_through_it(config, monkeypatch, capsys, caplog):
    """Without the bridge all but the first batch, which is compared, has other bits here."""
    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(PlainModel, "of", lambda model: None)
        harvest(config)
    before = files_of(config.store)
    damage(*shards_of(config.store))
    batches = counted(monkeypatch)
    run_counted = PlainModel.run_layers

    def off_by_a_bit(self, tokens, layers):
        found = run_counted(self, tokens, layers)
        if len(batches) > 1:
            found[1]["mlp_out"] += found[1]["mlp_out"].abs().max() / 4
        return found

    monkeypatch.setattr(PlainModel, "run_layers", off_by_a_bit)
    assert run(monkeypatch, capsys, *REPAIR, str(config.store))[0] == 0
    assert files_of(config.store) == before
    assert sum("once more through TransformerLens" in message for message in caplog.messages) == 1
