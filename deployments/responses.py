"""The responses of the endpoints that vLLM answers. Each one is sent by the request's deadline, or is given up.

A client that does not read makes a send wait as soon as the buffers between it and the Router are full. Without a limit
the request would keep its slot for as long as the client likes.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from cluster.access_log import ClientGone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from starlette.types import Message, Receive, Scope, Send

    from cluster.deadline import Deadline

    Leave = Callable[[BaseException | None], None]

SEND_GRACE_S: Final = 0.5
"""A response may be sent for so long after the deadline. The error event of a stream whose time is up needs it."""

PART_BYTES: Final = 64 * 2**10
"""A longer answer is sent in parts of this size. The server waits for the client before each part, and not inside."""


class WholeAnswer(Response):
    """A JSON response that gives its slot back when it was sent, when its client has left, or when its time is up.

    Args:
        content: The JSON text.
        leave: Called at the end: with None if all of it was sent, otherwise with the error. It must ignore all calls
            but the first.
        deadline: The request's deadline.
        headers: Headers to add.
    """

    media_type = "application/json"

    def __init__(self, content: str, leave: Leave, deadline: Deadline, headers: dict[str, str]) -> None:
        super().__init__(content, headers=headers)
        self._leave = leave
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        async with _sending(self._deadline, self._leave, send) as send_in_time:
            await send_in_time({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), PART_BYTES):
                end = start + PART_BYTES
                part = bytes(self.body[start:end])
                await send_in_time({"type": "http.response.body", "body": part, "more_body": end < len(self.body)})


class EventStream(Response):
    """An SSE response that gives its slot back when its client is gone or its time is up, at the latest.

    Starlette's own streaming response watches for the client in an extra task. Serve watches already, and cancels the
    request.

    Args:
        content: The bytes of the stream.
        leave: See ``WholeAnswer``. It has no effect if the stream has reported its own end before.
        deadline: The request's deadline.
        headers: Headers to add to those of SSE.
    """

    media_type = "text/event-stream"

    def __init__(
        self, content: AsyncGenerator[bytes], leave: Leave, deadline: Deadline, headers: dict[str, str]
    ) -> None:
        self._content = content
        self._leave = leave
        self._deadline = deadline
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async with _sending(self._deadline, self._leave, send) as send_in_time, aclosing(self._content) as pieces:
            await send_in_time(start)
            async for piece in pieces:
                await send_in_time({"type": "http.response.body", "body": piece, "more_body": True})
            await send_in_time({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def _sending(deadline: Deadline, leave: Leave, send: Send) -> AsyncIterator[Send]:
    """Gives a function that sends a part of a response by the deadline, and tells ``leave`` how the response ended.

    The time in which a part is made does not count here. The server closes the connection of a response that was given
    up, because it is not whole.
    """
    loop = asyncio.get_running_loop()

    async def send_in_time(message: Message) -> None:
        async with asyncio.timeout_at(max(deadline.at_s, loop.time()) + SEND_GRACE_S):
            await send(message)

    try:
        yield send_in_time
        leave(None)
    except TimeoutError:
        leave(deadline.exceeded(cause="the client does not read"))
    finally:
        leave(ClientGone())
