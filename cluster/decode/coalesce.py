"""Joins pieces of streams while many streams run, because each piece costs the same to send."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

WAIT_PER_STREAM_S: Final = 0.002
"""Seconds. It limits a decoder to 500 pieces a second over all its streams. The value is chosen, not measured."""
MAX_WAIT_S: Final = 0.05
"""Seconds: a delay that a reader does not notice."""


def wait_s(num_streams: int) -> float:
    """Returns the longest delay of a piece, in seconds. A single stream is never delayed."""
    return min((num_streams - 1) * WAIT_PER_STREAM_S, MAX_WAIT_S) if num_streams > 1 else 0.0


async def coalesced(pieces: AsyncGenerator[str], num_streams: Callable[[], int]) -> AsyncGenerator[list[str]]:
    """Yields the pieces in groups that are to be sent at once. The first group comes at once, later ones after a short
    wait.

    If this generator is closed or its task is cancelled, ``pieces`` is closed too. An error of ``pieces`` is raised
    after the pieces that came before it.

    Args:
        pieces: Text as it is made.
        num_streams: Gives the number of streams that the process carries now.
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
                group, ready = ready, []
                yield group
            if collecting.done() and not ready:
                break
            if not collecting.done() and (delay_s := wait_s(num_streams())):
                await asyncio.wait((collecting,), timeout=delay_s)
        await collecting
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
