"""Joins pieces of streams when there are many: their way to the client costs per piece, not per token."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

WAIT_PER_STREAM_S: Final = 0.002
"""So a decoder sends 500 pieces a second at most, over all its streams: chosen, not measured."""
MAX_WAIT_S: Final = 0.05
"""What a reader does not see."""


def wait_s(num_streams: int) -> float:
    """How long a piece may be held back, in seconds: not at all where one stream runs alone."""
    return min((num_streams - 1) * WAIT_PER_STREAM_S, MAX_WAIT_S) if num_streams > 1 else 0.0


async def coalesced(pieces: AsyncGenerator[str], num_streams: Callable[[], int]) -> AsyncGenerator[str]:
    """The same text in pieces that are joined under load: the first goes out at once, each later one after a short
    wait.

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
            if not collecting.done() and (delay_s := wait_s(num_streams())):
                await asyncio.wait((collecting,), timeout=delay_s)
        await collecting
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
