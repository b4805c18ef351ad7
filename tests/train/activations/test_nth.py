"""The n-th largest over processes, against torch.kthvalue of all values."""

import struct

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.child import forked
from tests.train.activations.making import cases
from train.activations.nth import nth_largest
from train.parallel import Group

FLOATS = st.floats(width=32, allow_nan=False)
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, float("inf"), float("-inf"), 2.0**-149, -(2.0**-149)])


class Alone(Group):
    """All of several processes in one: the path of many, with the sums of one."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def bits(value: torch.Tensor | float) -> bytes:
    return struct.pack("f", float(value) + 0.0)


@given(st.lists(FLOATS | TIED, min_size=1, max_size=300), st.data())
def test_it_is_the_nth_largest_bit_for_bit(numbers, data):
    values = torch.tensor(numbers)
    n = data.draw(st.integers(1, len(values)))
    expected = torch.kthvalue(values, len(values) - n + 1).values
    assert bits(nth_largest(values, n, Alone(0, 2))) == bits(expected)
    assert bits(nth_largest(values, n, Group())) == bits(expected)
    assert bits(np.sort(values.numpy())[-n]) == bits(expected)


PROCESSES = """
import sys
import torch, torch.distributed as dist
from tests.child import fork_ranks
from tests.train.activations.making import cases
from train.activations.nth import nth_largest
from train.parallel import Group

torch.set_num_threads(1)
folder = sys.argv[1]


def child(rank, world):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    found = [nth_largest(values[rank], n, Group(rank, world)) for values, n in cases(world)]
    torch.save(torch.stack(found), f"{folder}/found-{world}-{rank}")


for world in (1, 2, 3, 4):
    fork_ranks(world, lambda rank: child(rank, world))
"""


def test_one_to_four_processes_find_it_together(tmp_path):
    forked(PROCESSES, str(tmp_path))
    for world in (1, 2, 3, 4):
        expected = [torch.kthvalue(torch.cat(parts), sum(map(len, parts)) - n + 1).values for parts, n in cases(world)]
        for rank in range(world):
            found = torch.load(tmp_path / f"found-{world}-{rank}")
            assert [bits(each) for each in found] == [bits(each) for each in expected]
