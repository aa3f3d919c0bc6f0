"""The shared transport: this process writes each embedding once into shared memory, and every worker maps it.

The request itself carries grids and addresses. ``connector.py`` reads them, in the engine's processes.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from io import FileIO
from typing import TYPE_CHECKING, Final

from cluster.concurrency import all_or_first_error
from cluster.decode.transport.handoff import Handoff, image_part
from cluster.decode.transport.segment import Segment, allow_many_files
from cluster.decode.transport.store import SegmentStore
from cluster.errors import EmbeddingLost, Overloaded
from cluster.metrics import CACHE_LOOKUPS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from cluster.decode.transport.handoff import Grids, Pull
    from cluster.decode.transport.shape import EmbeddingShape
    from cluster.decode.transport.store import Room
    from cluster.messages import Digest, Embedding

READ_BYTES: Final = 2**16


class SharedTransport:
    """Keeps embeddings in shared memory. Each is pinned until the last request that uses it has ended.

    Args:
        shape: The embeddings that the engine accepts.
        max_bytes: The most bytes of embeddings, in use or kept for reuse. The number of segments is limited too, by the
            files that this process may open.
    """

    def __init__(self, shape: EmbeddingShape, max_bytes: int) -> None:
        self._shape = shape
        max_files = allow_many_files() // 2  # the other half is for connections and everything else
        self._store = SegmentStore(max_bytes, max_files, self._make)
        # The engine reports lost requests through this pipe, because vLLM only says "Internal server error" of them.
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._losses, self._losses_in = FileIO(reading), FileIO(writing, "w")
        self._lost = b""

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the connector in the engine's processes: the path of the pipe for lost requests."""
        return {"losses": f"/proc/{os.getpid()}/fd/{self._losses_in.fileno()}"}

    @asynccontextmanager
    async def reserved(self, request_id: str, grids: Grids) -> AsyncIterator[SharedRoom]:
        """Reserves shared memory for all embeddings of a request, once there is enough; see ``Transport``."""
        del request_id
        async with self._store.reserved({name: self._shape.num_bytes(grid) for name, grid in grids.items()}) as room:
            try:
                yield SharedRoom(room, list(grids))
            except EmbeddingLost:
                self._store.forget(grids)
                raise

    def lacks(self, digests: Iterable[Digest]) -> bool:
        """Returns True if one of the embeddings is not in shared memory."""
        return self._store.lacks(digests)

    @contextmanager
    def standing_in(self, request_id: str, grids: Grids) -> Iterator[Handoff]:
        """Names the pictures by their grids alone; see ``Transport``."""
        del request_id
        yield Handoff({digest: image_part(digest, grid) for digest, grid in grids.items()})

    @property
    def num_waiting(self) -> int:
        """Requests that wait for room in shared memory."""
        return self._store.num_waiting

    def is_lost(self, request_id: str) -> bool:
        """Returns True if the engine could not open one of the request's segments."""
        reported = (self._lost + (self._losses.read(READ_BYTES) or b""))[-READ_BYTES:]
        self._lost = reported.replace(request_id.encode(), b"")  # the same request may be tried again
        return self._lost != reported

    def close(self) -> None:
        """Releases all memory that no process has mapped."""
        self._store.close()
        self._losses.close()
        self._losses_in.close()

    def _make(self, embedding: Embedding) -> Segment:
        self._shape.check(embedding)
        try:
            return Segment.of(embedding.rows)
        except OSError as error:
            message = (
                f"This decoder's machine has no shared memory left for pictures ({error.strerror}); try again shortly."
            )
            raise Overloaded(message, asked_bytes=embedding.rows.nbytes) from error


class SharedRoom:
    """The shared memory that a request has reserved.

    Args:
        room: The room in the store of segments.
        digests: The pictures of the request.
    """

    def __init__(self, room: Room, digests: Sequence[Digest]) -> None:
        self._room: Final = room
        self._digests: Final = digests

    @property
    def empty(self) -> list[Digest]:
        """The pictures whose embeddings must be pulled."""
        return self._room.empty

    async def filled(self, pull: Pull) -> Handoff:
        """Pulls and writes the missing embeddings at the same time; see ``Reservation``."""
        CACHE_LOOKUPS.labels("hit").inc(len(self._digests) - len(self.empty))
        found = await all_or_first_error(self._room.segment(digest, pull) for digest in self._digests)
        held = dict(zip(self._digests, found, strict=True))
        parts = {digest: image_part(digest, grid) for digest, (_, grid) in held.items()}
        addresses = {digest: list(segment.address) for digest, (segment, _) in held.items()}
        return Handoff(parts, {"ec_transfer_params": addresses} if addresses else {})
