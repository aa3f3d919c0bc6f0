"""Stream stage: carries SSE text from a decoder to the client, and ends it properly whatever happens.

In: SSE text as the decoder makes it. Out: the same bytes. Once a stream has begun, an error can no longer be a status:
    it becomes an ``error`` event followed by ``[DONE]``, so that a client never takes a broken answer for a whole one.
"""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.errors import InternalError, PrismError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

log: Final = logging.getLogger("ray.serve")

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """A request's first piece, and what follows it: SSE text for a stream, JSON otherwise."""

    first: str
    rest: AsyncGenerator[str]
    stream: bool
    wants_waterfall: bool


async def relay(first: str, rest: AsyncGenerator[str], ended: Callable[[int], None]) -> AsyncGenerator[bytes]:
    """Passes a stream on; an error in mid-stream becomes its last events.

    Args:
        first: The stream's first piece.
        rest: What follows.
        ended: Told the status that the stream would have had, once its last piece has been taken or its error is known.
            Not
            called where the client leaves.
    """
    yield first.encode()
    try:
        async with aclosing(rest):
            async for text in rest:
                yield text.encode()
    except PrismError as error:
        ended(error.status)
        yield error_event(error) + DONE
    except Exception:  # the edge of the process: a client must never take a broken answer for a whole one
        log.exception("a stream broke")
        ended(InternalError.status)
        yield error_event(InternalError("Prism failed in the middle of this answer; its log says why.")) + DONE
    else:
        ended(200)


def error_event(error: PrismError) -> bytes:
    """An error as one SSE event, in the OpenAI API's shape."""
    return f"data: {json.dumps(error.to_openai())}\n\n".encode()
