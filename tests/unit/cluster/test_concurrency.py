"""Coroutines that run at the same time."""

from __future__ import annotations

import asyncio

import pytest

from cluster.concurrency import all_or_first_error


async def test_results_come_in_order_and_the_first_error_cancels_the_rest() -> None:
    """Results are in the order of the coroutines. If one fails, its error is raised and the others are cancelled."""
    first_done, cancelled = asyncio.Event(), asyncio.Event()

    async def slow() -> int:
        await first_done.wait()
        return 1

    async def quick() -> int:
        first_done.set()
        return 2

    assert await all_or_first_error([slow(), quick()]) == [1, 2]

    async def never() -> int:
        try:
            return await asyncio.Future[int]()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def fail() -> int:
        raise ValueError("the first error")

    with pytest.raises(ValueError, match="the first error"):
        await all_or_first_error([never(), fail()])
    await cancelled.wait()
