"""The way to the vision tower: pictures of many requests wait here, and go through it together, off the event loop.

In: ``Pixels``, one at a time. Out: ``Encoded``. One run at a time; which pictures share it is decided in ``batching``.
"""

from __future__ import annotations

import asyncio
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.encode.batching import Waiting, take, wait_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cluster.messages import Embedding, Pixels

    Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a picture: how long it waited for the tower, and how long the tower then took, for all in its
    batch."""

    embedding: Embedding
    waited_s: float
    ran_s: float


class BatchQueue:
    """The pictures that wait for one vision tower, and the thread that it runs in.

    Args:
        encode: Runs pictures together; gives an embedding for each.
        batch_patches: What a run may have. A picture above it runs alone.
        niceness: Of the thread, on top of the process's.
    """

    def __init__(
        self, encode: Callable[[Sequence[Pixels]], list[Embedding]], *, batch_patches: int, niceness: int = 0
    ) -> None:
        self._encode: Final = encode
        self._batch_patches: Final = batch_patches
        self._thread: Final = ThreadPoolExecutor(
            1, thread_name_prefix="encode", initializer=os.nice, initargs=(niceness,)
        )
        self._waiting: Final[list[_Queued]] = []
        self._num_coming = 0
        self._changed: Final = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._num_run_patches = 0
        self._run_s = 0.0
        self.worked_at_s = -math.inf
        """When the last run ended, by ``perf_counter``, if it went well."""

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around whatever brings a picture here, so that the tower may wait a moment for it."""
        self._num_coming += 1
        try:
            yield
        finally:
            self._num_coming -= 1
            self._changed.set()

    async def encode(self, pixels: Pixels) -> Encoded:
        """A picture's embedding, equal to that of a run of its own. Who leaves while waiting leaves the queue.

        Raises:
            Exception: What the tower raises on this picture alone.
        """
        place = _Queued(pixels, Waiting(pixels.num_patches, perf_counter()))
        self._waiting.append(place)
        self._changed.set()
        if self._worker is None or self._worker.done():
            # In a context of its own: it goes on for others after the request that came first.
            self._worker = asyncio.create_task(self._work(), context=Context())
        try:
            return await place.result
        finally:
            with suppress(ValueError):  # in the tower, or through it
                self._waiting.remove(place)
            self._changed.set()

    async def run(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Calls something in the tower's thread, after the run that is under way."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except Exception:
            self.worked_at_s = -math.inf
            raise
        self.worked_at_s = perf_counter()
        return result

    async def _work(self) -> None:
        """Takes batch after batch, as long as anybody waits."""
        while self._waiting:
            pictures = [place.picture for place in self._waiting]
            delay_s = wait_s(
                pictures, now_s=perf_counter(), num_coming=self._num_coming, budget_patches=self._batch_patches
            )
            if delay_s:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), delay_s)
                continue
            patch_s = self._run_s / self._num_run_patches if self._num_run_patches else 0.0
            batch = [
                self._waiting[index] for index in take(pictures, budget_patches=self._batch_patches, patch_s=patch_s)
            ]
            for place in batch:
                self._waiting.remove(place)
            await self._run_batch(batch)

    async def _run_batch(self, batch: list[_Queued]) -> None:
        started_s = perf_counter()
        try:
            embeddings = await self.run(self._encode, [place.pixels for place in batch])
        except Exception as error:  # noqa: BLE001 -- it is for whoever waits
            if len(batch) == 1:
                batch[0].fail(error)
                return
        else:
            ran_s = perf_counter() - started_s
            self._num_run_patches += sum(place.picture.num_patches for place in batch)
            self._run_s += ran_s
            for place, embedding in zip(batch, embeddings, strict=True):
                place.finish(Encoded(embedding, started_s - place.picture.arrived_s, ran_s))
            return
        for place in batch:  # one of them may be at fault: the others must not fail with it
            if not place.result.done():
                await self._run_batch([place])


@dataclass(eq=False, slots=True)
class _Queued:
    """One picture in the queue, and whoever waits for it."""

    pixels: Pixels
    picture: Waiting
    result: asyncio.Future[Encoded] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def finish(self, encoded: Encoded) -> None:
        if not self.result.done():  # whoever waited may have left
            self.result.set_result(encoded)

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
