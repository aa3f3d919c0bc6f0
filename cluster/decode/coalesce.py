"""Joins pieces of streams when there are many: their way to the client costs per piece, not per token."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

PIECES_PER_S: Final = 1000
"""What a decoder sends at most, over all its streams. Measured on one core: by reference Ray carries 2,500 pieces a second."""
MAX_WAIT_S: Final = 0.05


def wait_s(num_streams: int) -> float:
    """How long a piece may be held back, in seconds: a millisecond for each stream that runs."""
    return min(num_streams / PIECES_PER_S, MAX_WAIT_S)


async def coalesced(pieces: AsyncGenerator[str], num_streams: Callable[[], int]) -> AsyncGenerator[str]:
    """The same text in pieces that are joined under load: the first goes out at once, each later one after a short wait.

    Closing it, or cancelling its task, ends ``pieces``; an error of theirs is raised after what came before it.

    Args:
        pieces: Text as it is made.
        num_streams: How many streams the process carries now.
    """
    ready: list[str] = []
    news = asyncio.Event()

    async def collect() -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    ready.append(piece)
                    news.set()
        finally:
            news.set()

    collecting = asyncio.create_task(collect())
    try:
        while True:
            await news.wait()
            news.clear()
            if ready:
                joined = "".join(ready)
                ready.clear()
                yield joined
            if collecting.done() and not ready:
                break
            if not collecting.done():
                await asyncio.wait((collecting,), timeout=wait_s(num_streams()))
        await collecting
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
