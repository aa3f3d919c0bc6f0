"""Stream stage: carries SSE text from a decoder to the client, and always ends the stream properly.

In: SSE text as the decoder makes it. Out: the same bytes. An error in the middle of a stream can no longer become an
    HTTP status. It becomes an ``error`` event followed by ``[DONE]``, so that no client takes a broken answer for a
    whole one.
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
    """An answer from its first piece on.

    ``first`` and ``rest`` are SSE text if ``stream`` is true, and parts of one JSON text otherwise. ``wants_waterfall``
    says that the client asked for the header ``Server-Timing``.
    """

    first: str
    rest: AsyncGenerator[str]
    stream: bool
    wants_waterfall: bool


async def relay(first: str, rest: AsyncGenerator[str], ended: Callable[[int], None]) -> AsyncGenerator[bytes]:
    """Yields a stream as bytes. An error becomes the stream's last events.

    Args:
        first: The first piece.
        rest: The other pieces. It is closed when this generator is.
        ended: Called with an HTTP status when the last piece was taken or an error is known: the status that the stream
            would have had. It is not called when the client leaves.
    """
    yield first.encode()
    try:
        async with aclosing(rest):
            async for text in rest:
                yield text.encode()
    except PrismError as error:
        ended(error.status)
        yield error_event(error) + DONE
    except Exception:  # the edge of the process
        log.exception("a stream broke")
        ended(InternalError.status)
        yield error_event(InternalError("Prism failed in the middle of this answer; its log says why.")) + DONE
    else:
        ended(200)


def error_event(error: PrismError) -> bytes:
    """An error as one SSE event, in the shape of the OpenAI API."""
    return f"data: {json.dumps(error.to_openai())}\n\n".encode()
