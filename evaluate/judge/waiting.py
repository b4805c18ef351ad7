"""When a request to a server is repeated, and how long that waits."""

from collections.abc import Iterator

BUSY = (408, 409, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed."""

LONGEST_WAIT = 60.0
"""Seconds."""


def waits(first: float, retries: int) -> Iterator[float]:
    """Seconds to wait before each repetition: `first`, then twice as long each time."""
    return (min(first * 2**number, LONGEST_WAIT) for number in range(retries))


def asked_to_wait(retry_after: str) -> float:
    """Seconds that an answer's Retry-After asks for; 0 where it names none."""
    return min(float(retry_after), LONGEST_WAIT) if retry_after.isdecimal() else 0.0
