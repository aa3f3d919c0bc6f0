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
    statuses: list[int] = []
    out = [piece async for piece in relay("data: 1\n\n", pieces("data: 2\n\n", "data: [DONE]\n\n"), statuses.append)]
    assert statuses == [200]
    assert b"".join(out) == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"


async def test_an_error_in_mid_stream_ends_it_properly() -> None:
    """The pieces before an error are sent, and then the typed error and ``[DONE]``."""
    statuses: list[int] = []
    out = [
        piece async for piece in relay("data: 1\n\n", pieces("data: 2\n\n", PoolUnavailable("Gone.")), statuses.append)
    ]
    assert statuses == [503]
    assert out[:2] == [b"data: 1\n\n", b"data: 2\n\n"]
    error = out[2].removesuffix(b"\n\n" + DONE)
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "stage_unavailable"
    assert error != out[2]
    assert len(out) == 3


async def test_a_stream_that_is_left_has_no_status() -> None:
    """A stream that the client leaves reports no status."""
    statuses: list[int] = []
    stream = relay("data: 1\n\n", pieces("data: 2\n\n", "data: [DONE]\n\n"), statuses.append)
    assert await anext(stream) == b"data: 1\n\n"
    await stream.aclose()
    assert statuses == []
