"""The mean of a figure over the last seconds."""

from __future__ import annotations

from collections import deque
from typing import Final


class RecentMean:
    """Keeps the samples of a figure, such as the number of calls.

    Args:
        kept_s: The seconds for which samples are kept. No mean is over a longer time.
    """

    def __init__(self, kept_s: float) -> None:
        self._kept_s: Final = kept_s
        self._samples: Final[deque[tuple[float, float]]] = deque()

    def note(self, at_s: float, value: float) -> None:
        """Takes a sample. One that is not newer than the last one is left out."""
        if self._samples and at_s <= self._samples[-1][0]:
            return
        self._samples.append((at_s, value))
        while self._samples[0][0] <= at_s - self._kept_s:
            self._samples.popleft()

    def over(self, window_s: float) -> float:
        """The mean of the samples of so many seconds before the newest one, which is included; 0 without samples."""
        if not self._samples:
            return 0.0
        first_s = self._samples[-1][0] - window_s
        values = [value for at_s, value in self._samples if at_s > first_s]
        return sum(values) / len(values)
