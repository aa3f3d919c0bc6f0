"""Prepares pictures in child processes: one at a time, and next to it those that are overdue.

In: a ``Picture``. Out: its ``Pixels``.

A picture that has used more CPU time than ordinary pictures of its size do is *overdue*. It goes on with the lowest
priority, and the next picture begins in another child. It is refused once its budget is used up, or when too many
pictures are overdue. A child is killed if its picture is too
expensive, if its caller leaves, or if it stops computing. It is kept after any other refusal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from cluster.errors import InvalidPicture, PictureTooExpensive, PoolUnavailable, PrismError
from cluster.isolation.budget import ADVICE, Budget, too_slow
from cluster.isolation.process import Child, ChildLost, Template
from cluster.isolation.wire import SMALLEST, Job
from cluster.metrics import CHILDREN_ENDED
from cluster.queues import WaitingCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.checkpoint import ProcessorSettings
    from cluster.messages import Picture, Pixels

log: Final = logging.getLogger("ray.serve")

LOOK_S: Final = 0.1
"""Seconds between two looks at a child that works. Most pictures are done before the first."""
STUCK_LOOKS: Final = 20
"""A child that neither computes nor waits for a core at so many looks in a row is stuck. Looks are counted and not
seconds, so that a pause of the whole machine harms nobody."""
FORK_S: Final = 5.0
"""A template that takes longer to fork is replaced."""
MAX_OVERDUE: Final = 2
"""The most overdue pictures of one preprocessor."""


class Children:
    """The child processes of one preprocessor. Call ``start`` first, in the event loop that all calls come from.

    Args:
        settings: How pictures become patches.
        niceness: Added to the niceness of this process, for the children.
    """

    def __init__(self, settings: ProcessorSettings, niceness: int) -> None:
        self._settings = settings
        self._niceness = niceness
        self._turn = asyncio.Lock()
        self.waiting = WaitingCalls()
        """The pictures that wait for their turn."""
        self._template: Template | None = None
        self._starting: asyncio.Task[Template] | None = None
        self._idle: Child | None = None
        self._overdue: set[_Run] = set()
        self._current: _Run | None = None
        self._proven_at_s = 0.0

    async def start(self) -> None:
        """Starts the template and the first child. Returns when that is ready for a picture.

        Raises:
            RuntimeError: The template does not start.
        """
        async with self._turn:
            try:
                self._idle = await self._take_child()
            except _NotBegun:
                raise RuntimeError("the template does not start; its output says why") from None

    async def prepare(self, picture: Picture) -> Pixels:
        """Decodes, resizes and cuts up one picture.

        Raises:
            InvalidPicture: The picture cannot be decoded, or its decoder crashed in two children.
            PictureTooExpensive: The picture needs too much CPU time or memory.
            PoolUnavailable: The child was lost or killed, and the picture is not to blame.
        """
        for is_last in (False, True):
            try:
                return await self._prepare(picture)
            except _NotBegun:  # another child gets the picture
                continue
            except _Crashed as crash:  # another child gets the picture, because it may not be to blame
                if not self._has_template():  # its children end with it
                    break
                if is_last and crash.was_killed:
                    message = "The process that decoded the picture was killed; send the request again."
                    raise PoolUnavailable(message).because("the child was killed") from None
                if is_last:
                    message = f"The picture's decoder crashed on it; {ADVICE}."
                    raise InvalidPicture(message, param=picture.param) from None
        raise PoolUnavailable("The preprocessor lost its child process; send the request again.")

    async def probe(self) -> None:
        """Prepares the smallest picture.

        Raises:
            PrismError: The picture could not be prepared.
        """
        await self.prepare(SMALLEST)

    @property
    def is_warm(self) -> bool:
        """Returns False until the template has forked a child. It imports the stage first."""
        return self._template is not None and self._template.is_warm

    @property
    def worked_at_s(self) -> float:
        """The time of ``time.monotonic`` at which a child was last seen to work on a picture whose turn it was."""
        return max(self._proven_at_s, self._current.moved_at_s if self._current else 0.0)

    def end(self) -> None:
        """Kills all child processes."""
        for child in (self._idle, *(run.child for run in self._overdue)):
            if child is not None:
                child.end()
        if self._template is not None:
            self._template.end()

    async def _prepare(self, picture: Picture) -> Pixels:
        async with self._my_turn():
            budget = Budget.of(picture)
            run = self._current = _Run(await self._take_child(), picture, budget)
            try:
                is_done = await run.look_after(until_overdue=True)
            finally:
                self._current = None
            self._proven_at_s = time.monotonic()
            if not is_done:
                self._set_aside(run)
            elif isinstance(run.answer.result().result, PictureTooExpensive):
                run.child.end()  # it may have had too little memory left
                CHILDREN_ENDED.labels("expensive").inc()
            else:
                self._idle = run.child
        if not is_done:
            try:
                await run.look_after()
                CHILDREN_ENDED.labels("overdue").inc()
            finally:
                run.child.end()  # its priority cannot be raised again
                self._overdue.discard(run)
        result = run.answer.result().result
        if isinstance(result, str):
            raise RuntimeError(f"preprocessing failed in a child process:\n{result}")
        if isinstance(result, PrismError):
            raise result
        return result

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        with self.waiting.one():
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def _set_aside(self, run: _Run) -> None:
        if len(self._overdue) >= MAX_OVERDUE:
            worst = max(self._overdue, key=lambda other: other.spent)
            worst.refuse()
            self._overdue.discard(worst)
        run.child.yield_cores()
        self._overdue.add(run)

    async def _take_child(self) -> Child:
        child, self._idle = self._idle, None
        if child is not None and not child.is_lost:
            return child
        if child is not None:
            CHILDREN_ENDED.labels("idle").inc()
        template = await self._living_template()
        try:
            async with asyncio.timeout(FORK_S if template.is_warm else None):
                return await template.fork()
        except (TimeoutError, ChildLost):
            await asyncio.to_thread(template.end)
            raise _NotBegun from None

    async def _living_template(self) -> Template:
        if self._template is None or not self._template.is_alive:
            if self._template is not None:
                log.warning("the process that children are forked from has ended; another one starts")
                CHILDREN_ENDED.labels("template").inc()
                self._template.end()
            if self._starting is None:
                self._starting = asyncio.create_task(asyncio.to_thread(Template, self._settings, self._niceness))
            starting = self._starting
            try:
                self._template = await asyncio.shield(starting)  # a caller that leaves does not lose the process
            except OSError as error:
                log.warning("no process can be started: %s", error)
                raise _NotBegun from error
            finally:
                if starting.done():
                    self._starting = None
        return self._template

    def _has_template(self) -> bool:
        return self._template is not None and self._template.is_alive


class _NotBegun(Exception):
    """No child has begun with the picture: it was stopped, had just ended, or could not be forked."""


class _Crashed(Exception):
    """A child ended or got stuck after it had begun.

    Attributes:
        was_killed: See ``ChildLost``.
    """

    def __init__(self, *, was_killed: bool) -> None:
        super().__init__()
        self.was_killed = was_killed


class _Run:
    """One picture in one child, watched by its parent.

    Args:
        child: The child, which is idle.
        picture: The picture.
        budget: What it may use.

    Raises:
        _NotBegun: The child has ended.
    """

    def __init__(self, child: Child, picture: Picture, budget: Budget) -> None:
        self.child = child
        self._picture = picture
        self._budget = budget
        self._used_s = 0.0
        self._num_still_looks = 0
        self.moved_at_s = 0.0
        """When the child was last seen to compute or to wait for a core."""
        try:
            self.answer = child.send(Job(picture, self._budget.max_bytes))
        except ChildLost:
            child.end()
            raise _NotBegun from None

    @property
    def spent(self) -> float:
        """The share of the budget of CPU time that is used up."""
        return self._used_s / self._budget.max_cpu_s

    async def look_after(self, *, until_overdue: bool = False) -> bool:
        """Waits until the child has answered. With ``until_overdue`` it also returns when the picture is overdue.

        Returns True if the child has answered. The answer may be a refusal, which raises nothing here. If this method
        raises or is cancelled, the child is killed.

        Raises:
            PictureTooExpensive: The budget of CPU time is used up, or too many pictures are overdue.
            _NotBegun: The child stopped computing before it began.
            _Crashed: The child has ended, or stopped computing after it began.
        """
        try:
            while not (await asyncio.wait({self.answer}, timeout=LOOK_S))[0]:
                self._look()
                if until_overdue and self._used_s > self._budget.usual_cpu_s:
                    return False
            self.answer.result()
        except ChildLost as lost:
            self._end("killed" if lost.was_killed else "crashed")
            raise _Crashed(was_killed=lost.was_killed) from None
        except _NotBegun:
            self._end("stuck")
            raise
        except PictureTooExpensive:
            self._end("expensive")
            raise
        except BaseException:
            self._end("left")
            raise
        return True

    def refuse(self) -> None:
        """Refuses the picture, for which somebody waits in ``look_after``."""
        if not self.answer.done():
            self.answer.set_exception(too_slow(self._picture, self._budget))

    def _end(self, reason: str) -> None:
        CHILDREN_ENDED.labels(reason).inc()
        self.child.end()

    def _look(self) -> None:
        used_s, is_computing = self.child.look()
        if used_s > self._used_s or is_computing:
            self._used_s, self._num_still_looks = max(used_s, self._used_s), 0
            self.moved_at_s = time.monotonic()
        else:
            self._num_still_looks += 1
        if self._used_s > self._budget.max_cpu_s:
            raise too_slow(self._picture, self._budget)
        if self._num_still_looks >= STUCK_LOOKS:
            if self._used_s <= TICK_S:
                raise _NotBegun
            raise ChildLost


TICK_S: Final = 0.02
"""A child that has used less CPU time has not begun. The kernel counts it in steps of 0.01 s."""
