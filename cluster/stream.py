"""Stream stage: carries SSE text from a decoder to the client, and ends it properly whatever happens.

In: SSE text as the decoder makes it. Out: the same bytes. Once a stream has begun, an error can no longer be a status: it
becomes an ``error`` event followed by ``[DONE]``, so that a client never takes a broken answer for a whole one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from cluster.errors import PrismError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DONE: Final = b"data: [DONE]\n\n"


async def relay(first: str, rest: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Passes a stream on; a ``PrismError`` in mid-stream becomes its last events."""
    yield first.encode()
    try:
        async for text in rest:
            yield text.encode()
    except PrismError as error:
        yield error_event(error)
        yield DONE


def error_event(error: PrismError) -> bytes:
    """An error as one SSE event, in the OpenAI API's shape."""
    return f"data: {json.dumps(error.to_openai())}\n\n".encode()
