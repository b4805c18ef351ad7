import json
from itertools import islice
from types import SimpleNamespace

import pytest
from datasets import IterableDataset

from harvest.config import HarvestConfig
from harvest.text import corpus
from harvest.text.corpus import docstrings, open_corpus, resuming
from harvest.text.origin import documented_versions


def first(config: HarvestConfig, n: int, start: int = 0) -> list[str]:
    return list(islice(open_corpus(config).documents(start), n))


def test_jsonl_documents_can_start_anywhere(text_file):
    config = HarvestConfig(dataset=str(text_file))
    everything = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    assert first(config, 1000) == everything
    assert first(config, 5, start=123) == everything[123:128]


def test_text_files_are_cut_at_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\nstill one\n\ntwo\n\nthree")
    assert [text.strip() for text in first(HarvestConfig(dataset=str(path)), 9)] == ["one\nstill one", "two", "three"]


def test_parquet_with_another_column(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x", "y"], "n": [1, 2]}), path)
    assert first(HarvestConfig(dataset=str(path), text_column="body"), 9) == ["x", "y"]
    with pytest.raises(ValueError, match=r"no text column 'text'; it has \['body', 'n'\]"):
        open_corpus(HarvestConfig(dataset=str(path)))


def test_changed_file_is_another_revision(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = open_corpus(HarvestConfig(dataset=str(path))).revision
    path.write_text("two")
    assert open_corpus(HarvestConfig(dataset=str(path))).revision != before


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("nowhere.jsonl", "does not exist"),
        ("pip:poems", "unknown embedded text"),
        ("nobody/nothing", "cannot be fetched"),
    ],
)
def test_missing_data_sets_are_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(HarvestConfig(dataset=dataset))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is empty"):
        open_corpus(HarvestConfig(dataset=str(tmp_path / name)))


def test_a_hub_data_set_is_read_at_the_commit_asked_for(monkeypatch):
    commits = {None: "new", "old": "old"}
    info = SimpleNamespace(dataset_info=lambda name, revision, timeout: SimpleNamespace(sha=commits[revision]))
    monkeypatch.setattr("harvest.text.origin.HfApi", lambda: info)
    streams = {sha: IterableDataset.from_generator(lambda sha=sha: iter([{"text": sha}])) for sha in ("new", "old")}
    monkeypatch.setattr(corpus.datasets, "load_dataset", lambda *args, revision, **options: streams[revision])
    for revision, sha in commits.items():
        opened = open_corpus(HarvestConfig(dataset="a/b", dataset_revision=revision))
        assert (opened.revision, list(opened.documents(0))) == (sha, [sha])


def test_docstrings_are_distinct_and_always_in_the_same_order(monkeypatch):
    monkeypatch.setattr("harvest.text.corpus.FILES_A_GROUP", 30)  # 300 docstrings are of several groups
    once, again = (list(islice(docstrings(), 300)) for _ in range(2))
    assert once == again
    assert len(set(once)) == 300
    assert min(map(len, once)) >= 200
    assert "torch 2." in documented_versions()


@pytest.mark.parametrize("record", ['{"text": null}', '{"text": 3', '{"other": "text"}'])
def test_a_document_that_is_no_text_is_named(tmp_path, record):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n' + record + "\n")
    with pytest.raises(ValueError, match=r"(document 2 of|data set) \S*odd\.jsonl cannot be read.*mend the file"):
        list(resuming(open_corpus(HarvestConfig(dataset=str(path))), 0))
