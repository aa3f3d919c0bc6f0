"""The segments of one engine, by digest and bounded in bytes.

A request reserves room for all its pictures before their embeddings come. The room of a picture belongs to all requests
that use it. The first of them that has the embedding fills the room with a segment. A segment is pinned while requests
use it. Then it is kept for reuse, and the least recently used ones are removed first. A request whose pictures do not
fit next to the pinned ones waits, in the order of arrival.

No two requests can wait for each other. A request gets room for all its pictures at once or for none, so a waiting
request holds nothing. A request that has room waits only for encoders, which never wait for a decoder.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.errors import InternalError, TooManyPictures
from cluster.metrics import SHARED_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from cluster.decode.transport.handoff import Pull
    from cluster.decode.transport.segment import Segment
    from cluster.messages import Digest, Embedding, Grid

BLOCK_BYTES: Final = 64 * 2**10
"""Segments are counted in whole blocks, because a small one takes more memory than its bytes."""

Sizes = dict["Digest", int]
Entries = dict["Digest", "_Entry"]


class SegmentStore:
    """The segments of one engine. A request without pictures never waits.

    Args:
        max_bytes: The most bytes of all segments and all reserved room, in use or not.
        max_files: The most segments.
        make: Makes the segment of an embedding; it runs in a thread.
    """

    def __init__(self, max_bytes: int, max_files: int, make: Callable[[Embedding], Segment]) -> None:
        self._max_bytes: Final = max_bytes
        self._max_files: Final = max_files
        self._make: Final = make
        self._entries: Final[Entries] = {}
        self._idle: Final[OrderedDict[Digest, _Entry]] = OrderedDict()
        self._idle_bytes = 0
        self._waiters: Final[deque[_Waiter]] = deque()
        self._num_files = 0
        self.num_bytes = 0

    @asynccontextmanager
    async def reserved(self, num_bytes: Mapping[Digest, int]) -> AsyncIterator[Room]:
        """Reserves room for the embeddings of a request inside the block, for all at once.

        Args:
            num_bytes: The bytes of each embedding.

        Raises:
            TooManyPictures: The embeddings can never fit at the same time.
        """
        entries = await self._enter({digest: whole_blocks(size) for digest, size in num_bytes.items()})
        try:
            yield Room(entries, self._fill)
        finally:
            self._leave(entries)

    def lacks(self, digests: Iterable[Digest]) -> bool:
        """Returns True if there is a picture whose segment neither exists nor is being written."""
        return any((entry := self._entries.get(digest)) is None or entry.making is None for digest in digests)

    def forget(self, digests: Iterable[Digest]) -> None:
        """Removes segments, so that the next request for them makes new ones. Requests that use them keep them."""
        for digest in digests:
            if digest in self._entries:
                self._remove(digest)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiters)

    def close(self) -> None:
        """Removes every segment. Those in use are closed with their last request."""
        self.forget([*self._entries])

    async def _enter(self, sizes: Sizes) -> Entries:
        asked_bytes = sum(sizes.values())
        if asked_bytes > self._max_bytes or len(sizes) > self._max_files:
            message = (
                f"The request's pictures take {asked_bytes} bytes as embeddings; at most {self._max_bytes} are held."
            )
            raise TooManyPictures(message, param="messages", asked_bytes=asked_bytes, limit_bytes=self._max_bytes)
        # Queue even if every segment already exists: pinning them now would keep in use what earlier waiters need
        # evicted.
        if not (sizes and self._waiters) and (entries := self._take(sizes)) is not None:
            return entries
        waiter = _Waiter(sizes, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.entries
        except asyncio.CancelledError:
            if waiter.entries.cancelled():
                with suppress(ValueError):
                    self._waiters.remove(waiter)
                self._admit()
            else:  # it was admitted in the same moment
                self._leave(waiter.entries.result())
            raise

    def _leave(self, entries: Entries) -> None:
        for digest, entry in entries.items():
            self._unpin(digest, entry)
        self._admit()

    def _admit(self) -> None:
        """Admits waiting requests in their order, as long as there is room for the first."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.entries.done():
                if (entries := self._take(waiter.sizes)) is None:
                    return
                waiter.entries.set_result(entries)
            self._waiters.popleft()

    def _take(self, sizes: Sizes) -> Entries | None:
        """Pins room for each picture and removes idle segments to make room. It gives None and does nothing if the
        pictures do not fit."""
        here = {digest: self._entries[digest] for digest in sizes if digest in self._entries}
        new_bytes = sum(size for digest, size in sizes.items() if digest not in here)
        new_files = len(sizes) - len(here)
        kept = [self._idle[digest] for digest in here if digest in self._idle]
        spare_bytes = self._idle_bytes - sum(entry.num_bytes for entry in kept)
        spare_files = len(self._idle) - len(kept)
        if not self._has_room(new_bytes - spare_bytes, new_files - spare_files):
            return None
        for digest, entry in here.items():
            self._pin(digest, entry)
        while not self._has_room(new_bytes, new_files):
            self._remove(next(iter(self._idle)))
        return {digest: here.get(digest) or self._reserve(digest, size) for digest, size in sizes.items()}

    def _has_room(self, num_bytes: int, num_files: int) -> bool:
        return self.num_bytes + num_bytes <= self._max_bytes and self._num_files + num_files <= self._max_files

    def _reserve(self, digest: Digest, num_bytes: int) -> _Entry:
        entry = self._entries[digest] = _Entry(num_bytes, num_pins=1)
        self.num_bytes += num_bytes
        self._num_files += 1
        SHARED_BYTES.set(self.num_bytes)
        return entry

    def _fill(self, digest: Digest, entry: _Entry, embedding: Embedding) -> asyncio.Future[Segment]:
        """Begins to write the segment of an embedding into its room."""
        if whole_blocks(embedding.rows.nbytes) != entry.num_bytes:
            raise InternalError(
                f"The embedding of picture {digest[:12]} has {len(embedding.rows)} rows, "
                "which are not what its picture's size implies."
            )
        making = asyncio.get_running_loop().run_in_executor(None, self._make, embedding)
        entry.grid, entry.making = embedding.grid, making
        entry.num_pins += 1  # of the thread that writes the segment

        def finish(made: asyncio.Future[Segment]) -> None:
            if made.exception() is not None and self._entries.get(digest) is entry:
                self._remove(digest)
            self._leave({digest: entry})

        making.add_done_callback(finish)
        return making

    def _pin(self, digest: Digest, entry: _Entry) -> None:
        if not entry.num_pins:
            del self._idle[digest]
            self._idle_bytes -= entry.num_bytes
        entry.num_pins += 1

    def _unpin(self, digest: Digest, entry: _Entry) -> None:
        entry.num_pins -= 1
        if entry.num_pins:
            return
        if self._entries.get(digest) is not entry:
            self._free(entry)
        elif entry.making is None:  # every request has left before the embedding came
            del self._entries[digest]
            self._free(entry)
        else:
            self._idle[digest] = entry
            self._idle_bytes += entry.num_bytes

    def _remove(self, digest: Digest) -> None:
        """Removes a segment from the store. Its memory is freed now, or when the last request that uses it ends."""
        entry = self._entries.pop(digest)
        if self._idle.pop(digest, None):
            self._idle_bytes -= entry.num_bytes
            self._free(entry)

    def _free(self, entry: _Entry) -> None:
        self.num_bytes -= entry.num_bytes
        self._num_files -= 1
        SHARED_BYTES.set(self.num_bytes)
        if entry.making is not None and entry.making.exception() is None:
            entry.making.result().close()


