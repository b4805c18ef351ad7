"""Costs of the order of rows by their number: drawing it, and the memory that it takes."""

import time
from itertools import islice

from store.loader.schedule import LEAST_PIECE_BYTES, Mix, Schedule
from tests.bench.scale.tables import Costs, Table, traced
from train.config import TrainConfig

ROW_BYTES = (4608, 4608)
SHARD_ROWS = 65_000
CUTS = 5
"""Cuts of an epoch whose first window is timed: it draws the order of the shards."""
TIMES = 3
WINDOWS = 100
"""Further windows of one cut that are timed."""


def tables(small: bool) -> list[Table]:
    rows = [10**7, 10**8] if small else [10**8, 10**9, 10**10, 10**11]
    pieces = {
        "order of an epoch, CPU s": TrainConfig().piece_bytes,
        "the same in the smallest pieces, CPU s": LEAST_PIECE_BYTES,
    }
    found = Costs()
    for size in rows:
        for name, piece in pieces.items():
            found.note(name, min(of_epoch(size, piece) for _ in range(TIMES)))
        found.note("memory of the order, MB", traced(lambda size=size: next(schedule_of(size).windows(0))))
    return [Table("rows", rows, found)]


def schedule_of(rows: int, piece_bytes: int = LEAST_PIECE_BYTES) -> Schedule:
    shards = rows // SHARD_ROWS
    return Schedule([SHARD_ROWS] * shards, 0, Mix.of(shards, ROW_BYTES, piece_bytes))


def of_epoch(rows: int, piece_bytes: int) -> float:
    """CPU seconds of drawing an epoch: the first window of each cut, and the windows that follow it."""
    schedule = schedule_of(rows, piece_bytes)
    start = time.process_time()
    firsts = [next(schedule._of_cut(0, cut)) for cut in range(min(CUTS, schedule.cuts))]
    first = (time.process_time() - start) / len(firsts)
    windows = schedule._of_cut(0, 0)
    next(windows)
    start = time.process_time()
    others = len(list(islice(windows, WINDOWS)))
    other = (time.process_time() - start) / max(others, 1)
    return schedule.cuts * (first + (schedule.groups - 1) * other)
