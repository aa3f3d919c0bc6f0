"""Joining pieces of a stream under load."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from cluster.decode.coalesce import MAX_WAIT_S, coalesced, wait_s
from cluster.errors import PoolUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Engine:
    """Yields the pieces that a test feeds to it."""

    def __init__(self) -> None:
        self.fed: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.closed = False

    def feed(self, *pieces: str | Exception | None) -> None:
        for piece in pieces:
            self.fed.put_nowait(piece)

    async def pieces(self) -> AsyncGenerator[str]:
        try:
            while (piece := await self.fed.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed = True


async def test_what_came_meanwhile_goes_out_together() -> None:
    """The first piece goes out at once. Pieces that are made while the next one is delayed are joined to it, and no
    text is lost."""
    engine = Engine()
    async with aclosing(coalesced(engine.pieces(), lambda: 1000)) as joined:
        engine.feed("a")
        assert await anext(joined) == ["a"]
        engine.feed("b", "c", "d")
        assert await anext(joined) == ["b", "c", "d"]
        engine.feed("e", "f", None)
        assert [piece async for group in joined for piece in group] == ["e", "f"]


async def test_an_error_comes_after_what_was_made_before_it() -> None:
    """An error in the stream is raised after all text that came before it."""
    engine = Engine()
    engine.feed("a", "b", PoolUnavailable("Gone."))
    joined = coalesced(engine.pieces(), lambda: 1)
    assert await anext(joined) == ["a", "b"]
    with pytest.raises(PoolUnavailable):
        await anext(joined)


async def test_leaving_ends_the_engines_work() -> None:
    """When the joined stream is closed, the stream that it reads from is closed first."""
    engine = Engine()
    engine.feed("a")
    joined = coalesced(engine.pieces(), lambda: 1)
    assert await anext(joined) == ["a"]
    await joined.aclose()
    assert engine.closed


def test_one_stream_alone_waits_for_nothing() -> None:
    """A single stream is not delayed. With more streams the delay grows up to its bound."""
    waits_s = [wait_s(num_streams) for num_streams in range(200)]
    assert waits_s == sorted(waits_s)
    assert waits_s[1] == 0
    assert waits_s[-1] == MAX_WAIT_S