class Room:
    """The room that a request has reserved, with a place for each of its pictures.

    Args:
        entries: The room of each picture.
        fill: Begins to write an embedding into its room.
    """

    def __init__(self, entries: Entries, fill: Callable[[Digest, _Entry, Embedding], asyncio.Future[Segment]]) -> None:
        self._entries: Final = entries
        self._fill: Final = fill

    @property
    def empty(self) -> list[Digest]:
        """The pictures whose embeddings must be pulled."""
        return [digest for digest, entry in self._entries.items() if entry.making is None]

    async def segment(self, digest: Digest, pull: Pull) -> tuple[Segment, Grid]:
        """The segment of a picture, and the picture's grid. If its room is empty, the embedding is pulled and written.

        Raises:
            Exception: The error that ``pull`` or ``make`` raised, or an ``InternalError`` because the embedding has
                another size than was reserved.
        """
        entry = self._entries[digest]
        if (making := entry.making) is None:
            embedding = await pull(digest)
            # Another request with this picture may have filled the room while this one waited.
            making = entry.making or self._fill(digest, entry, embedding)
            del embedding  # only its segment is needed from here on
        segment = await asyncio.shield(making)
        assert entry.grid is not None, "it is set together with the segment"
        return segment, entry.grid


@dataclass(slots=True, eq=False)
class _Entry:
    """The room of a picture: its segment, finished or being written, or None before the embedding has come."""

    num_bytes: int
    num_pins: int
    grid: Grid | None = None
    making: asyncio.Future[Segment] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A request that waits for room, and the future of its room."""

    sizes: Sizes
    entries: asyncio.Future[Entries]


def whole_blocks(num_bytes: int) -> int:
    """The bytes that an embedding counts for."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
