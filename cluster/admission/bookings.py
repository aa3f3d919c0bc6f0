"""Refused requests and the times at which they were told to come again.

In: a request that is refused. Out: the seconds for ``Retry-After``. Each refusal books the next free time of its
tenant, so clients that were refused together do not come back together. One that comes back at its time is recognised
by its body.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BOOKINGS: Final = 2**16
"""A Router remembers so many bookings. The oldest are forgotten first."""
MAX_TENANTS: Final = 2**12
"""The ends of the bookings of so many tenants are remembered."""
MAX_AHEAD_S: Final = 600.0
"""Times further ahead are not promised."""
EARLY_S: Final = 0.5
"""A client may come so much before its time."""
LATE_S: Final = 120.0
"""A client may come so much after its time."""
BOOKED_SHARE: Final = 0.9
"""The share of a stage's rate that is booked. The rest makes up for estimates that are too high."""
NAMED_BYTES: Final = 2**16
"""A body is recognised by its length, and by so many bytes at its beginning and at its end."""

Name = bytes


def name_of(tenant: str, body: bytes) -> Name:
    """The name by which a request is recognised when it is sent again."""
    name = blake2b(f"{tenant}\0{len(body)}\0".encode(), digest_size=16)
    name.update(body[:NAMED_BYTES])
    name.update(body[NAMED_BYTES:][-NAMED_BYTES:])
    return name.digest()


class Bookings:
    """The times that were promised to refused requests.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock: Final = clock
        self._times_s: Final[OrderedDict[Name, float]] = OrderedDict()
        self._booked_until_s: Final[OrderedDict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        """The requests that are remembered."""
        return len(self._times_s)

    def is_due(self, name: Name) -> bool:
        """Returns True if a request comes at its booked time: from ``EARLY_S`` before it to ``LATE_S`` after it. The
        booking is removed, also if the request is too late. It stays if the request is too early."""
        booked_s, now_s = self._times_s.get(name), self._clock()
        if booked_s is None or now_s < booked_s - EARLY_S:
            return False
        del self._times_s[name]
        return now_s <= booked_s + LATE_S

    def book(self, name: Name, tenant: str, *, wait_s: float, takes_s: float) -> float:
        """Books the next free time of a tenant. A request that has a booking and comes too early keeps it.

        Args:
            name: The request.
            tenant: Its tenant.
            wait_s: The time in which the requests of the tenant that wait now are done.
            takes_s: The time that the request takes of the tenant's share.

        Returns:
            The seconds until its time; 0 if that has passed. If it would be more than ``MAX_AHEAD_S`` away, nothing is
            booked, and the result is ``MAX_AHEAD_S``.
        """
        now_s = self._clock()
        if (booked_s := self._times_s.get(name)) is not None:
            return max(0.0, booked_s - now_s)
        self._forget(now_s)
        booked_s = max(now_s + wait_s, self._booked_until_s.get(tenant, 0.0)) + takes_s / BOOKED_SHARE
        if booked_s > now_s + MAX_AHEAD_S:
            return MAX_AHEAD_S
        self._booked_until_s[tenant] = booked_s
        self._booked_until_s.move_to_end(tenant)
        self._times_s[name] = booked_s
        return booked_s - now_s

    def _forget(self, now_s: float) -> None:
        """Forgets what is long past, and the oldest if there are too many."""
        while self._times_s:
            oldest = next(iter(self._times_s.values()))
            if len(self._times_s) < MAX_BOOKINGS and oldest + LATE_S >= now_s:
                break
            self._times_s.popitem(last=False)
        if len(self._booked_until_s) >= MAX_TENANTS:
            self._booked_until_s.popitem(last=False)
