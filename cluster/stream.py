"""Stream stage: carries SSE text from a decoder to the client, and ends it properly whatever happens.

In: SSE text as the decoder makes it. Out: the same bytes. Once a stream has begun, an error can no longer be a status: it
becomes an ``error`` event followed by ``[DONE]``, so that a client never takes a broken answer for a whole one.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from cluster.errors import InternalError, PrismError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log: Final = logging.getLogger("ray.serve")

DONE: Final = b"data: [DONE]\n\n"


async def relay(first: str, rest: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Passes a stream on; an error in mid-stream becomes its last events."""
    yield first.encode()
    try:
        async for text in rest:
            yield text.encode()
    except PrismError as error:
        yield error_event(error)
        yield DONE
    except Exception:  # the edge of the process: a client must never take a broken answer for a whole one
        log.exception("a stream broke")
        yield error_event(InternalError("Prism failed in the middle of this answer; its log says why."))
        yield DONE


def error_event(error: PrismError) -> bytes:
    """An error as one SSE event, in the OpenAI API's shape."""
    return f"data: {json.dumps(error.to_openai())}\n\n".encode()
