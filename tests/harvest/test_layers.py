"""Several layers and sites, and text that breaks off."""

import logging
from dataclasses import replace

import pytest
import torch

from harvest.config import SITES
from harvest.loop import harvest
from harvest.text.corpus import RETRIES, Corpus, resuming
from store.shards.reader import open_store
from store.shards.writer import StoreWriter
from tests.harvest.making import store_files


def test_stores_of_one_pass_are_those_of_single_passes_and_row_aligned(config, tmp_path):
    both = replace(config, layer=(0, 1), sites=tuple(reversed(SITES)), store=tmp_path / "both")
    harvest(both)
    harvest(replace(both, layer=1, store=tmp_path / "alone"))
    assert store_files(tmp_path / "both" / "layer1") == store_files(tmp_path / "alone")
    low, high = (open_store(both.directories[layer]) for layer in (0, 1))
    assert low.manifest.recipe.stream == high.manifest.recipe.stream
    assert low.manifest.recipe.sites == tuple(SITES)
    for shard, other in zip(low.manifest.shards, high.manifest.shards, strict=True):
        assert torch.equal(low.array(shard, "token_index"), high.array(other, "token_index"))
        assert torch.equal(low.array(shard, "resid_post"), high.array(other, "resid_pre"))


def test_killed_between_two_stores_appends_and_extended_both_end_whole(config, tmp_path, monkeypatch):
    whole = replace(config, layer=(0, 1), tokens=5 * 512, store=tmp_path / "whole")
    harvest(whole)
    cut = replace(whole, tokens=3 * 512, store=tmp_path / "cut")
    append = StoreWriter.append

    def dies(self, rows, number=None):
        if self.recipe.layer == 1 and number == 1:
            raise OSError("died")
        return append(self, rows, number)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="died"):
        patch.setattr(StoreWriter, "append", dies)
        harvest(cut)
    assert [len(open_store(folder).manifest.shards) for folder in cut.directories.values()] == [2, 1]
    harvest(cut)
    harvest(replace(cut, tokens=5 * 512))
    for layer in (0, 1):
        assert store_files(cut.directories[layer]) == store_files(whole.directories[layer])


def broken(failures: int) -> Corpus:
    """Ten documents; the stream fails at every third one, and `failures` times in a row at document 5."""
    left = [failures]

    def documents(start: int):
        for number in range(start, 10):
            if number == 5 and left[0]:
                left[0] -= 1
                raise ConnectionError("reset by peer")
            yield str(number)

    return Corpus("hub", "1", documents)


def test_a_broken_stream_is_opened_again_where_it_broke(caplog):
    waits = []
    with caplog.at_level(logging.WARNING):
        assert list(resuming(broken(3), 2, waits.append)) == [str(number) for number in range(2, 10)]
    assert waits == [1, 2, 4]
    assert "broke off at document 5 (ConnectionError: reset by peer)" in caplog.text


def test_a_stream_that_stays_broken_ends_in_one_clear_line_and_keeps_shards(config, monkeypatch):
    from harvest.text import corpus

    with pytest.raises(ValueError, match=f"broke off at document 5 and {RETRIES} retries failed"):
        list(resuming(broken(RETRIES + 1), 0, lambda seconds: None))
    harvest(replace(config, tokens=2 * 512))
    opened = corpus.open_corpus(config)

    def fails(start: int):
        yield from []
        raise ConnectionError("gone")

    monkeypatch.setattr("harvest.opening.open_corpus", lambda config: Corpus(opened.name, opened.revision, fails))
    monkeypatch.setattr("harvest.text.corpus.time.sleep", lambda seconds: None)
    monkeypatch.setattr("harvest.text.stream.resuming", lambda c, start: resuming(c, start, lambda seconds: None))
    with pytest.raises(ValueError, match="finished shards are kept"):
        harvest(config)
    assert len(open_store(config.directory).manifest.shards) == 2


def test_layers_given_twice_and_unknown_sites_are_refused(config):
    with pytest.raises(ValueError, match="each layer once"):
        replace(config, layer=(1, 1))
    with pytest.raises(ValueError, match="choose from resid_pre"):
        replace(config, sites=("resid_mid", "q"))
