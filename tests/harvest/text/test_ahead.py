"""Shards of tokens made one ahead, in a thread."""

from collections.abc import Iterator
from threading import Event, current_thread, main_thread

import pytest
import torch

from harvest.text.stream import one_ahead
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
    for each in one_ahead(made()):
        number = each.first_document
        seen.append(number)
        assert number == 4 or begun[number + 1].wait(60)
        assert not begun[number + 2].is_set() if number < 3 else True
    assert seen == [0, 1, 2, 3, 4]


def test_what_making_a_shard_raises_comes_in_its_turn():
    def made() -> Iterator[PackedShard]:
        yield shard(0)
        raise ValueError("a bad record")

    stream = one_ahead(made())
    assert next(stream).first_document == 0
    with pytest.raises(ValueError, match="a bad record"):
        next(stream)


def test_what_is_beyond_the_last_shard_taken_is_not_looked_at():
    def made() -> Iterator[PackedShard]:
        yield shard(0)
        raise AssertionError

    stream = one_ahead(made())
    next(stream)
    stream.close()
