"""Local files of every kind give the same documents, whatever they are packed in and wherever reading begins."""

import csv
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from harvest.config import HarvestConfig
from harvest.text.corpus import open_corpus, resuming
from harvest.text.origin import origin_of
from harvest.text.records import Bad
from store.errors import Damaged, Refused

TEXTS = ["one", 'two, "quoted"\nand a second line', "дри\u2028四", "five " * 9000]


def documents(path: Path | str, start: int = 0, **options) -> list[str | Bad]:
    return list(resuming(open_corpus(HarvestConfig(dataset=str(path), **options)), start))


def write_json(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)))


def write_list(path: Path) -> None:
    path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(TEXTS)])


def write_parquet(path: Path) -> None:
    pa.parquet.write_table(pa.table({"text": TEXTS, "id": range(4)}), path, row_group_size=3)


def write_arrow(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, 3)


def write_stream(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, 3)


WRITERS = [
    (".jsonl", write_json),
    (".json", write_json),
    (".json", write_list),
    (".csv", write_csv),
    (".parquet", write_parquet),
    (".arrow", write_arrow),
    (".arrow", write_stream),
]


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_a_file_of_any_kind_gives_its_documents_from_any_one_on(
    tmp_path: Path, suffix: str, write: Callable[[Path], None], compression: str
):
    path = tmp_path / f"a{suffix}"
    write(path)
    if compression:
        packed = path.with_name(path.name + {"gzip": ".gz", "zstd": ".zst"}[compression])
        with pa.CompressedOutputStream(str(packed), compression) as file:
            file.write(path.read_bytes())
        path = packed
    for start in range(5):
        assert documents(path, start) == TEXTS[start:]


def test_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path, caplog):
    (tmp_path / "deep").mkdir()
    write_json(tmp_path / "b.jsonl")
    write_csv(tmp_path / "deep" / "a.csv")
    (tmp_path / "a.txt").write_text("first\n\nsecond")
    (tmp_path / "README.md").write_text("not text for the model")
    (tmp_path / ".hidden.txt").write_text("nor this")
    everything = ["first", "second", *TEXTS, *TEXTS]
    for start in range(len(everything)):
        assert documents(tmp_path, start) == everything[start:]
    assert "3 files are read; those of other kinds are not: .md" in caplog.text
    assert documents(f"{tmp_path}/*.txt") == ["first", "second"]
    assert documents(f"{tmp_path}/**/*.csv") == TEXTS


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("jsonl", b'{"id": 1, "body": "b"}', r"no text column 'text'; it has \['body', 'id'\]: choose with --text-column"),
        ("jsonl", b'{"messages": []}', r"it has \['messages'\]: for chats give --chat messages, else choose with --text"),
        ("csv", b"id,body\n1,b\n", r"no text column 'text'; it has \['body', 'id'\]"),
        ("parquet", None, r"no text column 'text'; it has \['body'\]"),
        ("json", b'[{"text": [1, 2]}]', r"column 'text' holds a list of token ids where text is wanted"),
        ("parquet", b"half a file", r"cannot be read"),
        ("txt", "caf\xe9".encode("latin-1"), r"cannot be read .*can't decode"),
    ],
)
def test_a_later_file_without_the_column_is_named_when_the_folder_is_opened(tmp_path, suffix, content, message):
    """Else the harvest would end where that file comes, after hours."""
    write_json(tmp_path / "a.jsonl")
    odd = tmp_path / f"b.{suffix}"
    odd.write_bytes(content or b"")
    if content is None:
        pa.parquet.write_table(pa.table({"body": TEXTS}), odd)
    for dataset in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises((Refused, Damaged), match=rf"data set file {odd} .*{message}"):
            open_corpus(HarvestConfig(dataset=str(dataset)))


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    """pandas and pyarrow write such files after a join; readers take the first, the last or neither."""
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pa.parquet.write_table(twice, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), twice.schema) as file:
        file.write_table(twice)
    (tmp_path / "a.csv").write_text("text,id,text\na,1,b\n")
    for name in ("a.parquet", "a.arrow", "a.csv"):
        with pytest.raises(Damaged, match=rf"{name} cannot be read .*it has 2 columns 'text'; rename all but one"):
            open_corpus(HarvestConfig(dataset=str(tmp_path / name)))
    assert documents(tmp_path / "a.csv", text_column="id") == ["1"]


def test_a_later_file_without_records_is_no_fault(tmp_path):
    write_json(tmp_path / "a.jsonl")
    for name in ("b.jsonl", "c.txt", "d.csv"):
        (tmp_path / name).touch()
    (tmp_path / "e.csv").write_text("text\n")
    assert documents(tmp_path) == TEXTS


def test_a_moved_folder_keeps_its_revision_and_a_renamed_file_changes_it(tmp_path):
    def revision(path: Path | str) -> str:
        origin = origin_of(HarvestConfig(dataset=str(path)))
        assert origin is not None
        return origin[1]

    (tmp_path / "one").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "one" / name).write_text(name)
    before = revision(tmp_path / "one"), revision(f"{tmp_path}/one/*.txt")
    (tmp_path / "one").rename(tmp_path / "two")
    assert (revision(tmp_path / "two"), revision(f"{tmp_path}/two/*.txt")) == before
    (tmp_path / "two" / "b.txt").rename(tmp_path / "two" / "c.txt")
    assert revision(tmp_path / "two") != before[0]


