"""Finds out whether a worker of this process is stuck: an engine, a vision tower, or a preprocessor's children.

A worker that makes progress is well, however much work waits for it. One that has made none for a while is given a
small piece of real work. It is stuck if it neither makes progress nor answers in time.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

PROVEN_S: Final = 2.0
"""The seconds after its last progress in which a worker is taken to be healthy and is asked nothing."""
PATIENCE_S: Final = 8.0
"""The seconds without progress or answer after which a fast worker is stuck. Together with ``PROVEN_S`` and the time
until Serve's next check, 3.5 s at most, that makes less than 15 s. Slow workers are given more."""
POLL_S: Final = 0.5
"""How often progress is looked for while the worker owes an answer."""
ANSWER_S: Final = 1.0
"""How long one check waits for an answer, in seconds. It must be less than Serve's limit for a check."""


class StuckWatch:
    """Finds out whether a worker is stuck. ``check`` must be called regularly. It gives a small piece of work to a
    worker that has made no progress for ``PROVEN_S``.

    Args:
        ask: Gives the worker a small piece of work, and returns when it is done.
        progress_s: Gives the time of the worker's last progress, on the clock of ``time.monotonic``.
        patience_s: Gives the seconds without progress and without an answer, counted from the question, after which
            the worker is stuck. They must be longer than the worker's longest step.
        give_up: Called with a sentence when the worker is stuck.
    """

    def __init__(
        self,
        ask: Callable[[], Coroutine[None, None, object]],
        *,
        progress_s: Callable[[], float],
        patience_s: Callable[[], float],
        give_up: Callable[[str], object],
    ) -> None:
        self._ask: Final = ask
        self._progress_s: Final = progress_s
        self._patience_s: Final = patience_s
        self._give_up: Final = give_up
        self._asking: asyncio.Task[None] | None = None
        self._asked_s = 0.0

    @property
    def is_silent(self) -> bool:
        """True while the worker has owed an answer for ``ANSWER_S`` and has made no progress since it was asked. It may
        be stuck, so callers had better ask another one."""
        if self._asking is None or self._asking.done() or self._progress_s() > self._asked_s:
            return False
        return self._asking.get_loop().time() - self._asked_s >= ANSWER_S

    async def check(self) -> None:
        """Asks the worker, unless it has just made progress. Callers at the same time share one question.

        It returns without an answer after ``ANSWER_S``. The question goes on, and ``give_up`` is called as soon as
        the worker's time is over, also between two checks.

        Raises:
            Exception: The worker's error.
        """
        if asyncio.get_running_loop().time() - self._progress_s() <= PROVEN_S:
            return
        if self._asking is None or self._asking.done():
            # An empty context, because Serve cancels everything in a request's context when that request is cancelled.
            self._asked_s = asyncio.get_running_loop().time()
            self._asking = asyncio.create_task(self._watch(), context=Context())
            self._asking.add_done_callback(lambda asking: asking.cancelled() or asking.exception())
        asking = self._asking
        await asyncio.wait((asking,), timeout=ANSWER_S)
        if asking.done():
            asking.result()

    async def _watch(self) -> None:
        loop, silent_s = asyncio.get_running_loop(), 0.0
        answer = asyncio.ensure_future(self._ask())
        try:
            while not answer.done():
                before_s, began_s = self._progress_s(), loop.time()
                await asyncio.wait((answer,), timeout=POLL_S)
                # A longer wait is the fault of this process, which was stopped or had no core. It may not have read the
                # answer yet, so the time does not count.
                silent_s += min(loop.time() - began_s, 2 * POLL_S)
                if self._progress_s() > before_s:
                    silent_s = 0.0
                if silent_s > self._patience_s() and not answer.done():
                    self._give_up(f"no progress and no answer for {silent_s:.0f} s")
                    return
            answer.result()
        finally:
            answer.cancel()
