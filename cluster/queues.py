"""The calls that wait for their turn in a replica: how many there are, and how long the oldest waits."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cluster.metrics import QUEUE_LENGTH, QUEUE_OLDEST_S

if TYPE_CHECKING:
    from collections.abc import Iterator


class WaitingCalls:
    """The calls that wait now."""

    def __init__(self) -> None:
        self._since_s: Final[dict[object, float]] = {}

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts a call as waiting inside of the block."""
        call = object()
        self._since_s[call] = time.monotonic()
        try:
            yield
        finally:
            del self._since_s[call]

    @property
    def oldest_s(self) -> float:
        """The seconds that the oldest call has waited, 0 if none waits."""
        first_s = next(iter(self._since_s.values()), None)  # a dict keeps the order of arrival
        return 0.0 if first_s is None else time.monotonic() - first_s

    def __len__(self) -> int:
        return len(self._since_s)


def report_queue(length: int, oldest_s: float) -> None:
    """Sets the gauges of this process's queue.

    Args:
        length: The calls that wait.
        oldest_s: The seconds that the oldest of them has waited.
    """
    QUEUE_LENGTH.set(length)
    QUEUE_OLDEST_S.set(oldest_s)
