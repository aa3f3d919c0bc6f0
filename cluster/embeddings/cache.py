"""A cache of embeddings by picture digest, bounded in bytes, that also lets concurrent requests share one run.

Encoders keep embeddings in it. Decoders use the same class with ``max_bytes=0``: nothing is kept, but concurrent
requests for one picture share a single call to the encoder pool.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final, Literal

from cluster.errors import PictureLost, PrismError
from cluster.metrics import CACHE_BYTES, CACHE_LOOKUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from cluster.messages import Digest, Embedding, Picture

Outcome = Literal["hit", "joined", "miss"]
"""How a caller got an embedding: from the cache, from a run that was under way, or from a run that it started."""


class EmbeddingCache:
    """A least-recently-used cache of embeddings, with at most one run per picture at any time.

    Args:
        max_bytes: The most bytes of all kept embeddings. With 0 none is kept, but callers still share runs.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: Final[OrderedDict[Digest, Embedding]] = OrderedDict()
        self._runs: Final[dict[Digest, _Run]] = {}
        self.num_bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        """Returns True if the embedding of this picture is kept, or if a run that makes it is under way."""
        return digest in self._kept or digest in self._runs

    def find(self, digest: Digest) -> Embedding | None:
        """The kept embedding of a picture, or None. It becomes the most recently used one."""
        if (kept := self._kept.get(digest)) is not None:
            # On Serve's default settings, a claim of another encoder comes in another thread. Then the embedding can be
            # evicted between the two lines.
            with suppress(KeyError):
                self._kept.move_to_end(digest)
        return kept

    async def embedding_for(
        self, picture: Picture, make: Callable[[Picture], Coroutine[Any, Any, Embedding]]
    ) -> Embedding:
        """The embedding of a picture: kept, from a run that is under way, or made now.

        If it joined a run whose own picture has lost its bytes, and has them itself, it asks once more.

        If this call did not start the run, ``spent`` of the result is the time that this caller waited, in seconds.

        Args:
            picture: The picture.
            make: Makes the embedding; called only if it is neither kept nor being made.

        Raises:
            Exception: The error of the run, which another caller may have started. A ``PrismError`` is changed to name
                the request field of this caller's picture.
        """
        started_s = perf_counter()
        try:
            try:
                embedding, outcome = await self.get_or_join(picture.digest, partial(make, picture))
            except PictureLost:
                if not picture.data:
                    raise
                embedding, outcome = await self.get_or_join(picture.digest, partial(make, picture))
        except PrismError as error:
            raise error.at(picture.param) from None
        if outcome == "miss":
            return embedding
        stage = "cache_hit" if outcome == "hit" else "join"
        return replace(embedding, spent={stage: perf_counter() - started_s})

    async def get_or_join(
        self, digest: Digest, make: Callable[[], Coroutine[Any, Any, Embedding]]
    ) -> tuple[Embedding, Outcome]:
        """The embedding of a picture, and its origin: kept (hit), from a run of another caller (joined), or new
        (miss).

        A run goes on as long as at least one caller waits for it, even if the caller that started it has left. If the
        run fails, all its callers get the error; the next caller starts a new run.

        Args:
            digest: The picture's digest.
            make: Makes the embedding; called only if it is neither kept nor being made.

        Raises:
            Exception: The error of the run.
        """
        if (kept := self.find(digest)) is not None:
            CACHE_LOOKUPS.labels("hit").inc()
            return kept, "hit"
        run = self._runs.get(digest)
        outcome: Outcome = "miss" if run is None else "joined"
        CACHE_LOOKUPS.labels(outcome).inc()
        if run is None:
            run = self._start(digest, make())
        run.num_waiting += 1
        try:
            return await asyncio.shield(run.task), outcome
        finally:
            run.num_waiting -= 1
            if not run.num_waiting and not run.task.done():
                # Before the task has ended, so that the next caller does not join a cancelled run.
                del self._runs[digest]
                run.task.cancel()

    def _start(self, digest: Digest, making: Coroutine[Any, Any, Embedding]) -> _Run:
        # An empty context, because Serve cancels everything in a request's context when that request is cancelled. The
        # run must go on for the other callers.
        run = self._runs[digest] = _Run(asyncio.create_task(making, context=Context()))

        def finish(task: asyncio.Task[Embedding]) -> None:
            if self._runs.get(digest) is run:
                del self._runs[digest]
                if not task.cancelled() and task.exception() is None:
                    self.keep(task.result())

        run.task.add_done_callback(finish)
        return run

    def keep(self, embedding: Embedding) -> None:
        """Adds an embedding as the most recently used one and evicts others to make room.

        An embedding larger than ``max_bytes`` is not kept.
        """
        if embedding.rows.nbytes > self._max_bytes or embedding.digest in self._kept:
            return
        self._kept[embedding.digest] = embedding
        self.num_bytes += embedding.rows.nbytes
        self._evict()

    def resize(self, max_bytes: int) -> None:
        """Changes the most bytes of all kept embeddings, and evicts the oldest ones at once if they are too many."""
        self._max_bytes = max_bytes
        self._evict()

    def _evict(self) -> None:
        while self.num_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.num_bytes -= oldest.rows.nbytes
        CACHE_BYTES.set(self.num_bytes)


@dataclass(slots=True)
class _Run:
    """A run that makes one picture's embedding, and the number of callers that wait for it."""

    task: asyncio.Task[Embedding]
    num_waiting: int = 0
