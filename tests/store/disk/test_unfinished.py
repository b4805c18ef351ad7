"""A folder of finished parts belongs to one process at a time, and goes with the end of the work."""

import pytest

from store.disk.unfinished import unfinished_folder
from store.errors import Busy


def test_only_one_works_in_it_and_it_goes_at_a_clean_end(tmp_path):
    place = tmp_path / "result" / "unfinished"
    with unfinished_folder(place, "a key", anew=False) as work:
        (work / "part").write_text("x")
        with pytest.raises(Busy, match=r"is writing .*result; wait for it"), unfinished_folder(place, "a key", anew=True):
            pass
        assert (work / "part").exists()
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "anew", "kept"), [("a key", False, True), ("a key", True, False), ("another", False, False)]
)
def test_an_error_keeps_the_parts_for_the_same_key_alone(tmp_path, key, anew, kept):
    place = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt), unfinished_folder(place, "a key", anew=False) as work:
        (work / "part").write_text("x")
        raise KeyboardInterrupt
    with unfinished_folder(place, key, anew) as work:
        assert (work / "part").exists() == kept
