"""The segments of one engine, by digest and bounded in bytes.

A segment is pinned while requests use it. Then it is kept for reuse, and the least recently used ones are removed
first. A request whose embeddings do not fit next to the pinned ones waits, in the order of arrival.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.errors import TooManyPictures
from cluster.metrics import SHARED_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from cluster.decode.transport.segment import Segment
    from cluster.messages import Digest, Embedding, Grid

BLOCK_BYTES: Final = 64 * 2**10
"""Segments are counted in whole blocks, because a small one takes more memory than its bytes."""

Embeddings = dict["Digest", "Embedding"]
Entries = dict["Digest", "_Entry"]


class SegmentStore:
    """The segments of one engine. A request without pictures never waits.

    Args:
        max_bytes: The most bytes of all segments, in use or not.
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
    async def pinned(self, embeddings: Mapping[Digest, Embedding]) -> AsyncIterator[dict[Digest, Segment]]:
        """Pins a segment for each embedding inside the block, all at once: a waiting request pins nothing that others
        need.

        Raises:
            TooManyPictures: The embeddings can never fit at the same time.
            Exception: The error that ``make`` raised for one of them.
        """
        entries = await self._enter(dict(embeddings))
        del embeddings  # only their segments are needed from here on
        try:
            yield {digest: await asyncio.shield(entry.making) for digest, entry in entries.items()}
        finally:
            self._leave(entries)

    def find(self, digest: Digest) -> tuple[Segment, Grid] | None:
        """A finished segment and the grid of its picture, or None."""
        entry = self._entries.get(digest)
        if entry is None or not entry.making.done() or entry.making.exception() is not None:
            return None
        return entry.making.result(), entry.grid

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

    async def _enter(self, embeddings: Embeddings) -> Entries:
        asked_bytes = sum(map(size_bytes, embeddings.values()))
        if asked_bytes > self._max_bytes or len(embeddings) > self._max_files:
            message = (
                f"The request's pictures take {asked_bytes} bytes as embeddings; at most {self._max_bytes} are held."
            )
            raise TooManyPictures(message, param="messages", asked_bytes=asked_bytes, limit_bytes=self._max_bytes)
        # Queue even if every segment already exists: pinning them now would keep in use what earlier waiters need
        # evicted.
        if not (embeddings and self._waiters) and (entries := self._take(embeddings)) is not None:
            return entries
        waiter = _Waiter(embeddings, asyncio.get_running_loop().create_future())
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
                if (entries := self._take(waiter.embeddings)) is None:
                    return
                waiter.entries.set_result(entries)
            self._waiters.popleft()

    def _take(self, embeddings: Embeddings) -> Entries | None:
        """Pins a segment for each embedding and removes idle ones to make room. It gives None and does nothing if
        they do not fit."""
        here = {digest: self._entries[digest] for digest in embeddings if digest in self._entries}
        new_bytes = sum(size_bytes(embedding) for digest, embedding in embeddings.items() if digest not in here)
        new_files = len(embeddings) - len(here)
        kept = [self._idle[digest] for digest in here if digest in self._idle]
        spare_bytes = self._idle_bytes - sum(entry.num_bytes for entry in kept)
        spare_files = len(self._idle) - len(kept)
        if not self._has_room(new_bytes - spare_bytes, new_files - spare_files):
            return None
        for digest, entry in here.items():
            self._pin(digest, entry)
        while not self._has_room(new_bytes, new_files):
            self._remove(next(iter(self._idle)))
        return {digest: here.get(digest) or self._begin(digest, embedding) for digest, embedding in embeddings.items()}

    def _has_room(self, num_bytes: int, num_files: int) -> bool:
        return self.num_bytes + num_bytes <= self._max_bytes and self._num_files + num_files <= self._max_files

    def _begin(self, digest: Digest, embedding: Embedding) -> _Entry:
        making = asyncio.get_running_loop().run_in_executor(None, self._make, embedding)
        # Two pins: one of the thread that makes the segment, one of the request.
        entry = self._entries[digest] = _Entry(size_bytes(embedding), embedding.grid, making, num_pins=2)
        self.num_bytes += entry.num_bytes
        self._num_files += 1
        SHARED_BYTES.set(self.num_bytes)

        def finish(made: asyncio.Future[Segment]) -> None:
            if made.exception() is not None and self._entries.get(digest) is entry:
                self._remove(digest)
            self._leave({digest: entry})

        making.add_done_callback(finish)
        return entry

    def _pin(self, digest: Digest, entry: _Entry) -> None:
        if not entry.num_pins:
            del self._idle[digest]
            self._idle_bytes -= entry.num_bytes
        entry.num_pins += 1

    def _unpin(self, digest: Digest, entry: _Entry) -> None:
        entry.num_pins -= 1
        if entry.num_pins:
            return
        if self._entries.get(digest) is entry:
            self._idle[digest] = entry
            self._idle_bytes += entry.num_bytes
        else:
            self._free(entry)

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
        if entry.making.exception() is None:
            entry.making.result().close()


@dataclass(slots=True, eq=False)
class _Entry:
    """A segment that is finished or being made, and the number of its users."""

    num_bytes: int
    grid: Grid
    making: asyncio.Future[Segment]
    num_pins: int


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A request that waits for room, and the future of its segments."""

    embeddings: Embeddings
    entries: asyncio.Future[Entries]


def size_bytes(embedding: Embedding) -> int:
    """The bytes that an embedding counts for."""
    return -(-embedding.rows.nbytes // BLOCK_BYTES) * BLOCK_BYTES
