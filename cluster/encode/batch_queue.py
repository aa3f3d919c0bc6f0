"""The batch queue of the vision tower: pictures of many requests wait here and are encoded in common runs.

In: ``Pixels``, one picture per call. Out: ``Encoded``.

The tower runs in a thread, not in the event loop, and does one run at a time. ``cluster.encode.batching`` decides which
pictures share a run.
"""

from __future__ import annotations

import asyncio
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cluster.encode.batching import Waiting, take, wait_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cluster.messages import Embedding, Pixels

    Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Encoded:
    """The embedding of a picture, and where the time went.

    ``waited_s`` is the time in seconds that the picture waited for the tower. ``ran_s`` is the time in seconds that the
    tower took for the whole batch of this picture.
    """

    embedding: Embedding
    waited_s: float
    ran_s: float


class BatchQueue:
    """The pictures that wait for one vision tower, and the thread in which the tower runs.

    Args:
        encode: Encodes several pictures in one run and returns an embedding for each, in the same order.
        batch_patches: The most patches of one run. A picture with more patches runs alone.
        niceness: The niceness that is added to the thread of the tower.
    """

    def __init__(
        self, encode: Callable[[Sequence[Pixels]], list[Embedding]], *, batch_patches: int, niceness: int = 0
    ) -> None:
        self._encode: Final = encode
        self.batch_patches = batch_patches
        """The most patches of one run. A change counts from the next run on."""
        self._thread: Final = ThreadPoolExecutor(
            1, thread_name_prefix="encode", initializer=os.nice, initargs=(niceness,)
        )
        self._waiting: Final[list[_Queued]] = []
        self._num_coming = 0
        self._changed: Final = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.num_run_patches = 0
        """The patches of all runs that have succeeded."""
        self.run_s = 0.0
        """The seconds that these runs took."""
        self._num_running_patches = 0
        self.worked_at_s = -math.inf
        """The time of ``monotonic`` at which the last run succeeded; minus infinity if the last run failed."""

    @property
    def num_waiting_patches(self) -> int:
        """The patches that wait for the tower or run in it."""
        return self._num_running_patches + sum(queued.picture.num_patches for queued in self._waiting)

    @property
    def num_waiting(self) -> int:
        """The pictures that wait for the tower."""
        return len(self._waiting)

    @property
    def oldest_s(self) -> float:
        """The seconds that the oldest of these has waited, 0 if none waits."""
        arrived_s = min((queued.picture.arrived_s for queued in self._waiting), default=None)
        return 0.0 if arrived_s is None else perf_counter() - arrived_s

    @property
    def expected_s(self) -> float | None:
        """The seconds that the run under way may be expected to take, by the speed of earlier runs; 0 if there is no
        run, and None if there is one and it is the first."""
        if not self._num_running_patches:
            return 0.0
        return self._num_running_patches * self.run_s / self.num_run_patches if self.num_run_patches else None

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Tells the queue, while the context is open, that a picture is on its way here.

        A free tower may then wait a moment for that picture before it starts a run.
        """
        self._num_coming += 1
        try:
            yield
        finally:
            self._num_coming -= 1
            self._changed.set()

    async def encode(self, pixels: Pixels) -> Encoded:
        """Waits for a run of the tower and returns the picture's embedding.

        The embedding does not depend on the other pictures of the run. A caller that is cancelled while it waits takes
        its picture out of the queue.

        Raises:
            Exception: The error of the tower on this picture. An error of another picture in the batch is not raised
                here.
        """
        queued = _Queued(pixels, Waiting(pixels.num_patches, perf_counter()))
        self._waiting.append(queued)
        self._changed.set()
        if self._worker is None or self._worker.done():
            # An empty context, because Serve cancels everything in a request's context when that request is cancelled.
            # The worker must go on for the other requests.
            self._worker = asyncio.create_task(self._work(), context=Context())
        try:
            return await queued.result
        finally:
            with suppress(ValueError):  # it is no longer in the queue if its run has started
                self._waiting.remove(queued)
            self._changed.set()

    async def run(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function in the tower's thread, after the run that is under way, and returns its result.

        Raises:
            Exception: The error of the function.
        """
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except Exception:
            self.worked_at_s = -math.inf
            raise
        self.worked_at_s = monotonic()
        return result

    async def _work(self) -> None:
        """Runs one batch after the other until the queue is empty."""
        while self._waiting:
            pictures = [queued.picture for queued in self._waiting]
            delay_s = wait_s(
                pictures, now_s=perf_counter(), num_coming=self._num_coming, budget_patches=self.batch_patches
            )
            if delay_s:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), delay_s)
                continue
            patch_s = self.run_s / self.num_run_patches if self.num_run_patches else 0.0
            batch = [
                self._waiting[index] for index in take(pictures, budget_patches=self.batch_patches, patch_s=patch_s)
            ]
            for queued in batch:
                self._waiting.remove(queued)
            await self._run_batch(batch)

    async def _run_batch(self, batch: list[_Queued]) -> None:
        started_s = perf_counter()
        num_patches = self._num_running_patches = sum(queued.picture.num_patches for queued in batch)
        try:
            embeddings = await self.run(self._encode, [queued.pixels for queued in batch])
        except Exception as error:  # noqa: BLE001 -- the callers get it
            if len(batch) == 1:
                batch[0].fail(error)
                return
        else:
            ran_s = perf_counter() - started_s
            self.num_run_patches += num_patches
            self.run_s += ran_s
            for queued, embedding in zip(batch, embeddings, strict=True):
                queued.finish(Encoded(embedding, started_s - queued.picture.arrived_s, ran_s))
            return
        finally:
            self._num_running_patches = 0
        for queued in batch:  # one by one, so that only the picture that causes the error fails
            if not queued.result.done():
                await self._run_batch([queued])


@dataclass(eq=False, slots=True)
class _Queued:
    """A picture in the queue, and the future that its caller waits for."""

    pixels: Pixels
    picture: Waiting
    result: asyncio.Future[Encoded] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def finish(self, encoded: Encoded) -> None:
        if not self.result.done():  # the caller may have been cancelled
            self.result.set_result(encoded)

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
