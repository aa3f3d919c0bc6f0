"""A token bucket: it fills steadily up to what a minute allows, and requests take from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MINUTE_S: Final = 60.0


class TokenBucket:
    """A token bucket that is full at the beginning.

    Args:
        per_minute: The tokens that flow in within a minute. The bucket holds as many, and one at least.
        clock: Gives the time in seconds.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._per_s = per_minute / MINUTE_S
        self._capacity = max(1.0, per_minute)
        self._level = self._capacity
        self._at_s = clock()

    def set_rate(self, per_minute: float) -> None:
        """Changes how fast the bucket fills and how much it holds. Tokens that do not fit any more are lost."""
        self._fill()
        self._per_s, self._capacity = per_minute / MINUTE_S, max(1.0, per_minute)
        self._level = min(self._level, self._capacity)

    @property
    def level(self) -> float:
        """The tokens that can be taken now; less than 0 after something that was larger than the bucket."""
        self._fill()
        return self._level

    def take(self, num_tokens: int) -> bool:
        """Takes tokens if enough are there, and returns True if it did.

        A request for more tokens than the bucket holds is served when the bucket is full, because it could never be
        served otherwise. The level is then below 0, and nobody gets tokens until it has risen again.
        """
        if self.wait_s(num_tokens) > 0:
            return False
        self._level -= num_tokens
        return True

    def wait_s(self, num_tokens: int) -> float:
        """The seconds until so many tokens can be taken, if nobody takes any before."""
        return max(0.0, (min(num_tokens, self._capacity) - self.level) / self._per_s)

    def full_s(self) -> float:
        """The seconds until the bucket is full, if nobody takes any tokens before."""
        return (self._capacity - self.level) / self._per_s

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self._capacity, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
