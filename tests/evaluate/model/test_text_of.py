"""The text of an intervention comes from an option or a file."""

from pathlib import Path

import pytest

from evaluate.model.config import InterveneConfig
from evaluate.model.intervene import text_of
from store.errors import Refused


def test_the_text_comes_from_the_option_or_the_file(tmp_path):
    path = tmp_path / "text"
    path.write_text("naïve", encoding="utf-8")
    assert text_of(InterveneConfig(run=Path("run"), ablate=(1,), file=path)) == "naïve"
    assert text_of(InterveneConfig(run=Path("run"), ablate=(1,), text="plain")) == "plain"


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "text"
    path.write_text("naïve", encoding="latin-1")
    with pytest.raises(Refused, match=r"text is not UTF-8 text .*save it as UTF-8"):
        text_of(InterveneConfig(run=Path("run"), ablate=(1,), file=path))
