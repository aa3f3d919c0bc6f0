"""The clock of a simulation: actions in the order of their times."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class EventClock:
    """Runs actions in the order of their times. Actions of the same time run in the order in which they were added.

    ``now_s`` is the time of the action that runs, in seconds.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: Final[list[tuple[float, int, Callable[[], None]]]] = []
        self._num_added = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Runs an action at a time, or now if that time has passed."""
        self._num_added += 1
        heapq.heappush(self._events, (max(time_s, self.now_s), self._num_added, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Runs an action after a delay."""
        self.at(self.now_s + delay_s, action)

    def run(self, *, until_s: float = math.inf, is_done: Callable[[], bool] = bool) -> None:
        """Runs actions until there are none, until the next one is later than ``until_s``, or until ``is_done``."""
        events = self._events
        while events and events[0][0] <= until_s and not is_done():
            self.now_s, _, action = heapq.heappop(events)
            action()
