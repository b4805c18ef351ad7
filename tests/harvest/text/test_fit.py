"""Small texts: shards shrink so that some are held out, or the harvest is refused before the model runs."""

import logging
from dataclasses import replace

import pytest

from harvest.config import HarvestConfig
from harvest.info import describe
from harvest.loop import harvest
from harvest.model.language_model import LanguageModel
from harvest.space import shards_on_disk
from harvest.text.fit import fit_shards
from harvest.text.tokens import SpecialTokens
from store.errors import Refused
from store.shards.reader import open_store
from tests.harvest.making import store_files
from tests.making import BOS, EOS

SPECIAL = SpecialTokens(bos=BOS, eos=EOS, excluded=(0, 1, 2))


@pytest.mark.parametrize(("tokens", "size", "shards"), [(16_384_000, 65_536, 250), (20_000, 2048, 10), (1, 128, 10)])
def test_few_tokens_make_small_shards_so_that_there_are_ten(tokens, size, shards):
    config = HarvestConfig(tokens=tokens)
    assert (config.tokens_a_shard, config.n_shards) == (size, shards)
    assert shards_on_disk(config, 0) == shards


def test_a_size_that_is_given_is_kept():
    config = HarvestConfig(tokens=20_000, shard_tokens=65_536)
    assert (config.tokens_a_shard, config.n_shards) == (65_536, 2)


def test_short_text_makes_small_shards_and_plenty_is_not_read_to_its_end():
    few = [[5] * 64] * 154  # with an EOS each, 10,010 tokens
    fitted = fit_shards(HarvestConfig(context=101), few, SPECIAL, "text")
    assert fitted.shard_sequences == 9  # shards of 10 sequences take 16 documents each, those of 9 take 14
    endless = iter(lambda: [5] * 1000, None)
    config = HarvestConfig(context=128)
    assert fit_shards(config, endless, SPECIAL, "text") == config


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "it has 0 documents, 0 tokens"),
        ([[5] * 100], {}, "too short for 10 shards, even of one sequence of 8 tokens: it has 1 document, 101 tokens"),
        ([[5] * 100_000], {}, "and no document lies on both sides of the split"),
        ([[5] * 100_000], {"shard_tokens": 64}, "no second document is left to fill a held-out shard of 64 tokens"),
        ([[5] * 100], {"shard_tokens": 640}, "it does not fill one shard of 640 tokens .*smaller --shard-tokens"),
    ],
)
def test_text_that_gives_no_held_out_rows_is_refused(documents, options, message):
    with pytest.raises(Refused, match=message):
        fit_shards(HarvestConfig(context=8, **options), documents, SPECIAL, "text")


@pytest.fixture
def small(config, tmp_path) -> HarvestConfig:
    """A text of 3,000 words, one a line, and no size of shards."""
    path = tmp_path / "words.txt"
    path.write_text("".join(f"word {number}\n" for number in range(3000)))
    return replace(config, dataset=str(path), documents="lines", shard_tokens=None, tokens=16_384_000, heldout_every=20)


def test_a_small_text_is_harvested_whole_with_some_held_out_and_is_then_finished(small, monkeypatch):
    (manifest,) = harvest(small)
    assert manifest.exhausted
    assert 10 <= len(manifest.shards) <= 12
    assert manifest.n_rows("heldout") > 0
    assert manifest.n_tokens > 0.9 * 3000 * 10
    monkeypatch.setattr("harvest.opening.load_model", None)
    assert harvest(small) == [manifest]


def test_a_store_of_small_shards_is_extended_with_shards_of_its_size(small, tmp_path):
    (first,) = harvest(replace(small, tokens=3200))
    assert (len(first.shards), first.recipe.shard_sequences) == (10, 10)
    (longer,) = harvest(replace(small, tokens=6400))
    assert (len(longer.shards), longer.fingerprint) == (20, first.fingerprint)
    harvest(replace(small, tokens=6400, shard_tokens=320, store=tmp_path / "whole"))
    assert store_files(small.directory) == store_files(tmp_path / "whole")


@pytest.mark.slow
def test_a_small_store_that_grows_large_is_warned_of_its_many_shards(small, caplog, monkeypatch):
    harvest(replace(small, tokens=3200))
    assert "shards" not in caplog.text
    harvest(small)
    assert "51,200 shards of 320 tokens each" in caplog.text


def test_lines_taken_for_one_paragraph_are_refused_before_the_model_runs(small, monkeypatch):
    monkeypatch.setattr(LanguageModel, "run_layers", lambda *args: pytest.fail("ran"))
    with pytest.raises(Refused, match=r"words\.txt \(a document is a paragraph.*--documents lines.*it has 1 document"):
        harvest(replace(small, documents="paragraphs"))
    assert not small.store.exists()


def test_what_a_document_is_is_said_and_recorded_where_it_is_not_a_paragraph(small, caplog):
    with caplog.at_level(logging.INFO):
        (manifest,) = harvest(small)
    assert "a document is a line" in caplog.text
    assert manifest.recipe.documents == "lines"
    assert '"documents"' in (small.store / "manifest.json").read_text()
    with pytest.raises(Refused, match="documents: 'lines' != None"):
        harvest(replace(small, documents="paragraphs"))


def test_bad_records_are_counted_by_shard(config, tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "' + "words " * 20 + '"}', '{"text": null}'] * 60
    path.write_text("\n".join(lines))
    (manifest,) = harvest(replace(config, dataset=str(path), bad_records="skip", tokens=4 * 512))
    assert [shard.bad_records for shard in manifest.shards] == [4, 5, 5, 5]  # each ends in its fifth good document
    assert manifest.recipe.bad_records == "skip"
    store = open_store(config.store)
    assert store.manifest == manifest
    assert "19 held no text and were left out" in describe(store, "no tokenizer")
