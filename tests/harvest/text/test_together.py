"""Token ids that several processes make together, here as threads of one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from threading import Barrier, BrokenBarrierError

import pytest

from harvest.ranks import Rank
from harvest.text.encode import Marked
from harvest.text.records import Bad, Repeat
from harvest.text.together import TokenSharing
from harvest.text.tokens import DOCUMENTS_AT_ONCE
from store.errors import Damaged

N = 11 * DOCUMENTS_AT_ONCE + 7


@dataclass
class Meeting:
    """Where threads give each other what they made, as processes do by gloo."""

    world: int
    given: dict[int, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.world, timeout=60)

    def ranks(self) -> list[Rank]:
        return [Thread(index, self.world, meeting=self) for index in range(self.world)]


@dataclass(frozen=True)
class Thread(Rank):
    meeting: Meeting = field(kw_only=True)

    def gather(self, value):
        try:
            self.meeting.given[self.index] = value
            self.meeting.barrier.wait()
            found = [self.meeting.given[index] for index in range(self.world)]
            self.meeting.barrier.wait()
        except BrokenBarrierError:
            raise ConnectionError("another process has ended") from None
        return found


def texts(start: int = 0) -> Iterator[str]:
    return (f"{number}" for number in range(start, N))


def encode(documents):
    """Of document n a list of n % 3 times n; of every tenth something that is no list."""
    for document in documents:
        number = int(document)
        if number % 10 == 3:
            yield [Bad("no text"), Repeat(), Marked([number], [True])][number // 10 % 3]
        else:
            yield [number] * (number % 3)


def together(world: int, act) -> list:
    """What `act` gives for the sharing of each thread."""
    sharings = [TokenSharing(rank) for rank in Meeting(world).ranks()]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(act, sharings))


@pytest.mark.parametrize("world", [2, 3, 4])
def test_each_process_gets_all_ids_and_makes_an_nth_of_them(world):
    alone = list(encode(texts()))
    n_tokens = sum(len(ids) for ids in alone if isinstance(ids, list | Marked))

    def act(sharing):
        return list(sharing.encoded(texts(), encode)), sharing.made, sharing.received

    found = together(world, act)
    assert [ids for ids, _, _ in found] == [alone] * world
    made = [tokens for _, tokens, _ in found]
    assert sum(made) == n_tokens
    assert {received for _, _, received in found} == {n_tokens}
    assert max(made) < 1.4 * n_tokens / world


def test_a_text_of_whole_rounds_ends_for_all_at_once():
    whole = 4 * DOCUMENTS_AT_ONCE
    found = together(2, lambda sharing: list(sharing.encoded(islice(texts(), whole), encode)))
    assert found == [list(encode(islice(texts(), whole)))] * 2


def test_what_reading_raises_comes_after_the_documents_before_it():
    def broken() -> Iterator[str]:
        yield from islice(texts(), 100)
        raise Damaged("document 100 cannot be read")

    def act(sharing):
        found = []
        with pytest.raises(Damaged, match="document 100"):
            for ids in sharing.encoded(broken(), encode):
                found.append(ids)
        return found

    assert together(2, act) == [list(encode(islice(texts(), 100)))] * 2


def test_processes_that_read_different_texts_are_told_so():
    def act(sharing):
        with pytest.raises(Damaged, match="of this harvest read") as caught:
            list(sharing.encoded(islice(texts(), 70 if sharing.rank.index else N), encode))
        return str(caught.value)

    first, second = together(2, act)
    assert first.startswith("process 1 of this harvest read 70 documents where process 0 read 128")
    assert second.startswith("process 0 of this harvest read 128 documents where process 1 read 70")


def test_a_process_whose_own_reading_breaks_says_why_and_the_others_which_one():
    def act(sharing):
        def broken() -> Iterator[str]:
            yield from islice(texts(), 70)
            raise ValueError("the network is gone")

        with pytest.raises(ValueError, match=r"gone|read 70") as caught:
            list(sharing.encoded(broken() if sharing.rank.index else texts(), encode))
        return str(caught.value)

    first, second = together(2, act)
    assert first.startswith("process 1 of this harvest read 70")
    assert second == "the network is gone"
