"""The template and a child, as their parent sees them.

To make and to end a ``Template`` blocks, so both run in a thread. No other call blocks the parent's event loop.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psutil

from cluster.isolation import wire
from cluster.isolation.wire import Reply

if TYPE_CHECKING:
    import socket

    from cluster.checkpoint import ProcessorSettings
    from cluster.isolation.wire import Job, Ready

COMPUTING: Final = frozenset({psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP})
"""The states of a process that computes, waits for a core, or waits for a disk."""
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
"""Libraries start no threads, which a fork would lose, and an idle child keeps up to 128 MiB for its next picture.
Measured (two shared cores of an AMD EPYC with other work, JPEG of 3 megapixels, 2026-11-30): CPU time of a child with
glibc's defaults → with this: 38 ms → 26 ms, because 5,000 page faults became 12."""


class ChildLost(Exception):
    """A child ended before it answered.

    Args:
        was_killed: It ended without a fault of its own. Most often the kernel killed it because memory ran out.
    """

    def __init__(self, *, was_killed: bool = False) -> None:
        super().__init__()
        self.was_killed = was_killed


class Template:
    """The process that children are forked from. It ends when this process does, however that ends.

    Args:
        settings: How pictures become patches.
        niceness: Added to the niceness of this process, for the template and its children.
    """

    def __init__(self, settings: ProcessorSettings, niceness: int) -> None:
        self._control, theirs = wire.pair()
        self._control.setblocking(False)
        self.is_warm = False
        """Whether it has forked a child, which it can do once it has imported the stage."""
        path = os.pathsep.join(filter(None, sys.path))
        with theirs:
            arguments = [str(theirs.fileno()), str(niceness), settings.model_dump_json()]
            self._process = subprocess.Popen(  # noqa: S603 -- the arguments are ours
                [sys.executable, "-P", "-W", "ignore", "-m", "cluster.isolation.child", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Returns False once the process has ended."""
        return self._process.poll() is None

    async def fork(self) -> Child:
        """A new child, which is ready for a picture. The first one waits until the template has imported the stage.

        Raises:
            ChildLost: The template has ended.
        """
        ours, theirs = wire.pair()
        with theirs:
            try:
                wire.send_socket(self._control, theirs)
            except OSError as error:
                ours.close()
                raise ChildLost from error  # the template's output says why
        child = Child(ours)
        try:
            await child.start()
        except BaseException:
            child.end()
            raise
        self.is_warm = True
        return child

    def end(self) -> None:
        """Kills the process and waits until it is gone. The kernel kills its children."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class Child:
    """A process that prepares one picture at a time.

    Args:
        channel: The socket over which it gets jobs and answers them.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[Any] | None = self._loop.create_future()
        """The message that is waited for. It is forgotten when it has come, because it holds patches."""
        self._process: psutil.Process | None = None
        self._loop.add_reader(channel, self._read)
        self.is_lost = False
        self._was_killed = False
        self.cpu_s = 0.0
        """The CPU time that the child had used when it last answered, in seconds."""

    async def start(self) -> None:
        """Waits until the child is ready.

        Raises:
            ChildLost: It has ended.
        """
        assert self._reply is not None
        ready: Ready = await self._reply
        self.cpu_s = ready.cpu_s
        with suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(ready.pid)

    def send(self, job: Job) -> asyncio.Future[Reply]:
        """Gives the child a picture, and returns its future answer. That fails with ``ChildLost`` if the child ends.

        Raises:
            ChildLost: It has ended already.
        """
        try:
            wire.send(self._channel, job)
        except OSError as error:
            raise ChildLost from error
        self._reply = self._loop.create_future()
        return self._reply

    def look(self) -> tuple[float, bool]:
        """The CPU seconds that the child has used since its last answer, and whether it computes or waits to compute.

        Raises:
            ChildLost: It has ended.
        """
        try:
            if self._process is None:
                raise ChildLost
            times = self._process.cpu_times()
            return times.user + times.system - self.cpu_s, self._process.status() in COMPUTING
        except psutil.NoSuchProcess as error:
            for _ in range(2):  # an answer, and the end
                if not self.is_lost:
                    self._read()
            raise ChildLost(was_killed=self._was_killed) from error

    def yield_cores(self) -> None:
        """Lets the child compute only when no other process wants the core. This cannot be undone."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.nice(LOWEST_PRIORITY)

    def end(self) -> None:
        """Kills the child."""
        self._lose()
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.kill()

    def _read(self) -> None:
        try:
            message = wire.receive(self._channel)
        except BlockingIOError:
            return
        except EOFError as error:
            self._was_killed = not isinstance(error, wire.Fault)
            self._lose()
            return
        if isinstance(message, Reply):
            self.cpu_s = message.cpu_s
        reply, self._reply = self._reply, None
        if reply is not None and not reply.done():
            reply.set_result(message)

    def _lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._loop.remove_reader(self._channel)
            self._channel.close()
            if self._reply is not None and not self._reply.done():
                self._reply.set_exception(ChildLost(was_killed=self._was_killed))
                self._reply.exception()  # nobody has to ask for it


LOWEST_PRIORITY: Final = 19