def test_folders_of_save_to_disk_are_read_by_split(tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(4))})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([2, 0])}).save_to_disk(tmp_path / "several")
    for start in range(5):
        assert documents(tmp_path / "one", start) == TEXTS[start:]
    assert documents(tmp_path / "several", split="test") == [TEXTS[2], TEXTS[0]]
    with pytest.raises(Refused, match="has no split 'dev'; choose one of train, test with --split"):
        documents(tmp_path / "several", split="dev")
    with pytest.raises(Refused, match=r"no text column 'body'; it has \['id', 'text'\]"):
        documents(tmp_path / "one", text_column="body")


@pytest.mark.parametrize("name", ["a.pdf", "allenai/c4"])
def test_a_path_that_exists_is_never_taken_for_a_hub_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr("harvest.text.origin.HfApi", lambda: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.mkdir(parents=True) if "/" in name else path.write_text("x")
    with pytest.raises(Refused, match=r"(is of no kind that is read|holds no file that is read); give \.txt \.jsonl"):
        documents(name)


@pytest.mark.parametrize("name", ["./nothing", "../nothing/here", "/no/where", "~/nothing-here", "no/*.txt"])
def test_a_path_to_nothing_is_not_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("harvest.text.origin.HfApi", lambda: pytest.fail("asked the hub"))
    with pytest.raises(Refused, match="does not exist|holds no file"):
        documents(name)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("lines", ["one", "still one", "two", "three"]),
        ("paragraphs", ["one\nstill one", "\ntwo", "three\n"]),
        ("file", ["one\nstill one\n\n\ntwo\n\nthree\n"]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_a_document_of_a_text_file_is_a_line_a_paragraph_or_the_file(tmp_path, monkeypatch, unit, expected, chunk):
    monkeypatch.setattr("harvest.text.files.CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\nstill one\n\n\r\ntwo\n\nthree\n".encode())
    assert documents(tmp_path / "a.txt", documents=unit) == expected


def test_paragraphs_are_those_that_datasets_finds(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\nstill one\n\n\n\n\ntwo\n\n \n\nthree\n\n\n")
    theirs = datasets.load_dataset("text", data_files=str(path), split="train", streaming=True, sample_by="paragraph")
    assert documents(path) == [row["text"] for row in theirs]


@pytest.mark.parametrize(("suffix", "write"), [(".jsonl", write_json), (".csv", write_csv), (".json", write_list)])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix, write):
    path = tmp_path / f"a{suffix}"
    write(path)
    path.write_bytes("\ufeff".encode() + path.read_bytes())
    assert documents(path) == TEXTS


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("null", "null where text is wanted: --bad-records skip leaves such records out"),
        ("3", r"a number \(3\) where text is wanted"),
        ("[1, 2]", "a list of token ids where text is wanted: read it with --tokens-column text"),
        ('[{"role": "user", "content": "hi"}]', "a list of messages where text is wanted: read it with --chat text"),
        ('[{"role": "user", "content": null}]', "a list of objects with role, content where text is wanted: choose"),
        ('["a"]', "a list that begins with text where text is wanted"),
        ('{"a": 1}', "an object where text is wanted"),
    ],
)
def test_a_first_record_without_text_says_what_is_there(tmp_path, value, what):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": {value}}}\n')
    with pytest.raises(Refused, match=f"column 'text' holds {what}"):
        documents(path)


def test_columns_that_are_not_read_may_hold_anything(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"id": number, "text": "x" * 300} for number in range(40_000)]
    odd = {"id": "x", "text": "last", "more": {"a": [1]}}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, odd]))
    assert documents(path, 39_999) == ["x" * 300, "last"]


BAD = ['{"text": null}', '{"text": 3}', '{"text": "cut', '{"other": "x"}', '"text"']


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_records_are_refused_or_left_out_as_asked(tmp_path, bad, place):
    path = tmp_path / "a.jsonl"
    good = ['{"text": "one"}', '{"text": "two"}']
    path.write_text("\n".join([*good[:place], bad, *good[place:]]))
    with pytest.raises((Damaged, Refused), match=r"(document 1|first record) of .*cannot be read"):
        documents(path)
    found = documents(path, bad_records="skip")
    assert isinstance(found.pop(place), Bad)
    assert found == ["one", "two"]


def test_a_damaged_archive_is_named_and_not_tried_again(tmp_path):
    path = tmp_path / "a.txt.gz"
    with pa.CompressedOutputStream(str(path), "gzip") as file:
        file.write("".join(f"line {number} {os.urandom(9).hex()}\n" for number in range(9000)).encode())
    path.write_bytes(path.read_bytes()[:-200])
    corpus = open_corpus(HarvestConfig(dataset=str(path), documents="lines"))
    with pytest.raises(Damaged, match=r"a\.txt\.gz: Truncated.*mend the file"):
        list(resuming(corpus, 0, lambda seconds: pytest.fail("waited")))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(Damaged, match=r"latin\.txt is no UTF-8 text: 'utf-8' codec can't decode .*; save it as UTF-8"):
        documents(tmp_path / "latin.txt")


def test_a_file_that_grows_long_is_read_a_little_at_a_time(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word word\n\n" * 2_000_000)
    corpus = open_corpus(HarvestConfig(dataset=str(path)))
    assert list(islice(corpus.documents(0), 2)) == ["word word", "word word"]
