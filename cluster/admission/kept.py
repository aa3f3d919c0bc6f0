"""Pictures whose bytes are kept for a second try, as long as no other request needs the room.

In: the pictures of a request. Out: the same pictures; those that were evicted have ``data=b""``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cluster.messages import Picture


class EvictableBytes:
    """The pictures of one Router whose bytes may be evicted, the oldest first."""

    def __init__(self) -> None:
        self._queue: Final[OrderedDict[tuple[KeptPictures, int], int]] = OrderedDict()
        self.num_bytes = 0

    def add(self, owner: KeptPictures, index: int, num_bytes: int) -> None:
        """Allows a picture to be evicted."""
        self._queue[owner, index] = num_bytes
        self.num_bytes += num_bytes

    def remove(self, owner: KeptPictures, index: int) -> None:
        """Forgets a picture, because its request has ended. It has no effect if the picture is not there."""
        self.num_bytes -= self._queue.pop((owner, index), 0)

    def evict(self) -> int:
        """Evicts the picture that could be evicted for the longest time.

        Returns:
            The bytes that are free now.
        """
        (owner, index), num_bytes = self._queue.popitem(last=False)
        self.num_bytes -= num_bytes
        owner.evict(index)
        return num_bytes


class KeptPictures:
    """The distinct pictures of one request.

    Their bytes stay until ``release``. After that they stay as long as no other request needs the room: the embeddings
    are made, and only a second try on another decoder could use the bytes. Such a try asks for an evicted picture by
    its digest alone.

    Attributes:
        pictures: The pictures. One whose bytes were evicted has ``data=b""``.

    Args:
        pictures: The pictures, without duplicates.
        evictable: The pictures of all requests that may be evicted.
    """

    def __init__(self, pictures: Iterable[Picture], evictable: EvictableBytes) -> None:
        self.pictures: Final = list(pictures)
        self._evictable: Final = evictable
        self.when_released: Callable[[], None] = lambda: None
        """Called once, at the release."""
        self._is_released = False

    @property
    def num_bytes(self) -> int:
        """The bytes of the pictures that are still here."""
        return sum(len(picture.data) for picture in self.pictures)

    def release(self) -> None:
        """Allows the bytes to be evicted, because the decoder has the embeddings. A second call has no effect."""
        if not self._is_released:
            self._is_released = True
            self.when_released()
            for index, picture in enumerate(self.pictures):
                self._evictable.add(self, index, len(picture.data))

    def evict(self, index: int) -> None:
        """Forgets the bytes of a picture. Its digest and size stay."""
        self.pictures[index] = replace(self.pictures[index], data=b"")

    def drop(self) -> None:
        """Forgets all bytes, because the request has ended."""
        for index in range(len(self.pictures)):
            self._evictable.remove(self, index)
            self.evict(index)
