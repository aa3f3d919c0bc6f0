"""Embeddings by digest, bounded in bytes, and never two runs for one picture at a time: the encoder's memory.

A decoder has one too, which keeps nothing: there a run is a call to the encoders.
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

from cluster.errors import PrismError
from cluster.metrics import CACHE_BYTES, CACHE_LOOKUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from cluster.messages import Digest, Embedding, Picture

Outcome = Literal["hit", "joined", "miss"]


class EmbeddingCache:
    """Embeddings that were used lately; what has not been used for longest goes first.

    Args:
        max_bytes: What the kept embeddings may take together; 0 keeps none, and still joins those who wait for one run.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes: Final = max_bytes
        self._kept: Final[OrderedDict[Digest, Embedding]] = OrderedDict()
        self._runs: Final[dict[Digest, _Run]] = {}
        self.num_bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        """Whether nothing has to be begun for this picture: it is kept or in the making."""
        return digest in self._kept or digest in self._runs

    def find(self, digest: Digest) -> Embedding | None:
        """The embedding of a picture, used now, if it is kept."""
        if (kept := self._kept.get(digest)) is not None:
            with suppress(
                KeyError
            ):  # on plain Serve another encoder's question comes in another thread: evicted just now
                self._kept.move_to_end(digest)
        return kept

    async def embedding_for(
        self, picture: Picture, make: Callable[[Picture], Coroutine[Any, Any, Embedding]]
    ) -> Embedding:
        """A picture's embedding, with the time that it took this caller, if another had it made.

        Raises:
            Exception: What ``make`` raised, perhaps for another caller; one about the picture names this caller's
                field.
        """
        started_s = perf_counter()
        try:
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
        """The embedding of a picture, and how it was come by: kept, being made for somebody else, or made now.

        A run goes on as long as anybody waits for it, whoever asked first; a failure is everybody's, and is not kept.

        Raises:
            Exception: What ``make`` raised.
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
                del self._runs[digest]  # at once: who comes now must not wait for what is being ended
                run.task.cancel()

    def _start(self, digest: Digest, making: Coroutine[Any, Any, Embedding]) -> _Run:
        # In a context of its own: what belongs to the request that came first is not for the others to lose with it.
        run = self._runs[digest] = _Run(asyncio.create_task(making, context=Context()))

        def finish(task: asyncio.Task[Embedding]) -> None:
            if self._runs.get(digest) is run:
                del self._runs[digest]
                if not task.cancelled() and task.exception() is None:
                    self.keep(task.result())

        run.task.add_done_callback(finish)
        return run

    def keep(self, embedding: Embedding) -> None:
        """Keeps an embedding as the one used last."""
        if embedding.rows.nbytes > self._max_bytes or embedding.digest in self._kept:
            return
        self._kept[embedding.digest] = embedding
        self.num_bytes += embedding.rows.nbytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.num_bytes -= oldest.rows.nbytes
        CACHE_BYTES.set(self.num_bytes)


@dataclass(slots=True)
class _Run:
    """One picture being encoded, and how many wait for it."""

    task: asyncio.Task[Embedding]
    num_waiting: int = 0
