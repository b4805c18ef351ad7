"""The harvest that a card names, parsed by the command line: it has the options of the harvest that made the store."""

from pathlib import Path

import pytest

from evaluate.publish.again import commands, harvest_words
from harvest.config import HarvestConfig
from store.cli import parse
from store.shards.origin import Side
from tests.making import make_store


def side_of(folder: Path, **recorded) -> Side:
    """What a run records of a store of 4 shards of 128 tokens, as if its recipe held other things, too."""
    side = Side.of(make_store(folder / "store", n_shards=4))
    return side.model_copy(update={"recipe": side.recipe.model_copy(update=recorded)})


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({}, {"dataset": "made up", "heldout_every": 3, "context": 8, "compute_dtype": "float32", "seed": 0}),
        (
            {"dataset": "HuggingFaceFW/fineweb-edu:sample-10BT", "dataset_revision": "abc"},
            {"dataset": "HuggingFaceFW/fineweb-edu", "subset": "sample-10BT", "dataset_revision": "abc"},
        ),
        (
            {"dataset": "a/b:one:0.7,c/d:0.3", "dataset_revision": "x + y"},
            {"dataset": "a/b:0.7,c/d:0.3", "subset": "one,", "dataset_revision": "x,y"},
        ),
        (
            {"chat": "messages", "chat_template": "0" * 32, "exclude_template": True},
            {"chat": "messages", "chat_template": None, "exclude_template": True},
        ),
        ({"model_revision": "a0" * 20}, {"model_revision": "a0" * 20}),
        ({"model_revision": "xxh3:" + "a0" * 16}, {"model_revision": None}),
        ({"tokens_column": "ids"}, {"tokens_column": "ids", "tokenizer_hash": "t"}),
        ({"documents": "lines", "drop_repeats": True}, {"documents": "lines", "drop_repeats": True}),
        ({"exclude_first": 3, "exclude_norm": 5.0}, {"exclude_first": 3, "exclude_norm": 5.0}),
        ({"model": "a b/it's", "targets": "recomputed"}, {"model": "a b/it's", "targets": "recomputed"}),
        (
            {"sites": ("resid_pre", "mlp_out"), "format": "zarr-zstd", "dtype": "float32"},
            {"sites": ("resid_pre", "mlp_out"), "format": "zarr", "compression": "zstd", "dtype": "float32"},
        ),
    ],
)
def test_the_words_of_the_harvest_give_its_options_back(tmp_path, recorded, expected):
    config = parse(HarvestConfig, "harvest", harvest_words(side_of(tmp_path, **recorded)))
    assert config.n_shards == 4
    assert config.tokens_a_shard == 128
    assert config.tokens == 4 * 128
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_run_that_recorded_no_tokens_names_none(tmp_path):
    side = side_of(tmp_path)
    assert " --tokens 512 " in commands(side)
    assert "--tokens" not in commands(side.model_copy(update={"tokens": None}))
