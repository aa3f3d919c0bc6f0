"""Stream stage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cluster.errors import PoolUnavailable, PrismError
from cluster.stream import DONE, relay

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def pieces(*texts: str | PrismError) -> AsyncGenerator[str]:
    """Yields pieces of an answer. A piece that is an exception is raised."""
    for piece in texts:
        if isinstance(piece, PrismError):
            raise piece
        yield piece


async def test_a_whole_stream_passes_unchanged() -> None:
    """The bytes that go out are those that the decoder made."""
    ends: list[PrismError | None] = []
    stream = relay("data: 1\n\n", pieces("data: 2\n\n", "data: [DONE]\n\n"), ends.append, request_id="7")
    out = [piece async for piece in stream]
    assert ends == [None]
    assert b"".join(out) == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"


async def test_an_error_in_mid_stream_ends_it_properly() -> None:
    """The pieces before an error are sent, and then the typed error with the request's id, and ``[DONE]``."""
    ends: list[PrismError | None] = []
    gone = PoolUnavailable("Gone.")
    stream = relay("data: 1\n\n", pieces("data: 2\n\n", gone), ends.append, request_id="7")
    out = [piece async for piece in stream]
    assert ends == [gone]
    assert out[:2] == [b"data: 1\n\n", b"data: 2\n\n"]
    error = out[2].removesuffix(b"\n\n" + DONE)
    told = json.loads(error.removeprefix(b"data: "))["error"]
    assert (told["code"], told["request_id"]) == ("stage_unavailable", "7")
    assert error != out[2]
    assert len(out) == 3


async def test_a_stream_that_is_left_reports_no_end() -> None:
    """A stream that the client leaves does not report its end."""
    ends: list[PrismError | None] = []
    stream = relay("data: 1\n\n", pieces("data: 2\n\n", "data: [DONE]\n\n"), ends.append, request_id="7")
    assert await anext(stream) == b"data: 1\n\n"
    await stream.aclose()
    assert ends == []
