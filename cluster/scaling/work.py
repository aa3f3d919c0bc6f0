"""Counts the work of one replica for the policy.

Each pool counts in its own unit:

- Router: requests. It is busy while its process uses a CPU.
- Preprocessor: pixels of pictures as they are stored.
- VisionEncoder: patches of pictures that it has to encode.
- Decoder: prompt tokens that it has to prefill.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

OFFERED: Final = "offered"
NUM_CALLS: Final = "num_calls"
WORK: Final = "work"
BUSY_S: Final = "busy_s"
WAITING: Final = "waiting"
FULLNESS: Final = "fullness"
"""The names of the figures of one replica. ``OFFERED``, ``NUM_CALLS``, ``WORK`` and ``BUSY_S`` only grow."""


LATEST_WEIGHT: Final = 0.1
"""The weight of the last call in the share of calls that are not refused."""


class OfferedWork:
    """The work that has arrived at one replica since its start."""

    def __init__(self) -> None:
        self._work = 0.0
        self._accepted_share = 1.0
        self.num_calls = 0

    def arrived(self, work: float) -> None:
        """Counts the work of a call that has arrived."""
        self._work += work
        self.num_calls += 1

    @contextmanager
    def expecting(self, work: float, *, unless: type[Exception]) -> Iterator[None]:
        """Counts the work of a call that may still be refused inside the block.

        When the block begins, the work counts times the share of recent calls that were accepted. When the block ends,
        the rest counts. If the block refuses the call, only the first part stays. A series of refused calls therefore
        adds little demand, and accepted calls count at once.

        Args:
            work: The work of the call if it is not refused.
            unless: The exception with which the block refuses the call.
        """
        expected = self._accepted_share * work
        self.arrived(expected)
        try:
            yield
        except unless:
            self._accepted_share *= 1 - LATEST_WEIGHT
            raise
        self._accepted_share += (1 - self._accepted_share) * LATEST_WEIGHT
        self._work += work - expected

    def stats(self, work: float, busy_s: float, *, waiting: float = 0.0, fullness: float = 0.0) -> dict[str, float]:
        """The figures that the policy reads, by their names.

        Args:
            work: The work that is done since the start.
            busy_s: The seconds since the start in which the replica itself worked.
            waiting: The work that waits in this replica now.
            fullness: The share of the replica's room that is used, from 0 to 1.
        """
        # Serve turns the statistics of a replica off for good if the first value is a number of NumPy.
        return {
            OFFERED: float(self._work),
            NUM_CALLS: float(self.num_calls),
            WORK: float(work),
            BUSY_S: float(busy_s),
            WAITING: float(waiting),
            FULLNESS: float(fullness),
        }
