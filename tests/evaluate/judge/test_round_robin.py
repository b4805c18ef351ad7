"""Texts are dealt out from several lists in turn."""

from itertools import zip_longest

from hypothesis import given
from hypothesis import strategies as st

from evaluate.judge.negatives import round_robin


def test_one_item_of_each_list_comes_before_a_second_of_any():
    assert list(round_robin(["abc", "", "d", "ef"])) == ["a", "d", "e", "b", "f", "c"]
    assert list(round_robin([])) == []


@given(st.lists(st.lists(st.integers())))
def test_items_come_by_their_place_in_their_list(lists):
    expected = [item for turn in zip_longest(*lists) for item in turn if item is not None]
    assert list(round_robin(lists)) == expected
