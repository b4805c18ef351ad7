"""notes.json: changes that meet, files that are damaged, and what a note may be."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from evaluate.notes.file import EMPTY, Note, change_note, read_notes
from store.disk import files
from store.errors import Damaged, Refused


def test_a_note_is_written_changed_and_removed(tmp_path):
    assert read_notes(tmp_path) == {}
    assert change_note(tmp_path, 42, {"star": True}) == Note(star=True)
    assert change_note(tmp_path, 7, {"name": "  plural\n nouns "}) == Note(name="plural nouns")
    assert change_note(tmp_path, 42, {"note": "see #7\nand #8"}) == Note(star=True, note="see #7\nand #8")
    assert json.loads((tmp_path / "notes.json").read_text()) == {
        "format_version": 1,
        "latents": {
            "7": {"star": False, "name": "plural nouns", "note": ""},
            "42": {"star": True, "name": "", "note": "see #7\nand #8"},
        },
    }
    assert change_note(tmp_path, 7, {"name": ""}) == EMPTY
    assert read_notes(tmp_path) == {42: Note(star=True, note="see #7\nand #8")}
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def star(folder: Path, latent: int) -> None:
    change_note(folder, latent, {"star": True})
    change_note(folder, 1000, {("name", "note")[latent % 2]: "x"})


def test_changes_from_many_threads_and_processes_are_all_kept(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(partial(star, tmp_path), range(20)))
    with multiprocessing.get_context("fork").Pool(3) as processes:
        processes.map(partial(star, tmp_path), range(20, 40))
    notes = read_notes(tmp_path)
    assert sorted(notes) == [*range(40), 1000]
    assert notes[1000] == Note(name="x", note="x")


def test_killed_while_writing_the_notes_before_are_there(tmp_path, monkeypatch):
    change_note(tmp_path, 1, {"star": True})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            change_note(tmp_path, 2, {"star": True})
    assert list(read_notes(tmp_path)) == [1]
    change_note(tmp_path, 3, {"star": True})
    assert list(read_notes(tmp_path)) == [1, 3]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format_version": 2, "latents": {}}',
        '{"format_version": 1, "latents": {"-1": {}}}',
        '{"format_version": 1, "latents": {"1": {"colour": "red"}}}',
        '{"format_version": 1, "latents": {}, "more": 1}',
    ],
)
def test_a_file_that_is_none_of_ours_is_named_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_text(content)
    for act in (lambda: read_notes(tmp_path), lambda: change_note(tmp_path, 1, {"star": True})):
        with pytest.raises(Damaged) as caught:
            act()
        assert str(caught.value).startswith(f"{path} cannot be read (")
        assert "\n" not in str(caught.value)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"star": 1}, "a note has a star"),
        ({"colour": "red"}, "a note has a star"),
        ({"name": None}, "a note has a star"),
        ({"name": "x" * 81}, "the name has 81 characters; 80 are the most"),
        ({"note": "x" * 4001}, "the note has 4,001 characters; 4,000 are the most"),
    ],
)
def test_what_is_no_note_is_refused_in_one_line(tmp_path, changes, said):
    with pytest.raises(Refused, match=said):
        change_note(tmp_path, 1, changes)
    assert not (tmp_path / "notes.json").exists()
