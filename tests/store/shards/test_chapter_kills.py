"""Manifests with chapters after a death at any file operation."""

import pytest

from tests.child import forked

DEATHS = """
import sys
from pathlib import Path
from tests.store.shards.chapter_kills import main

main(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize("points", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_death_at_any_file_operation_leaves_a_sound_store_and_the_same_files(tmp_path, points):
    assert f"killed at {points} points" in forked(DEATHS, str(tmp_path), str(points))
