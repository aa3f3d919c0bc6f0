"""The shared transport: this process writes each embedding once into shared memory, and every worker maps it.

The request itself carries grids and addresses. ``connector.py`` reads them, in the engine's processes.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from io import FileIO
from typing import TYPE_CHECKING, Final

from cluster.decode.transport.handoff import Handoff, image_part
from cluster.decode.transport.segment import Segment, allow_many_files
from cluster.decode.transport.store import SegmentStore
from cluster.errors import EmbeddingLost, Overloaded
from cluster.messages import Embedding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cluster.decode.transport.shape import EmbeddingShape
    from cluster.messages import Digest

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
    async def offered(self, request_id: str, embeddings: Mapping[Digest, Embedding]) -> AsyncIterator[Handoff]:
        """Keeps the embeddings in shared memory, once there is room for all of them; see ``Transport``."""
        del request_id
        parts = {digest: image_part(embedding) for digest, embedding in embeddings.items()}
        async with self._store.pinned(embeddings) as segments:
            del embeddings
            addresses = {digest: list(segment.address) for digest, segment in segments.items()}
            try:
                yield Handoff(parts, {"ec_transfer_params": addresses} if addresses else {})
            except EmbeddingLost:
                self._store.forget(addresses)
                raise

    def find(self, digest: Digest) -> Embedding | None:
        """An embedding whose rows are the segment's own memory. The memory stays valid while the rows are used."""
        if (found := self._store.find(digest)) is None:
            return None
        segment, grid = found
        return Embedding(digest, segment.read(self._shape.row_bytes), self._shape.dtype, grid)

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
