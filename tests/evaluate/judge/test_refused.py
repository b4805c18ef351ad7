"""A bad file of a judge is told apart from a file that belongs to other questions."""

import json
from pathlib import Path

import pytest

from evaluate.judge.score import read_answers, read_lines
from store.errors import Damaged, Refused


def answers(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([{"id": "other", "answer": True}], Refused),
        ([{"id": "asked", "answer": "maybe"}], Damaged),
        ([{"id": "asked", "answer": True}, {"id": "asked", "answer": False}], Damaged),
        ([{"id": "asked"}], Damaged),
        ([["id", "answer"]], Damaged),
    ],
)
def test_answers_of_other_questions_are_refused_and_bad_lines_are_damage(tmp_path, lines, kind):
    with pytest.raises(kind):
        read_answers(answers(tmp_path, *lines), [{"id": "asked"}])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        read_lines(tmp_path / "none.jsonl")
