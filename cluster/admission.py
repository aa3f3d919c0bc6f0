"""Admission: what one Router replica takes on at a time, in requests and in bytes. What does not fit is refused at
once."""

from __future__ import annotations

from typing import Final

from cluster.errors import BodyTooLarge, Overloaded


class Admission:
    """The slots and the bytes of one Router replica.

    Args:
        max_requests: Requests in flight.
        max_bytes: Bytes of bodies and pictures that are held for requests which have not yet begun to answer.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests: Final = max_requests
        self._max_bytes: Final = max_bytes
        self.num_requests = 0
        self.num_bytes = 0

    def enter(self) -> Slot:
        """Takes a slot.

        Raises:
            Overloaded: All are taken.
        """
        if self.num_requests >= self._max_requests:
            message = (
                f"{self.num_requests} requests are in flight here, which is the limit; send the request again shortly."
            )
            raise Overloaded(message, in_flight=self.num_requests, limit=self._max_requests)
        self.num_requests += 1
        return Slot(self)

    def release(self) -> None:
        """Gives a slot back."""
        self.num_requests -= 1

    def release_bytes(self, num_bytes: int) -> None:
        """Gives bytes back that ``take_bytes`` gave."""
        self.num_bytes -= num_bytes

    def take_bytes(self, num_bytes: int, *, beside: int) -> None:
        """Takes so many bytes for a request that has some already.

        Raises:
            BodyTooLarge: The request alone needs more than there are.
            Overloaded: They do not fit beside those of the other requests.
        """
        if beside + num_bytes > self._max_bytes:
            message = f"The request and its pictures need more than the {self._max_bytes} bytes that are held; send fewer pictures."
            raise BodyTooLarge(message, asked_bytes=beside + num_bytes, limit_bytes=self._max_bytes)
        if self.num_bytes + num_bytes > self._max_bytes:
            message = (
                f"{self.num_bytes} bytes of requests and pictures are held here, near the limit; send it again shortly."
            )
            raise Overloaded(message, held_bytes=self.num_bytes, limit_bytes=self._max_bytes)
        self.num_bytes += num_bytes


class Slot:
    """One request's slot and its bytes; giving either back twice counts once.

    A request that is refused bytes gives back at once those that it has: two that do not fit together would else both
    be refused, each for what the other still holds.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission: Final = admission
        self._num_bytes = 0
        self._is_refused = False
        self.is_left = False

    def hold(self, num_bytes: int) -> None:
        """Holds so many bytes more.

        Raises:
            BodyTooLarge: The request alone needs more than there are.
            Overloaded: They do not fit beside those of the other requests.
        """
        assert not self.is_left, "a request that has ended holds nothing"
        if self._is_refused:
            raise Overloaded("Another part of the request did not fit; send it again shortly.")
        try:
            self._admission.take_bytes(num_bytes, beside=self._num_bytes)
        except (BodyTooLarge, Overloaded):
            self._is_refused = True
            self.drop_bytes()
            raise
        self._num_bytes += num_bytes

    def drop_bytes(self) -> None:
        """Gives the bytes back."""
        self._admission.release_bytes(self._num_bytes)
        self._num_bytes = 0

    def leave(self) -> None:
        """Gives everything back."""
        self.drop_bytes()
        if not self.is_left:
            self.is_left = True
            self._admission.release()
