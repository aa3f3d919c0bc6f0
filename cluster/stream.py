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

    from cluster.deadline import Deadline

log: Final = logging.getLogger("ray.serve")

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer from its first piece on.

    ``first`` and ``rest`` are SSE text if ``stream`` is true, and parts of one JSON text otherwise. ``wants_waterfall``
    says that the client asked for the header ``Server-Timing``. All of it must be sent by the ``deadline``.
    """

    first: str
    rest: AsyncGenerator[str]
    stream: bool
    wants_waterfall: bool
    deadline: Deadline


async def relay(
    first: str, rest: AsyncGenerator[str], ended: Callable[[PrismError | None], None], *, request_id: str
) -> AsyncGenerator[bytes]:
    """Yields a stream as bytes. An error becomes the stream's last events.

    Args:
        first: The first piece.
        rest: The other pieces. It is closed when this generator is.
        ended: Called when the last piece was taken (with None) or an error is known (with the error). It is not called
            when the client leaves.
        request_id: The name of the request, for the error event.
    """
    yield first.encode()
    try:
        async with aclosing(rest):
            async for text in rest:
                yield text.encode()
    except PrismError as error:
        ended(error)
        yield error_event(error, request_id) + DONE
    except Exception as defect:  # the edge of the process
        log.exception("a stream broke")
        broken = InternalError("Prism failed in the middle of this answer; its log says why.").because(defect)
        ended(broken)
        yield error_event(broken, request_id) + DONE
    else:
        ended(None)


def error_event(error: PrismError, request_id: str) -> bytes:
    """An error as one SSE event, in the shape of the OpenAI API."""
    return f"data: {json.dumps(error.to_openai(request_id))}\n\n".encode()
