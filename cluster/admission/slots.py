"""The limits of one Router on requests in flight and on bytes, and what each request holds of them.

In: a request that arrives, and the bytes that it needs. Out: a ``Slot``, or an error at once if it does not fit.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from cluster.admission.kept import EvictableBytes, KeptPictures
from cluster.errors import BodyTooLarge, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.admission.gate import Pass
    from cluster.messages import Picture

MAX_SHARE_OF_SLOTS: Final = 7
"""A tenant may have so many requests for each slot that is free. One tenant alone can fill seven eighths of the slots,
and many tenants together can fill all of them.

Source: Choudhury and Hahne, Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, 1998.
"""
FOR_TENANTS: Final = "There is no room for the request now; send it again when Retry-After is over."


class Admission:
    """The limits of one Router replica, and what is in use.

    Args:
        max_requests: The most requests in flight.
        max_bytes: The most bytes of bodies and pictures, over all requests in flight. Pictures that may be evicted
            count as free.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.set_limits(max_requests, max_bytes)
        self.evictable = EvictableBytes()
        self.retry_after_s: Callable[[str], int] = lambda _: 1
        """Tells the seconds for ``Retry-After`` of a tenant's request that is refused here."""
        self.num_requests = 0
        self.num_bytes = 0
        self._num_requests_of: Final[Counter[str]] = Counter()

    def set_limits(self, max_requests: int, max_bytes: int) -> None:
        """Changes both limits. Requests that are in flight keep what they have, even if it is more than the limits."""
        self._max_requests = max_requests
        self._max_bytes = max_bytes

    def enter(self, tenant: str = "") -> Slot:
        """Takes a slot for a request.

        Args:
            tenant: Its tenant, which may have fewer than ``MAX_SHARE_OF_SLOTS`` requests for each free slot. If it is
                empty, only ``max_requests`` counts.

        Raises:
            Overloaded: No slot is free, or the tenant has too many for those that are.
        """
        if self.num_requests >= self._max_requests:
            message = (
                f"{self.num_requests} requests are in flight here, which is the limit; send the request again shortly."
            )
            raise self._refusal(tenant, message, in_flight=self.num_requests, limit=self._max_requests)
        if tenant and self._num_requests_of[tenant] >= MAX_SHARE_OF_SLOTS * self.num_free:
            raise self._refusal(tenant, "")
        self.num_requests += 1
        self._num_requests_of[tenant] += 1
        return Slot(self, tenant)

    def release(self, tenant: str) -> None:
        """Gives a slot of a tenant back."""
        self.num_requests -= 1
        self._num_requests_of[tenant] -= 1
        if not self._num_requests_of[tenant]:
            del self._num_requests_of[tenant]

    def release_bytes(self, num_bytes: int) -> None:
        """Gives back bytes that ``take_bytes`` has given out."""
        self.num_bytes -= num_bytes

    def take_bytes(self, num_bytes: int, *, held: int, tenant: str) -> None:
        """Takes bytes for a request. If they do not fit, pictures that may be evicted make way, the oldest first.

        Args:
            num_bytes: The bytes to take.
            held: The bytes that the request has already.
            tenant: Its tenant.

        Raises:
            BodyTooLarge: The request alone needs more than ``max_bytes``.
            Overloaded: The bytes do not fit while other requests hold theirs.
        """
        if held + num_bytes > self._max_bytes:
            message = (
                f"The request and its pictures need more than {self._max_bytes} bytes, which is the limit; "
                "send fewer pictures."
            )
            raise BodyTooLarge(message, asked_bytes=held + num_bytes, limit_bytes=self._max_bytes)
        needed_bytes = self.num_bytes - self.evictable.num_bytes
        if needed_bytes + num_bytes > self._max_bytes:
            message = (
                f"{needed_bytes} bytes of requests and pictures are held here, near the limit; "
                "send the request again shortly."
            )
            raise self._refusal(tenant, message, held_bytes=needed_bytes, limit_bytes=self._max_bytes)
        while self.num_bytes + num_bytes > self._max_bytes:
            self.num_bytes -= self.evictable.evict()
        self.num_bytes += num_bytes

    @property
    def num_free(self) -> int:
        """The slots that are free."""
        return max(0, self._max_requests - self.num_requests)

    def _refusal(self, tenant: str, message: str, **figures: Any) -> Overloaded:
        """The error with the time after which the client may try again. A tenant is told no figures, because they would
        tell it what others do."""
        error = Overloaded(FOR_TENANTS) if tenant else Overloaded(message, **figures)
        error.retry_after_s = self.retry_after_s(tenant)
        return error


class Slot:
    """One request's slot, its bytes and its passes. Giving them back a second time has no effect.

    When a request cannot reserve more bytes, it releases the ones it holds immediately. Otherwise two requests that do
    not fit together could each be rejected because of the other.
    """

    def __init__(self, admission: Admission, tenant: str) -> None:
        self._admission: Final = admission
        self._tenant: Final = tenant
        self._num_bytes = 0
        self._kept: KeptPictures | None = None
        self._passes: Final[list[Pass]] = []
        self._is_refused = False
        self.is_left = False

    def hold(self, num_bytes: int) -> None:
        """Reserves more bytes for the request.

        Raises:
            BodyTooLarge: The request alone needs more than the limit.
            Overloaded: The bytes do not fit while other requests hold theirs.
        """
        assert not self.is_left, "a request that has ended holds nothing"
        if self._is_refused:
            raise Overloaded("Another part of the request did not fit; send the request again shortly.")
        try:
            self._admission.take_bytes(num_bytes, held=self._num_bytes, tenant=self._tenant)
        except (BodyTooLarge, Overloaded):
            self._is_refused = True
            self.drop_bytes()
            raise
        self._num_bytes += num_bytes

    def keep(self, pictures: Iterable[Picture], num_text_bytes: int) -> KeptPictures:
        """Holds these bytes in place of all that the request has reserved: its body was read and is gone.

        Args:
            pictures: The distinct pictures of the request.
            num_text_bytes: The bytes of the rest of its body. They are held until the request ends.
        """
        assert self._kept is None, "a request keeps its pictures once"
        kept = self._kept = KeptPictures(pictures, self._admission.evictable)
        self._admission.release_bytes(self._num_bytes - kept.num_bytes - num_text_bytes)
        self._num_bytes = num_text_bytes
        return kept

    def attach(self, one: Pass) -> None:
        """Has a pass given back when the request leaves, at the latest."""
        self._passes.append(one)

    def drop_bytes(self) -> None:
        """Releases all bytes of the request and keeps its slot. A second call has no effect."""
        self._admission.release_bytes(self._num_bytes + (self._kept.num_bytes if self._kept else 0))
        self._num_bytes = 0
        if self._kept:
            self._kept.drop()

    def leave(self) -> None:
        """Gives the bytes, the slot and the passes back."""
        self.drop_bytes()
        if not self.is_left:
            self.is_left = True
            self._admission.release(self._tenant)
            for one in self._passes:
                one.leave()
