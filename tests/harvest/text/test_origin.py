"""What is said of a data set's name and of options that are not for it, before any library is loaded."""

import pytest

from harvest.config import HarvestConfig
from harvest.text.origin import ignored_options, origin_of
from store.errors import Refused
from store.hub import name_in_url


@pytest.mark.parametrize(
    ("dataset", "cure"),
    [
        ("https://huggingface.co/datasets/a/b", "give a/b, its name on the hub"),
        ("https://huggingface.co/datasets/a/b-c.d/tree/main/data", "give a/b-c.d, its name on the hub"),
        ("hf://datasets/a/b", "give a/b, its name on the hub"),
        ("https://example.com/x.jsonl", "download it, and give the file's path"),
        ("s3://bucket/x.parquet", "download it, and give the file's path"),
        ("file:///home/me/x.txt", "give /home/me/x.txt"),
    ],
)
def test_an_address_is_refused_with_what_to_give(dataset, cure):
    with pytest.raises(Refused) as refused:
        origin_of(HarvestConfig(dataset=dataset))
    assert str(refused.value) == f"data set {dataset} is an address; {cure}"


def test_names_in_addresses_of_the_hub():
    assert name_in_url("https://huggingface.co/google/gemma-2-2b") == "google/gemma-2-2b"
    assert name_in_url("google/gemma-2-2b") is None
    assert name_in_url("https://example.com/google/gemma-2-2b") is None


HERE = "it is of data sets on the hub, and this one is on this machine"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("x.jsonl", {}, []),
        ("x.jsonl", {"subset": "s"}, [f"--subset s changes nothing: {HERE}"]),
        ("x.jsonl", {"dataset_revision": "abc"}, [f"--dataset-revision abc changes nothing: {HERE}"]),
        ("x.jsonl", {"split": "test"}, [f"--split test changes nothing: {HERE}; all of it is read"]),
        ("x.jsonl", {"documents": "lines"}, ["--documents lines changes nothing: it is of .txt files"]),
        ("x.txt", {"documents": "lines"}, []),
        (".", {"documents": "lines"}, []),
        ("x.jsonl", {"tokenizer_hash": "h"}, ["--tokenizer-hash changes nothing without --tokens-column"]),
        (
            "x.jsonl",
            {"tokens_column": "ids", "tokenizer_hash": "h", "text_column": "body"},
            ["--text-column body changes nothing: column ids is read"],
        ),
        ("x.jsonl", {"text_column": "body"}, []),
        ("pip:docstrings", {"split": "test"}, [f"--split test changes nothing: {HERE}; all of it is read"]),
        ("user/set", {"subset": "s", "split": "test", "dataset_revision": "abc"}, []),
        ("x.jsonl:0.5,user/set:0.5", {"subset": "s"}, []),
    ],
)
def test_options_that_are_not_for_a_data_set_are_said(tmp_path, monkeypatch, name, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "x.txt").write_text("a\n")
    assert ignored_options(HarvestConfig(dataset=name, **options)) == said


def test_a_split_of_a_saved_data_set_is_for_it(tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert ignored_options(HarvestConfig(dataset=str(tmp_path), split="test")) == []
