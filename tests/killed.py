"""For scripts whose children are really killed, in the middle of a function chosen by the test."""

import os
import signal
import threading
from collections.abc import Callable

from tqdm import tqdm

tqdm.set_lock(threading.RLock())  # its own lock is shared by all children: one killed while drawing would hang the next


def dies_at(function: Callable, n: int) -> Callable:
    """The function, whose n-th call in this process ends it by SIGKILL."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped
