"""Counts the use of one key in one Router, and makes the headers that tell its owner."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cluster.access.buckets import MINUTE_S, TokenBucket
from cluster.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster.access.keys import KeyEntry

REQUESTS, PICTURE_TOKENS = "requests", "picture-tokens"
CONCURRENT_RETRY_S: Final = 1.0
"""Nobody knows when a request of the same key ends, so a refusal for too many at a time asks to wait for so long."""


class Meter:
    """The use of one key.

    With several Routers each grants its share of the limits, because Routers do not talk about every request. HAProxy
    spreads requests evenly.

    Args:
        entry: The key's limits.
        num_routers: The Routers among which the limits are divided.
        clock: Gives the time in seconds.
    """

    def __init__(self, entry: KeyEntry, num_routers: int, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._buckets: Final[dict[str, TokenBucket]] = {}
        self._num_running = 0
        self.set_limits(entry, num_routers)

    def set_limits(self, entry: KeyEntry, num_routers: int) -> None:
        """Changes the limits. The key keeps the tokens that it has left, at most as many as the new limit allows. A
        new limit begins full."""
        self._num_routers = num_routers
        self._max_running = math.ceil(entry.max_concurrent / num_routers) if entry.max_concurrent else None
        self._limits = {REQUESTS: entry.requests_per_minute, PICTURE_TOKENS: entry.picture_tokens_per_minute}
        for name, per_minute in self._limits.items():
            if per_minute is None:
                self._buckets.pop(name, None)
            elif name in self._buckets:
                self._buckets[name].set_rate(per_minute / num_routers)
            else:
                self._buckets[name] = TokenBucket(per_minute / num_routers, self._clock)

    def enter(self) -> None:
        """Counts a request for an answer. Call ``leave`` when it has ended.

        Raises:
            RateLimited: The key has too many requests at a time, or in a minute.
        """
        if self._max_running is not None and self._num_running >= self._max_running:
            message = "The API key has too many requests at the same time; wait for one of them to end."
            raise RateLimited(message, wait_s=CONCURRENT_RETRY_S, limit=self._max_running)
        self._take(REQUESTS, 1)
        self._num_running += 1

    def leave(self) -> None:
        """Counts the end of a request that has entered."""
        self._num_running -= 1

    def spend_picture_tokens(self, num_tokens: int) -> None:
        """Counts the tokens of a request's pictures.

        Raises:
            RateLimited: The key does not have that many tokens left now.
        """
        if num_tokens:
            self._take(PICTURE_TOKENS, num_tokens)

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """The headers ``x-ratelimit-…`` for each limit that the key has."""
        for name, bucket in self._buckets.items():
            limit, left = self._limits[name], bucket.level * self._num_routers
            yield b"x-ratelimit-limit-%s" % name.encode(), b"%d" % (limit or 0)
            yield b"x-ratelimit-remaining-%s" % name.encode(), b"%d" % max(0, min(limit or 0, math.floor(left)))
            yield b"x-ratelimit-reset-%s" % name.encode(), _duration(bucket.full_s()).encode()

    def _take(self, name: str, num_tokens: int) -> None:
        bucket = self._buckets.get(name)
        if bucket is not None and not bucket.take(num_tokens):
            words = name.replace("-", " ")
            message = f"The API key has used up its {words} per minute; send the request again later."
            limit = self._limits[name] or 0
            raise RateLimited(message, wait_s=bucket.wait_s(num_tokens), limit=limit, asked=num_tokens)


def _duration(seconds: float) -> str:
    """A time as OpenAI's headers have it, such as ``0.25s`` or ``1m3s``."""
    seconds = math.ceil(seconds * 1000) / 1000
    minutes = int(seconds // MINUTE_S)
    return f"{minutes}m{seconds - minutes * MINUTE_S:.3g}s" if minutes else f"{seconds:.3g}s"
