"""Shards of tokens made ahead, in a thread."""

from collections.abc import Iterator
from threading import Event, current_thread, main_thread

import pytest
import torch

from harvest.text.stream import ahead
from harvest.text.tokens import PackedShard


def shard(number: int) -> PackedShard:
    return PackedShard(
        tokens=torch.full((1, 2), number, dtype=torch.int32), first_document=number, next_document=number + 1
    )


def test_the_next_shard_is_made_while_one_is_used_and_no_more():
    begun = [Event() for _ in range(6)]

    def made() -> Iterator[PackedShard]:
        for number in range(5):
            assert current_thread() is not main_thread()
            begun[number].set()
            yield shard(number)

    seen = []
    for each in ahead(made(), 1):
        number = each.first_document
        seen.append(number)
        assert number == 4 or begun[number + 1].wait(60)
        assert not begun[number + 2].is_set() if number < 3 else True
    assert seen == [0, 1, 2, 3, 4]


def test_what_making_a_shard_raises_comes_in_its_turn():
    def made() -> Iterator[PackedShard]:
        yield shard(0)
        raise ValueError("a bad record")

    stream = ahead(made(), 1)
    assert next(stream).first_document == 0
    with pytest.raises(ValueError, match="a bad record"):
        next(stream)


def test_what_is_beyond_the_last_shard_taken_is_not_looked_at():
    def made() -> Iterator[PackedShard]:
        yield shard(0)
        raise AssertionError

    stream = ahead(made(), 1)
    next(stream)
    stream.close()


@pytest.mark.parametrize("most", [0, 1, 3])
def test_no_more_shards_are_made_ahead_than_asked_for(most):
    asked = []

    def made() -> Iterator[PackedShard]:
        for number in range(9):
            asked.append(number)
            yield shard(number)

    numbers = []
    for each in ahead(made(), most):
        numbers.append(each.first_document)
        assert len(asked) <= len(numbers) + most
    assert numbers == list(range(9))


def test_closed_early_no_further_shard_is_begun():
    begun, may_end = Event(), Event()
    asked = []

    def made() -> Iterator[PackedShard]:
        yield shard(0)
        for number in range(1, 9):
            asked.append(number)
            begun.set()
            assert may_end.wait(60)
            yield shard(number)

    stream = ahead(made(), 4)
    next(stream)
    assert begun.wait(60)
    may_end.set()
    stream.close()
    assert len(asked) <= 5
