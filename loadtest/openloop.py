"""An open loop: starts each request at its scheduled time, however slow the answers to earlier ones are.

In: planned requests. Out: calls of ``send``, each in a greenlet of its own. Messages are built ahead of time by a
thread, so that drawing a picture does not delay the requests that are due. A later turn of a conversation needs the
answer to the turn before it. If that one has not ended, the later turn waits, and its scheduled time moves to when the
earlier turn ended.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import gevent
from gevent.event import Event
from gevent.pool import Group
from gevent.queue import Queue
from gevent.threadpool import ThreadPool

from loadtest.bodies import answer_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtest.bodies import BodyBuilder
    from loadtest.schedule import PlannedRequest

MAX_AHEAD: Final = 256
MAX_AHEAD_BYTES: Final = 64 * 2**20
"""How many messages, and how many bytes of them, are built ahead of time."""
NUM_READY: Final = 32
"""The load begins when so many messages are built."""
SWITCH_S: Final = 0.0005
"""How long the building thread may keep the interpreter's lock.

Measured (two cores of an Intel Xeon, pages of 1240 × 1754 pixels drawn without a pause, 2026-11-29): p99 of the delay
of a 2 ms sleep, 0.005 (the default) → 0.0005: 6.5 ms → 2.1 ms.
"""


class SendChat(Protocol):
    """Sends one request and reads the answer to its end."""

    def __call__(self, request: PlannedRequest, body: bytes, due_s: float) -> str | None:
        """Returns the answer, or None if there is none.

        Args:
            request: The request.
            body: Its body.
            due_s: The value of ``time.perf_counter`` at which it should be sent.
        """


@dataclass
class _Turn:
    """One turn of a conversation, for the turn after it."""

    history: list[bytes] = field(default_factory=list)
    end_s: float = 0.0
    ended: Event = field(default_factory=Event)


class LookAhead:
    """Builds messages ahead of time, in order, within ``MAX_AHEAD`` and ``MAX_AHEAD_BYTES``.

    Args:
        requests: The requests.
        builder: Builds their messages.
    """

    def __init__(self, requests: Iterator[PlannedRequest], builder: BodyBuilder) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._requests: Final = requests
        self._builder: Final = builder
        self._built: Final[Queue[tuple[PlannedRequest, bytes] | None]] = Queue(MAX_AHEAD)
        self._num_bytes = 0
        self._room: Final = Event()
        self._thread: Final = ThreadPool(1)
        self.is_ready: Final = Event()
        self._greenlet: Final = gevent.spawn(self._build)

    def __iter__(self) -> Iterator[tuple[PlannedRequest, bytes]]:
        """Yields each request with its message, and waits for messages that are not built yet."""
        while (item := self._built.get()) is not None:
            self._num_bytes -= len(item[1])
            self._room.set()
            yield item

    def stop(self) -> None:
        """Stops building."""
        self._greenlet.kill()
        self._thread.kill()

    def _build(self) -> None:
        while (item := self._thread.apply(self._next)) is not None:
            self._num_bytes += len(item[1])
            self._built.put(item)
            if self._built.qsize() >= NUM_READY or self._num_bytes > MAX_AHEAD_BYTES:
                self.is_ready.set()
            while self._num_bytes > MAX_AHEAD_BYTES and self._built.qsize():
                self._room.clear()
                self._room.wait()
        self._built.put(None)
        self.is_ready.set()

    def _next(self) -> tuple[PlannedRequest, bytes] | None:
        request = next(self._requests, None)
        return None if request is None else (request, self._builder.message(request))


class OpenLoop:
    """Starts requests at their times.

    Args:
        requests: The requests, in the order of time.
        builder: Builds their bodies.
    """

    def __init__(self, requests: Iterator[PlannedRequest], builder: BodyBuilder) -> None:
        self._ahead: Final = LookAhead(requests, builder)
        self._builder: Final = builder
        self._open: Final = Group()
        self._turns: Final[dict[str, _Turn]] = {}

    def wait_until_ready(self) -> None:
        """Waits until enough messages are built to begin."""
        self._ahead.is_ready.wait()

    def run(self, began_s: float, send: SendChat) -> None:
        """Starts all requests at their times, and returns when all have ended.

        Args:
            began_s: The value of ``time.perf_counter`` at which the schedule begins.
            send: Sends one request.
        """
        for request, message in self._ahead:
            due_s = began_s + request.arrival.at_s
            _sleep_until(due_s)
            turn, earlier, conversation = _Turn(), None, request.arrival.conversation
            if conversation is not None:
                earlier = self._turns.pop(conversation, None)
                if not request.is_last_turn:
                    self._turns[conversation] = turn
            self._open.spawn(self._ask, send, request, message, due_s, turn, earlier)
        self._open.join()

    def stop(self, timeout_s: float) -> None:
        """Ends the load: kills the requests that do not end by themselves in time.

        The caller has stopped ``run``, or ``run`` has sent everything.
        """
        self._ahead.stop()
        self._open.join(timeout=timeout_s)
        self._open.kill()

    def _ask(
        self,
        send: SendChat,
        request: PlannedRequest,
        message: bytes,
        due_s: float,
        turn: _Turn,
        earlier: _Turn | None,
    ) -> None:
        answer = None
        try:
            if earlier is not None:
                earlier.ended.wait()
                due_s = max(due_s, earlier.end_s)
                turn.history = earlier.history
            body = self._builder.body([*turn.history, message], request.arrival.output_tokens)
            answer = send(request, body, due_s)
        finally:
            if answer is not None:
                turn.history = [*turn.history, message, answer_message(answer)]
            turn.end_s = time.perf_counter()
            turn.ended.set()


def _sleep_until(at_s: float) -> None:
    while (left_s := at_s - time.perf_counter()) > 0:
        gevent.sleep(left_s)
