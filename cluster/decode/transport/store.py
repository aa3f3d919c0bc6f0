"""Segments by digest, bounded in bytes: pinned while requests use them, then kept for reuse, the longest unused going
first."""

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
"""A segment counts in whole blocks: a small one takes more than its bytes."""

Embeddings = dict["Digest", "Embedding"]
Entries = dict["Digest", "_Entry"]


class SegmentStore:
    """The segments of one engine. What does not fit beside those in use waits its turn, first come, first served.
    A request without pictures waits for nobody.

    Args:
        max_bytes: What all segments may take together, in use or not.
        max_files: How many there may be.
        make: Makes a segment of an embedding, in a thread.
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
        """A segment for each embedding, all at once or none: who waits holds nothing that another waits for.

        Raises:
            TooManyPictures: They can never fit together.
            Exception: What ``make`` raised for one of them.
        """
        entries = await self._enter(dict(embeddings))
        del embeddings  # their segments are all that is needed from here on
        try:
            yield {digest: await asyncio.shield(entry.making) for digest, entry in entries.items()}
        finally:
            self._leave(entries)

    def find(self, digest: Digest) -> tuple[Segment, Grid] | None:
        """A segment that is ready, and the grid of its picture."""
        entry = self._entries.get(digest)
        if entry is None or not entry.making.done() or entry.making.exception() is not None:
            return None
        return entry.making.result(), entry.grid

    def forget(self, digests: Iterable[Digest]) -> None:
        """Makes these anew for whoever asks next; those who use them keep what they have."""
        for digest in digests:
            if digest in self._entries:
                self._remove(digest)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiters)

    def close(self) -> None:
        """Closes every segment, those in use with their last request."""
        self.forget([*self._entries])

    async def _enter(self, embeddings: Embeddings) -> Entries:
        asked_bytes = sum(map(size_bytes, embeddings.values()))
        if asked_bytes > self._max_bytes or len(embeddings) > self._max_files:
            message = (
                f"The request's pictures take {asked_bytes} bytes as embeddings; at most {self._max_bytes} are held."
            )
            raise TooManyPictures(message, param="messages", asked_bytes=asked_bytes, limit_bytes=self._max_bytes)
        # Not who needs no room either: it would keep in use what those who wait for room are waiting for.
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
            else:  # its turn came in the same moment
                self._leave(waiter.entries.result())
            raise

    def _leave(self, entries: Entries) -> None:
        for digest, entry in entries.items():
            self._unpin(digest, entry)
        self._admit()

    def _admit(self) -> None:
        """Lets in who waits, in order, as far as there is room."""
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.entries.done():
                if (entries := self._take(waiter.embeddings)) is None:
                    return
                waiter.entries.set_result(entries)
            self._waiters.popleft()

    def _take(self, embeddings: Embeddings) -> Entries | None:
        """Pins a segment for each embedding, making room for new ones, or does nothing."""
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
        entry = self._entries[digest] = _Entry(
            size_bytes(embedding), embedding.grid, making, num_pins=2
        )  # its maker's, and the request's
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
        """Nobody finds it here any more; it is freed now, or with its last request."""
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
    """A segment, perhaps still being made, and how many use it."""

    num_bytes: int
    grid: Grid
    making: asyncio.Future[Segment]
    num_pins: int


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A request that waits for room, and what it gets when its turn comes."""

    embeddings: Embeddings
    entries: asyncio.Future[Entries]


def size_bytes(embedding: Embedding) -> int:
    """What an embedding counts for."""
    return -(-embedding.rows.nbytes // BLOCK_BYTES) * BLOCK_BYTES
